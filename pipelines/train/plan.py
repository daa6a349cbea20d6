"""Lines of `--dry-run`: what a training will do, and what a generator's will cost.

Torch is loaded only where something is counted: the command line imports this page.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nvg.checkpoints.runs import checkpoints_in
from nvg.errors import UserError
from nvg.records import DINOV2, EFFICIENTNET, MANIFEST_FILE, read_manifest
from pipelines.run_folder import CHECKPOINTS_FOLDER

if TYPE_CHECKING:
    from pipelines.train.config import RunConfig
    from pipelines.train.costs import ModelConfig, TrainingWork
    from pipelines.train.drivers import PairRunConfig
    from pipelines.train.generator import GeneratorRunConfig

GIB = 2.0**30
STATED_DEVICE, STATED_UTILISATION = "h100", 0.4  # of the headers of presets
_NETWORKS = {DINOV2: "DINOv2", EFFICIENTNET: "EfficientNet-Lite0"}


def generator_model(config: GeneratorRunConfig) -> ModelConfig:
    """The architecture with what the records fix, where they are there already.

    Raises:
        UserError: the configuration and the records contradict each other.
    """
    from nvg.records import RecordDataset
    from pipelines.train.generator import fill_from_manifest

    records = Path(config.data.path)
    if not (records / MANIFEST_FILE).is_file():
        return config.model
    return fill_from_manifest(config.model, RecordDataset.open_description(records).manifest)


def generator_work(config: GeneratorRunConfig) -> TrainingWork:
    """What one image of a run costs."""
    from pipelines.train.costs import count_work

    return count_work(
        generator_model(config),
        stages_per_image=config.loss.stages_per_image,
        precision=config.loop.precision,
        recompute_activations=config.compute.recompute_activations,
        compiled=config.compute.compile,
    )


def plan_costs(config: GeneratorRunConfig, num_devices: int) -> list[str]:
    """Parameters, operations, hours and memory of a run on so many devices, a line each.

    Raises:
        UserError: the batch does not divide over the devices.
    """
    from pipelines.train.devices import find_device

    work, optimizer = generator_work(config), config.optimizer
    micro_batch = optimizer.global_batch // num_devices // optimizer.accumulation_steps(num_devices)
    total = work.flops_per_image * optimizer.total_images
    peak = find_device(STATED_DEVICE).bf16_flops
    hours = total / (STATED_UTILISATION * peak * num_devices) / 3600
    activations = work.activation_bytes * micro_batch + work.pass_bytes
    states = ", ".join(
        f"ZeRO-{stage} {_state(config, work, stage, num_devices) / GIB:.1f}{' (this run)' if own else ''}"
        for stage in range(4)
        for own in [stage == config.deepspeed.zero_stage]
    )
    return [
        f"{work.num_parameters:,} parameters; {work.flops_per_image / 1e12:.3g} TFLOP and {work.tokens_per_image:,} "
        "tokens an image, forward and backward",
        f"{total:.2g} FLOP in all: {hours:,.0f} hours on {num_devices} device(s) at {STATED_UTILISATION:.0%} of "
        f"{peak / 1e12:.0f} TFLOP/s each (bf16, {STATED_DEVICE.upper()}); `nvg plan` says more",
        f"GiB a device for weights, gradients, moments and average: {states}",
        f"GiB a device for activations: {activations / GIB:.1f} at {micro_batch} images a pass"
        + (", blocks computed again" if config.compute.recompute_activations else ""),
    ]


def plan_alignment(config: GeneratorRunConfig) -> list[str]:
    """What the alignment of hidden tokens needs and what of it is there, a line; none where a run has no alignment."""
    if config.kind != "content" or not config.loss.repa_weight:
        return []
    records, target, given = Path(config.data.path), config.loss.repa_target, _weights_given(config)
    aim = f"align hidden tokens with {_NETWORKS[target]} (loss.repa_weight={config.loss.repa_weight:g})"
    features = "repa.store=features" + (f" repa.target={target}" if target != DINOV2 else "")
    jpeg = f"run `nvg precompute` with repa.store=jpeg and have {given}, or with {features}"
    if not (records / MANIFEST_FILE).is_file():
        return [f"{aim}: {jpeg}"]
    store = read_manifest(records).get("repa", {}).get("store")
    if store == "features":
        return [f"{aim}: with the features beside the records"]
    if store == "jpeg":
        return [f"{aim}: with the JPEGs beside the records and {given}"]
    return [f"{aim}: WILL BE REFUSED, nothing lies beside the records; {jpeg}, or set loss.repa_weight=0"]


def _weights_given(config: GeneratorRunConfig) -> str:
    """The weight file of the alignment's network, and whether it is there."""
    from nvg.checkpoints import find_efficientnet_weights
    from pipelines.batches.records import WEIGHTS_KEYS

    target, file = config.loss.repa_target, config.repa_weights
    key, there = WEIGHTS_KEYS[target], False
    with suppress(UserError):
        there = (find_efficientnet_weights(file, key=key) if target == EFFICIENTNET else Path(file)).is_file()
    return f"{key}={file!r} ({'found' if there else 'NOT THERE yet'})"


def _state(config: GeneratorRunConfig, work: TrainingWork, zero_stage: int, num_devices: int) -> float:
    from pipelines.train.costs import state_bytes

    offload = config.deepspeed.offload_optimizer
    return state_bytes(work.num_parameters, zero_stage=zero_stage, world_size=num_devices, offload=offload).total


def plan_generators(config: PairRunConfig) -> list[str]:
    """Steps of both trainings, a line each.

    Raises:
        UserError: one of them would be refused.
    """
    from pipelines.train.generator import check_start

    lines = [f"use the Ray cluster {config.cluster.address!r} for two driver processes"]
    for run in config.runs:
        check_start(run)
        lines.append(
            f"train the {run.kind} generator on {run.data.path} for {run.optimizer.num_steps} steps of "
            f"{run.optimizer.global_batch} images with {run.launch.num_workers} worker(s) in {run.run_folder}"
        )
        lines += [f"  {line}" for line in [*plan_alignment(run), *plan_costs(run, run.launch.num_workers)]]
    return lines


def plan_training(subject: str, data: str, config: RunConfig) -> list[str]:
    """Steps of one training of a subject on some data (in words), a line each."""
    optimizer, launch = config.optimizer, config.launch
    begun = bool(checkpoints_in(Path(config.run_folder) / CHECKPOINTS_FOLDER))
    return [
        f"read {data}",
        f"train {subject} for {optimizer.num_steps} steps of {optimizer.global_batch} images, "
        f"{launch.launcher} launcher with {launch.num_workers} worker(s), "
        f"ZeRO-{config.deepspeed.zero_stage}, {config.loop.precision}",
        f"{'continue' if begun else 'start'} in {config.run_folder}, a checkpoint every "
        f"{config.loop.checkpoint_every_steps} steps",
    ]
