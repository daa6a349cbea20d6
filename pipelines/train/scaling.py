"""What a training takes on so many devices: memory and the micro batch that fits, time, communication, checkpoints.

The formulas, each with an example, are in docs/scaling.md. Everything that is sent and stored is fp32: bf16 is the
precision of matrix products alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from nvg.bounds import refuse
from nvg.errors import UserError
from nvg.precision import Precision
from pipelines.train.config import DeepSpeedConfig, RunConfig
from pipelines.train.costs import StateBytes, state_bytes
from pipelines.train.devices import Device, Work, carried_utilisation

WORD = 4.0  # bytes of a number that is kept, sent or stored
USABLE = 0.95  # of a device's memory; the rest is its context, NCCL and holes between blocks
STORE_SPEED = 2e9  # bytes a second of the folder that checkpoints go to
LOST = 0.1  # share of a step's time from which on scaling counts as bent
# Of what makers state: products of a block and copies as measured on an H100, links as NCCL reaches them.
_PRODUCTS, _MEMORY, _LINKS = 0.71, 0.84, 0.8
_BLOCKS = 0.85  # of a generator's speed, what blocks alone would allow
# Bytes a token and width that a block moves forward and backward: benchmarks/block_bytes.py; eager ones as measured.
_COMPILED_BYTES, _EAGER_BYTES = 136.0, 255.0
_LATENCY_S = 2e-5  # of a collective of one bucket
_START_S = 1e-5  # of a kernel, from Python

Basis = Literal["measured", "predicted"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is computed of every image.

    Attributes:
        what: kind, as the table of devices has it.
        num_parameters: trained ones, 0 where nothing is trained.
        flops_per_image: all passes.
        activation_bytes, pass_bytes, stream_elements, num_kernels: see `TrainingWork`.
        precision: of matrix products.
        compiled: whether blocks are.
        recomputed: whether the backward pass computes each block again.
    """

    what: Work
    flops_per_image: float
    precision: Precision
    compiled: bool = False
    recomputed: bool = False
    num_parameters: int = 0
    activation_bytes: float = 0.0
    pass_bytes: float = 0.0
    stream_elements: float = 0.0
    num_kernels: int = 0


@dataclass(frozen=True)
class Speed:
    """Speed of one device.

    Attributes:
        images_per_s: of one device.
        utilisation: share of its peak that the work's own operations make up.
        basis: whether it was measured on such a device with such a work.
        why: where it comes from, in words.
    """

    images_per_s: float
    utilisation: float
    basis: Basis
    why: str


def speed_on(work: Workload, device: Device) -> Speed:
    """How fast a device is: as measured, else by products and memory traffic (generators), else as the nearest one."""
    peak, slower = device.peak(work.precision), 0.75 if work.recomputed else 1.0
    row = device.measured_as(work.what, work.flops_per_image, work.precision, work.compiled)
    if row is not None and not work.recomputed:
        share = row.images_per_s * work.flops_per_image / peak
        at = f" at {row.micro_batch} images a pass" if row.micro_batch else ""
        why = f"measured on {device.name}{at} ({row.row}, docs/results/gpu.md)"
        return Speed(row.images_per_s, share, "measured", why)
    if work.stream_elements:
        moved = (_COMPILED_BYTES if work.compiled else _EAGER_BYTES) * (1.0 if work.precision == "bf16" else 2.0)
        seconds = work.flops_per_image / (_PRODUCTS * peak)
        seconds += moved * work.stream_elements / (_MEMORY * device.memory_speed)
        images_per_s = slower * _BLOCKS / seconds
        why = f"predicted: products at {_PRODUCTS:.0%} of the peak, {moved:g} bytes a token and width (docs/scaling.md)"
        return Speed(images_per_s, images_per_s * work.flops_per_image / peak, "predicted", why)
    share, row, other = carried_utilisation(work.what, work.precision, work.compiled)
    why = f"predicted: the share of its peak that {other.name} reached ({row.row})"
    return Speed(slower * share * peak / work.flops_per_image, slower * share, "predicted", why)


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """Memory of the main rank's device at one ZeRO stage.

    Attributes:
        zero_stage: 0 to 3.
        state: between steps.
        buffers: of communication.
        largest_micro_batch: images a pass that fit, 0 for none.
    """

    zero_stage: int
    state: StateBytes
    buffers: float
    largest_micro_batch: int


