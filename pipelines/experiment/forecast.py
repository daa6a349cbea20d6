"""`nvg plan`: what each step of an experiment reads, computes, holds, sends and stores, and how long it takes.

Takes an experiment file, or files of single steps, which are planned as one experiment. Nothing is started, and where
the images are not there yet, their number is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nvg.bounds import refuse
from nvg.checkpoints.networks import read_network
from nvg.checkpoints.runs import weights_folder
from nvg.errors import UserError
from nvg.models import ContentGenerator, StructureGenerator
from nvg.records import MANIFEST_FILE, FeatureLayout, RecordLayout
from nvg.tokenizer import Tokenizer
from pipelines.configuration import Setting, load_config, read_keys
from pipelines.evaluate.config import EvaluateConfig
from pipelines.experiment.steps import STEPS, ExperimentConfig
from pipelines.precompute.config import PrecomputeConfig
from pipelines.sources import SourceConfig, open_source
from pipelines.train.config import RunConfig
from pipelines.train.costs import ModelConfig, count_tokenizer, count_work, sampling_flops
from pipelines.train.devices import Device, Work
from pipelines.train.drivers import PairRunConfig
from pipelines.train.generator import ContentRun, GeneratorRunConfig
from pipelines.train.plan import generator_model
from pipelines.train.scaling import Speed, TrainingOutlook, Workload, outlook, speed_on
from pipelines.train.tokenizer import TokenizerRunConfig

JPEG_BYTES = 40_013  # of a view of 256 × 256 at quality 95, with 13 around it; grows with its pixels
_LPIPS_BYTES = 0.2e9  # kept for the backward pass of LPIPS, a view of 256 × 256
_FEATURE_BYTES = 4 * (2048 + 2023 + 1008)  # of a drawn image in the features of FID, sFID and Inception score
StepConfig = TokenizerRunConfig | PrecomputeConfig | GeneratorRunConfig | EvaluateConfig
_NETWORKS = {"tokenizer": Tokenizer, "content": ContentGenerator, "structure": StructureGenerator}


@dataclass(frozen=True, kw_only=True)
class StepOutlook:
    """One step on a device.

    Attributes:
        name: tokenizer, precompute, content, structure or evaluation.
        num_images: that it goes over, views counted each time.
        bytes_read: as they are stored; null where the images' files are not known.
        flops: of all images.
        speed: of one device.
        num_devices: those that work.
        hours: from start to end, and of all devices together.
        storage_bytes: what it leaves on the disk.
        training: memory, communication and checkpoints; null of a step that trains nothing.
        notes: for people.
    """

    name: str
    num_images: int
    bytes_read: float | None
    flops: float
    work: Workload
    speed: Speed
    num_devices: int
    hours: float
    device_hours: float
    storage_bytes: float
    training: TrainingOutlook | None = None
    notes: list[str] = field(default_factory=list)


def load_steps(files: Sequence[str], settings: Sequence[Setting] = ()) -> dict[str, StepConfig]:
    """The steps of an experiment file, or of files of single steps.

    Args:
        files: paths, or names below `configs/`.
        settings: what wins over the file, where it is one.

    Returns:
        Name to configuration, in the order of the chain.

    Raises:
        UserError: a file is of no step, two are of the same, or settings are given with several files.
    """
    if settings and len(files) > 1:
        raise UserError(
            f"{settings[0]} and {len(files)} files; expected settings with one file; write them into the files"
        )
    steps: dict[str, StepConfig] = {}
    for file in files:
        for name, step in _steps_in(file, settings):
            if name in steps:
                raise refuse("FILE", file, f"one file of {name}", "leave one of them out")
            steps[name] = step
    order = ("tokenizer", "precompute", "content", "structure", "evaluation")
    return {name: steps[name] for name in order if name in steps}


def _steps_in(file: str, settings: Sequence[Setting]) -> list[tuple[str, StepConfig]]:
    """Names and configurations in a file, of which its keys say what it is."""
    keys = read_keys(file)
    if "generators" in keys or any(isinstance(keys.get(name), dict) for name in STEPS):
        config = load_config(ExperimentConfig, file, settings)
        pair = config.generators
        found: list[tuple[str, StepConfig | None]] = [
            ("tokenizer", config.tokenizer),
            ("precompute", config.precompute),
        ]
        found += [] if pair is None else [(run.kind, run) for run in pair.runs]
        found.append(("evaluation", config.evaluation))
        steps = [(name, step) for name, step in found if step is not None]
        if not steps:
            raise UserError(f"{file} has no step; expected one of {', '.join(STEPS)}; give its section")
        return steps
    if "kind" in keys:
        run = load_config(GeneratorRunConfig, file, settings)
        return [(run.kind, run)]
    if "cluster" in keys and "content" in keys:
        return [(run.kind, run) for run in load_config(PairRunConfig, file, settings).runs]
    if "model" in keys or "judges" in keys:
        return [("tokenizer", load_config(TokenizerRunConfig, file, settings))]
    if "content" in keys:
        return [("evaluation", load_config(EvaluateConfig, file, settings))]
    if "tokenizer" in keys and "output" in keys:
        return [("precompute", load_config(PrecomputeConfig, file, settings))]
    raise refuse(
        "FILE",
        file,
        f"an experiment ({', '.join(STEPS)}) or one of its steps; found the keys {', '.join(keys) or 'none'}",
        "name another file",
    )


def forecast(
    steps: dict[str, StepConfig], device: Device, num_devices: int, num_images: int | None = None
) -> list[StepOutlook]:
    """What every step takes, each on all devices.

    Args:
        steps: of `load_steps`.
        device: a row of the table.
        num_devices: 1 or more.
        num_images: training images, where the source is not there; null opens it.

    Raises:
        UserError: too few devices, or something is not known: names the key.
    """
    if num_devices < 1:
        raise refuse("--devices", num_devices, "1 or more")
    plans = {
        "tokenizer": _tokenizer, "precompute": _precompute, "content": _generator, "structure": _generator,
        "evaluation": _evaluation,
    }  # fmt: skip
    return [plans[name](steps, name, device, num_devices, num_images) for name in steps]


def workload_of(steps: dict[str, StepConfig], name: str) -> Workload:
    """What a step computes of an image.

    Raises:
        UserError: the networks that a precompute or an evaluation names are not known.
    """
    config = steps[name]
    if isinstance(config, TokenizerRunConfig):
        counted = count_tokenizer(config.model)
        pixels = (config.model.image_size / 256) ** 2
        return Workload(
            what="tokenizer",
            flops_per_image=counted.step_flops + (counted.encoder_flops if config.loss.foreign_regions else 0.0),
            precision=config.loop.precision,
            num_parameters=counted.num_parameters,
            num_kernels=counted.num_kernels,
            activation_bytes=counted.activation_bytes + (_LPIPS_BYTES * pixels if config.loss.perceptual_weight else 0),
        )
    if isinstance(config, PrecomputeConfig):
        encoder = count_tokenizer(_tokenizer_model(steps, "tokenizer", config.tokenizer)).encoder_flops
        return Workload(what="encoder", flops_per_image=encoder, precision=config.precision)
    if isinstance(config, GeneratorRunConfig):
        compute = config.compute
        counted = count_work(
            _generator_model(steps, config),
            stages_per_image=config.loss.stages_per_image,
            precision=config.loop.precision,
            recompute_activations=compute.recompute_activations,
            compiled=compute.compile,
        )
        kind: Work = "content" if isinstance(config, ContentRun) else "structure"
        return Workload(
            what=kind,
            flops_per_image=counted.flops_per_image,
            precision=config.loop.precision,
            compiled=compute.compile,
            recomputed=compute.recompute_activations,
            num_parameters=counted.num_parameters,
            activation_bytes=counted.activation_bytes,
            pass_bytes=counted.pass_bytes,
            stream_elements=counted.stream_elements,
            num_kernels=counted.num_kernels,
        )
    content = _drawn_by(steps, "content", config.content)
    structure = _drawn_by(steps, "structure", config.structure) if config.structure else None
    assert content is not None
    return Workload(
        what="sampling",
        flops_per_image=sampling_flops(content, structure, config.sampling),
        precision=config.precision or "bf16",
        compiled=config.compile,
    )


def count_images(source: SourceConfig, key: str) -> int:
    """Images of a source; a UserError where they are not there, and nobody can say."""
    if source.path and "://" not in source.path and not Path(source.path).expanduser().exists():
        raise refuse(
            key, source.path, "where the images lie, and there is nothing", "give their number: --images 1281167"
        )
    return len(open_source(source))


def _training(
    steps: dict[str, StepConfig], name: str, device: Device, num_devices: int, image_bytes: float | None
) -> StepOutlook:
    config, work = steps[name], workload_of(steps, name)
    assert isinstance(config, RunConfig)
    training, speed = outlook(name, work, config, device, num_devices), speed_on(work, device)
    images_per_s = config.optimizer.global_batch / (training.num_devices * training.compute_s)
    if images_per_s < 0.999 * speed.images_per_s:
        share = speed.utilisation * images_per_s / speed.images_per_s
        why = f"predicted, at best: starting {work.num_kernels:,} kernels a pass takes longer than running them"
        speed = Speed(images_per_s, share, "predicted", why)
    num_images = config.optimizer.num_steps * config.optimizer.global_batch
    return StepOutlook(
        name=name,
        num_images=num_images,
        bytes_read=None if image_bytes is None else image_bytes * num_images,
        flops=work.flops_per_image * num_images,
        work=work,
        speed=speed,
        num_devices=training.num_devices,
        hours=training.hours,
        device_hours=training.hours * training.num_devices,
        storage_bytes=training.num_kept * training.checkpoint_bytes,
        training=training,
    )


def _tokenizer(
    steps: dict[str, StepConfig], name: str, device: Device, num_devices: int, num_images: int | None
) -> StepOutlook:
    step = _training(steps, name, device, num_devices, None)
    return replace(step, notes=["the judges' operations are not counted (LPIPS and DINO: an estimated 5 to 10 % more)"])


def _generator(
    steps: dict[str, StepConfig], name: str, device: Device, num_devices: int, num_images: int | None
) -> StepOutlook:
    config = steps[name]
    assert isinstance(config, GeneratorRunConfig)
    model = _generator_model(steps, config)
    image_bytes, notes = float(RecordLayout(model.num_positions).bytes_per_record), []
    if isinstance(config, ContentRun) and config.loss.repa_weight:
        image_bytes += _jpeg_bytes(model.num_positions)
        notes.append(
            "reads a JPEG of each view (alignment); DINOv2's forward pass is not counted (an estimated 2 % at d16)"
        )
    step = _training(steps, name, device, num_devices, image_bytes)
    assert step.training is not None
    if step.training.zero_stage == 3 and config.compute.compile:
        notes.append("compute.compile=true WILL BE REFUSED at deepspeed.zero_stage=3: set compute.compile=false")
    return replace(step, notes=notes)


def _precompute(
    steps: dict[str, StepConfig], name: str, device: Device, num_devices: int, num_images: int | None
) -> StepOutlook:
    config, work = steps[name], workload_of(steps, name)
    assert isinstance(config, PrecomputeConfig)
    model = _tokenizer_model(steps, "tokenizer", config.tokenizer)
    images = num_images if num_images is not None else count_images(config.source, "precompute.source.path")
    views, speed = images * config.source.num_views, speed_on(work, device)
    units = -(-images // config.images_per_unit)
    used = min(num_devices, units)
    longest = -(-units // used) * config.images_per_unit * config.source.num_views  # of one device, in whole units
    hours = min(longest, views) / speed.images_per_s / 3600
    beside = {
        "nothing": 0.0,
        "jpeg": _jpeg_bytes(model.num_positions),
        "features": float(FeatureLayout().bytes_per_record),
    }[config.repa.store]
    few = f"{units} units of images_per_unit={config.images_per_unit}: {used} devices work"
    return StepOutlook(
        name=name,
        num_images=views,
        bytes_read=None,
        flops=work.flops_per_image * views,
        work=work,
        speed=speed,
        num_devices=used,
        hours=hours,
        device_hours=views / speed.images_per_s / 3600,
        storage_bytes=views * (RecordLayout(model.num_positions).bytes_per_record + beside),
        notes=[] if used == num_devices else [few],
    )


def _evaluation(
    steps: dict[str, StepConfig], name: str, device: Device, num_devices: int, num_images: int | None
) -> StepOutlook:
    config, work = steps[name], workload_of(steps, name)
    assert isinstance(config, EvaluateConfig)
    speed, pool = speed_on(work, device), config.pool
    chunks = -(-pool.num_samples // pool.chunk_size)
    used = min(num_devices, chunks)
    longest = min(-(-chunks // used) * pool.chunk_size, pool.num_samples)
    side = _tokenizer_model(steps, "tokenizer", config.tokenizer).image_size
    written = 3 * side**2 * bool(config.samples_file or config.samples_folder)
    notes = ["decoding and features of the images are not counted (an estimated 4 % at d16)"]
    if config.guidance_one and not config.reference:
        notes.append("a second pool without guidance is not counted (evaluation.guidance_one)")
    return StepOutlook(
        name=name,
        num_images=pool.num_samples,
        bytes_read=0.0,
        flops=work.flops_per_image * pool.num_samples,
        work=work,
        speed=speed,
        num_devices=used,
        hours=longest / speed.images_per_s / 3600,
        device_hours=pool.num_samples / speed.images_per_s / 3600,
        storage_bytes=pool.num_samples * float(_FEATURE_BYTES + written),
        notes=notes,
    )


def _jpeg_bytes(num_positions: int) -> float:
    return JPEG_BYTES * num_positions / 256


def _tokenizer_model(steps: dict[str, StepConfig], key: str, folder: str) -> Any:
    """The tokenizer's architecture: planned here, or of a run that is there."""
    planned = steps.get("tokenizer")
    if isinstance(planned, TokenizerRunConfig):
        return planned.model
    return _model_in(key, folder, "tokenizer")


def _generator_model(steps: dict[str, StepConfig], config: GeneratorRunConfig) -> ModelConfig:
    """The architecture, its sizes from records that are there, else from the tokenizer that is planned."""
    model, planned = generator_model(config), steps.get("tokenizer")
    if isinstance(planned, TokenizerRunConfig) and not (Path(config.data.path) / MANIFEST_FILE).is_file():
        sizes = {"num_positions": planned.model.num_positions, "latent_channels": planned.model.latent_channels}
        if isinstance(config, ContentRun):
            sizes["codebook_size"] = planned.model.codebook_size
        return replace(model, **sizes)
    return model


def _drawn_by(steps: dict[str, StepConfig], kind: str, folder: str) -> ModelConfig | None:
    planned = steps.get(kind)
    if isinstance(planned, GeneratorRunConfig):
        return _generator_model(steps, planned)
    return _model_in(kind, folder, kind)


def _model_in(key: str, folder: str, kind: str) -> Any:
    """The architecture of a run, or of weights, that is there."""
    if not Path(folder).expanduser().is_dir():
        raise refuse(key, folder, f"a run that is there, or the {kind} planned as well", f"name the {kind}'s file, too")
    return read_network(_NETWORKS[kind], weights_folder(key, folder), "ema")[0]
