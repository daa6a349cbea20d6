"""How `nvg plan` shows what an experiment takes: tables for a terminal, JSON, and the lines of a preset's header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.experiment.forecast import StepConfig, StepOutlook, count_images, workload_of
from pipelines.precompute.config import PrecomputeConfig
from pipelines.train.config import RunConfig
from pipelines.train.devices import Device, find_device
from pipelines.train.plan import GIB, STATED_DEVICE, STATED_UTILISATION
from pipelines.train.scaling import STORE_SPEED, USABLE, Workload

_UNITS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_PIPED_WIDTH = 120
_NAMES = {"bf16": "bf16", "tf32": "TF32", "fp32": "fp32"}


def show(steps: Sequence[StepOutlook], device: Device, num_devices: int, price: float | None) -> None:
    """Print all steps in one table, then each training's memory, communication and checkpoints."""
    table = Table(title=f"{num_devices} × {device.name}", title_justify="left")
    table.add_column("")
    for name in [step.name for step in steps] + ["all"] * (len(steps) > 1):
        table.add_column(name, justify="right")
    rows = {
        "images": [f"{step.num_images:,}" for step in steps],
        "reads": ["–" if step.bytes_read is None else size_text(step.bytes_read) for step in steps],
        "FLOP": [f"{step.flops:.2g}" for step in steps],
        "devices": [f"{step.num_devices}" for step in steps],
        "images/s of one": [f"{step.speed.images_per_s:.3g}" for step in steps],
        "of the peak": [f"{step.speed.utilisation:.0%}" for step in steps],
        "which is": [step.speed.basis for step in steps],
        "hours": [hours_text(step.hours) for step in steps],
        "device-hours": [hours_text(step.device_hours) for step in steps],
        "leaves": [size_text(step.storage_bytes) for step in steps],
    }
    device_hours = sum(step.device_hours for step in steps)
    sums = {
        "FLOP": f"{sum(step.flops for step in steps):.2g}",
        "hours": hours_text(sum(step.hours for step in steps)),
        "device-hours": hours_text(device_hours),
        "leaves": size_text(sum(step.storage_bytes for step in steps)),
    }
    if price is not None:
        rows["cost"] = [f"{price * step.device_hours:,.0f}" for step in steps]
        sums["cost"] = f"{price * device_hours:,.0f}"
    for name, cells in rows.items():
        table.add_row(name, *cells, *[sums.get(name, "")] * (len(steps) > 1))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _PIPED_WIDTH)
    console.print(table)
    for step in steps:
        for line in lines_of(step, device):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def lines_of(step: StepOutlook, device: Device) -> list[str]:
    """What the table has no room for, one line each."""
    lines = ["", f"{step.name}: {step.work.flops_per_image / 1e12:.3g} TFLOP an image, {step.speed.why}"]
    training = step.training
    if training is not None:
        sent = training.communication
        step_s = training.compute_s + sent.seconds
        stages = "; ".join(
            f"ZeRO-{row.zero_stage} {(row.state.total + row.buffers) / GIB:.1f} GiB, {row.largest_micro_batch} images"
            for row in training.stages
        )
        lines += [
            f"  memory of {device.memory_bytes / GIB:.1f} GiB, {USABLE:.0%} usable, with {step.work.num_parameters:,} "
            f"parameters; state and the largest micro batch beside it: {stages}",
            f"  proposed: ZeRO-{training.zero_stage}, {training.passes} pass(es) of {training.micro_batch} images "
            f"({training.activation_bytes / GIB:.1f} GiB of activations)"
            + (f": set {' '.join(training.changes)}" if training.changes else ", as it is"),
            f"  a step: {1e3 * step_s:.3g} ms, of it {1e3 * sent.seconds:.3g} ms ({sent.seconds / step_s:.0%}) for "
            f"{size_text(sent.bytes_per_device)} that each device sends",
            f"  {_bends_text(training.bends_at, training.equals_at)}",
            f"  checkpoints: {size_text(training.checkpoint_bytes)} each, {training.checkpoint_s:.3g} s at "
            f"{STORE_SPEED / 1e9:g} GB/s; {training.num_kept} are kept",
        ]
        lines += [f"  {note}" for note in training.notes]
    return lines + [f"  {note}" for note in step.notes]


def _bends_text(bends_at: int | None, equals_at: int | None) -> str:
    if bends_at is None:
        return "scaling does not bend: less than a tenth of a step is communication while each device has an image"
    equal = "never half of it" if equals_at is None else f"half of it from {equals_at} on"
    return f"scaling bends at {bends_at} devices, where a tenth of a step is communication ({equal})"