def memory_by_stage(work: Workload, config: RunConfig, device: Device, num_devices: int) -> list[StageMemory]:
    """How much each ZeRO stage takes of a device, and how many images fit beside it."""
    settings, rows = config.deepspeed, []
    for stage in range(4):
        state = state_bytes(
            work.num_parameters,
            zero_stage=stage,
            world_size=num_devices,
            offload=settings.offload_optimizer and stage > 0,
        )
        buffers = 2 * WORD * min(settings.bucket_elements, work.num_parameters) if stage else 0.0
        free = USABLE * device.memory_bytes - state.total - buffers - work.pass_bytes
        most = max(0, int(free / work.activation_bytes))
        rows.append(StageMemory(zero_stage=stage, state=state, buffers=buffers, largest_micro_batch=most))
    return rows


@dataclass(frozen=True, kw_only=True)
class Communication:
    """What the devices send each other in a step.

    Attributes:
        num_exchanges: passes over all parameters, each a reduce-scatter or an all-gather.
        bytes_per_device: sent by each device.
        seconds: nothing is computed meanwhile (`overlap_comm` is off).
    """

    num_exchanges: int
    bytes_per_device: float
    seconds: float


def communication(
    work: Workload, zero: DeepSpeedConfig, device: Device, num_devices: int, passes: int
) -> Communication:
    """Gradients, and weights where they are sharded, of one step.

    Args:
        zero: stage and size of a bucket.
        passes: micro batches of a device in a step; from ZeRO-2 on each of them reduces, at ZeRO-3 each gathers twice.
    """
    num_exchanges = {0: 2, 1: 2, 2: passes + 1, 3: 3 * passes + 1}[zero.zero_stage]
    of_all = WORD * work.num_parameters
    inside = min(num_devices, device.devices_per_node)
    num_nodes = math.ceil(num_devices / device.devices_per_node)
    seconds = (inside - 1) / inside * of_all / (_LINKS * device.link_speed)
    seconds += (num_nodes - 1) / num_nodes * of_all / inside / (_LINKS * device.network_speed)
    num_buckets = math.ceil(work.num_parameters / zero.bucket_elements)
    seconds += _LATENCY_S * num_buckets * math.ceil(math.log2(num_devices))
    return Communication(
        num_exchanges=num_exchanges,
        bytes_per_device=num_exchanges * of_all * (num_devices - 1) / num_devices,
        seconds=num_exchanges * seconds,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOutlook:
    """A training on so many devices.

    Attributes:
        num_devices: those that are used.
        zero_stage, micro_batch, passes: of a step, as proposed; a step has `passes` micro batches on each device.
        stages: memory by ZeRO stage.
        activation_bytes: of a pass.
        compute_s, communication: of a step; no step takes less than starting its kernels.
        hours: of all steps and checkpoints.
        bends_at: devices from which on a tenth of a step is communication; null where that does not happen while each
            device has an image.
        equals_at: devices from which on communication takes as long as computation.
        checkpoint_bytes, checkpoint_s: of one.
        num_kept: checkpoints that lie on the disk at the end.
        changes: settings that the proposal needs, "key=value".
        notes: what will be refused or is left unused, in words.
    """

    num_devices: int
    zero_stage: int
    micro_batch: int
    passes: int
    stages: list[StageMemory]
    activation_bytes: float
    compute_s: float
    communication: Communication
    hours: float
    bends_at: int | None
    equals_at: int | None
    checkpoint_bytes: float
    checkpoint_s: float
    num_kept: int
    changes: list[str]
    notes: list[str]


def outlook(name: str, work: Workload, config: RunConfig, device: Device, num_devices: int) -> TrainingOutlook:
    """Fit a training onto devices: the stage that it asks for, or the first one that fits, and the largest micro batch.

    Args:
        name: of the training, for messages.

    Raises:
        UserError: it fits at no stage; names how many devices it needs, if any number helps.
    """
    batch, stage = config.optimizer.global_batch, config.deepspeed.zero_stage
    used = max(number for number in _divisors(batch) if number <= num_devices)
    notes = [] if used == num_devices else [f"{num_devices} do not divide optimizer.global_batch={batch}: {used} work"]
    if config.loop.engine == "plain" and used > 1:
        notes.append("loop.engine=plain has one rank: set loop.engine=deepspeed")
    stages = memory_by_stage(work, config, device, used)
    if not stages[stage].largest_micro_batch:
        fitting = [row.zero_stage for row in stages if row.largest_micro_batch]
        if not fitting:
            raise _too_few(name, work, config, device, num_devices)
        notes.append(f"ZeRO-{stage} DOES NOT FIT on {device.name}: deepspeed.zero_stage={fitting[0]} does")
        stage = fitting[0]
    share, most = batch // used, stages[stage].largest_micro_batch
    micro_batch = max(number for number in _divisors(share) if number <= most)
    asked = config.optimizer.micro_batch or batch // config.launch.num_workers
    if asked > most:
        notes.append(
            f"optimizer.micro_batch={asked} DOES NOT FIT: {most} images do at most; "
            f"set optimizer.micro_batch={micro_batch}"
        )
    wanted = {
        "launch.num_workers": (config.launch.num_workers, used),
        "optimizer.micro_batch": (config.optimizer.micro_batch, micro_batch),
        "deepspeed.zero_stage": (config.deepspeed.zero_stage, stage),
    }
    kept = 1 + (config.loop.keep_last - 1)
    if config.loop.keep_every_steps:
        kept += config.optimizer.num_steps // config.loop.keep_every_steps
    images_per_s = speed_on(work, device).images_per_s
    compute_s = _compute_s(work, images_per_s, batch / used, share // micro_batch)
    zero = replace(config.deepspeed, zero_stage=stage, offload_optimizer=False)
    sent = communication(work, zero, device, used, share // micro_batch)
    checkpoint_bytes = checkpoint_size(work.num_parameters, config.loop.engine, stage)
    checkpoint_s = checkpoint_bytes / STORE_SPEED
    steps = config.optimizer.num_steps
    saving_s = checkpoint_s * math.ceil(steps / config.loop.checkpoint_every_steps)
    bends = _bends(work, zero, batch, device, most, images_per_s)
    return TrainingOutlook(
        num_devices=used,
        zero_stage=stage,
        micro_batch=micro_batch,
        passes=share // micro_batch,
        stages=stages,
        activation_bytes=work.activation_bytes * micro_batch + work.pass_bytes,
        compute_s=compute_s,
        communication=sent,
        hours=(steps * (compute_s + sent.seconds) + saving_s) / 3600,
        bends_at=bends[0],
        equals_at=bends[1],
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_s=checkpoint_s,
        num_kept=min(kept, math.ceil(steps / config.loop.checkpoint_every_steps)),
        changes=[f"{key}={new}" for key, (old, new) in wanted.items() if old != new],
        notes=notes,
    )


def checkpoint_size(num_parameters: int, engine: str, zero_stage: int) -> float:
    """Bytes of a checkpoint: weights, average, what the engine writes of the network, and its optimizer.

    ZeRO 1 and 2 store the network's weights beside those that they update; ZeRO-3 stores the latter alone.
    """
    of_engine = 4 if engine == "deepspeed" and zero_stage in (1, 2) else 3  # with AdamW's two moments
    return WORD * num_parameters * (2 + of_engine)


def _compute_s(work: Workload, images_per_s: float, num_images: float, passes: int) -> float:
    """Seconds of a device for its images of a step: no less than starting the kernels takes."""
    return max(num_images / images_per_s, passes * work.num_kernels * _START_S)


def _bends(
    work: Workload, zero: DeepSpeedConfig, batch: int, device: Device, most: int, images_per_s: float
) -> tuple[int | None, int | None]:
    """Devices at which a tenth of a step is lost, and at which communication takes as long as computation."""
    found: list[int | None] = []
    for bar in (LOST, 0.5):
        bent = None
        for number in _divisors(batch)[1:]:
            micro_batch = max(n for n in _divisors(batch // number) if n <= most)
            passes = batch // number // micro_batch
            sent_s = communication(work, zero, device, number, passes).seconds
            if sent_s / (sent_s + _compute_s(work, images_per_s, batch / number, passes)) >= bar:
                bent = number
                break
        found.append(bent)
    return found[0], found[1]


def _too_few(name: str, work: Workload, config: RunConfig, device: Device, num_devices: int) -> UserError:
    for number in _divisors(config.optimizer.global_batch):
        if number > num_devices:
            fits = [row for row in memory_by_stage(work, config, device, number) if row.largest_micro_batch]
            if fits:
                expected = f"{number} or more for {name}, which fits there at ZeRO-{fits[0].zero_stage}"
                return refuse("--devices", num_devices, expected, "take more, or a device with more memory")
    gib = (work.activation_bytes + work.pass_bytes + WORD * work.num_parameters) / 2**30
    return refuse(
        "--device",
        device.key,
        f"one with more memory for {name}: one image a pass and the average alone take {gib:.1f} GiB",
        "take a larger one, set compute.recompute_activations=true, or lower depth or loss.stages_per_image",
    )


def _divisors(number: int) -> list[int]:
    """In ascending order."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