def estimators(steps: Sequence[StepOutlook], device: Device) -> list[str]:
    """DeepSpeed's own estimates of what lies on a device between steps, beside ours, with the reason they differ."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    lines: list[str] = []
    for step in steps:
        if step.training is None:
            continue
        used = step.training.num_devices
        machine = {
            "num_gpus_per_node": min(used, device.devices_per_node),
            "num_nodes": -(-used // device.devices_per_node),
        }
        number, ours = step.work.num_parameters, [row.state.total / GIB for row in step.training.stages]
        two = estimate_zero2_model_states_mem_needs(number, **machine, cpu_offload=False, additional_buffer_factor=1.0)
        three = estimate_zero3_model_states_mem_needs(
            number,
            0,
            **machine,
            cpu_offload=False,
            cpu_offload_params=False,
            zero_init=True,
            additional_buffer_factor=1.0,
        )
        lines.append(
            f"{step.name}: DeepSpeed estimates {two[1] / GIB:.2f} GiB at ZeRO-2 and {three[1] / GIB:.2f} at ZeRO-3, "
            f"here {ours[2]:.2f} and {ours[3]:.2f}: its weights and gradients are 16 bit wide where these are fp32 "
            "under autocast, and it has no average"
        )
    return lines


def as_json(steps: Sequence[StepOutlook], device: Device, num_devices: int, price: float | None) -> dict[str, Any]:
    """The same as JSON values."""
    rows = [asdict(step) for step in steps]
    if price is not None:
        rows = [{**row, "cost": price * row["device_hours"]} for row in rows]
    return {"device": device.key, "num_devices": num_devices, "price": price, "steps": rows}


def headers(steps: Mapping[str, StepConfig], num_images: int | None) -> dict[str, list[str]]:
    """`GPU-hours:` of presets' headers as they stand in the files: work at the stated share of a device, and measured.

    Args:
        steps: with those whose networks they take.
        num_images: training images, of a precompute; null counts those of its source.

    Returns:
        Step to lines; an evaluation has none.
    """
    lines: dict[str, list[str]] = {}
    for name, config in steps.items():
        if isinstance(config, RunConfig | PrecomputeConfig):
            first, *more = _header_lines(steps, name, num_images)
            lines[name] = [f"# GPU-hours:  {first}", *(f"#{' ' * 13}{line}" for line in more)]
    return lines


def _header_lines(steps: Mapping[str, StepConfig], name: str, num_images: int | None) -> list[str]:
    config, device = steps[name], find_device(STATED_DEVICE)
    work = workload_of(dict(steps), name)
    if isinstance(config, RunConfig):
        total: float = config.optimizer.total_images
    else:
        assert isinstance(config, PrecomputeConfig)
        total = config.source.num_views * (num_images or count_images(config.source, "source.path"))
    row = device.measured_as(work.what, work.flops_per_image, work.precision, work.compiled)
    without = " without the judges" if work.what == "tokenizer" else " of the encoder" if work.what == "encoder" else ""
    lines = [f"{'' if row else 'predicted, not measured: '}{_stated(work, total, device, without)}"]
    if row is not None:
        share = row.images_per_s * work.flops_per_image / device.peak(work.precision)
        note = "without the judges" if work.what == "tokenizer" else row.note
        lines.append(
            f"measured on one{', ' if note else ''}{note}: {row.images_per_s:.3g} images/s, "
            f"{100 * share:.0f} %, which is {total / row.images_per_s / 3600:,.0f} hours (docs/results/gpu.md)"
        )
    return lines


def _stated(work: Workload, num_images: float, device: Device, without: str) -> str:
    flops, peak = work.flops_per_image * num_images, device.peak(work.precision)
    hours = flops / (STATED_UTILISATION * peak) / 3600
    hours = float(f"{hours:.2g}")
    power = f"{flops:.1e}".replace("e+", "e")
    return (
        f"{power} FLOP{without}, about {hours:,.0f} hours of an {STATED_DEVICE.upper()} at "
        f"{100 * STATED_UTILISATION:.0f} % of {peak / 1e12:.0f} TFLOP/s ({_NAMES[work.precision]})"
    )


def size_text(number: float) -> str:
    """Bytes for people, decimal."""
    for unit, name in _UNITS:
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f} B"


def hours_text(hours: float) -> str:
    """Hours for people."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
