"""Train one generator: `python -m pipelines.train.generator --config FILE key=value …`.

The key `kind` says which: content or structure. Also under `deepspeed --module` and `torchrun -m`; with
`launch.launcher=ray` the ranks are Ray Train workers. `train_generators` in `pipelines.train.drivers` runs both at the
same time. A new training may begin with the weights of another one, or with imported ones (`init_from`).
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from nvg.bounds import refuse
from nvg.checkpoints import load_network, weights_hash
from nvg.checkpoints.networks import check_fit, read_network
from nvg.checkpoints.runs import checkpoints_in, weights_folder
from nvg.errors import UserError
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.records import MANIFEST_FILE, RecordDataset
from nvg.tokenizer import Dequantizer
from nvg.tokenizer.tokenizer import GRANULARITY, SPATIAL
from nvg.training import ContentObjective, GeneratorLossConfig, StructureObjective
from nvg.training.generator_noise import PUBLISHED_BLOCK
from pipelines.batches.config import DataConfig
from pipelines.batches.order import BatchSource
from pipelines.batches.records import (
    WEIGHTS_KEYS,
    RepaSource,
    generator_source,
    open_records,
    open_repa_source,
    repa_target,
)
from pipelines.run_folder import CHECKPOINTS_FOLDER
from pipelines.train.config import RunConfig, SampleSheetConfig
from pipelines.train.costs import flops_per_image, tokens_per_image
from pipelines.train.launch import command, run_training
from pipelines.train.saving import refuse_changed
from pipelines.train.task import SampleSheets, TrainingTask, settings_of

logger = logging.getLogger(__name__)
KEY = "init_from"
_CLASS_EMBEDDING = "class_embedding.weight"
_MEASURED = "canvas_scales"
_FREE = {"num_classes", _MEASURED, "drop_path_rate"}  # the rest says what the weights mean
_FIXED_BY_RECORDS = ("num_classes", "num_positions", "latent_channels", "codebook_size", "canvas_scales")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the network is computed; none of it changes what is learned.

    Attributes:
        recompute_activations: compute each block again in the backward pass: less memory, a third more work.
        compile: torch.compile of each block, for the batch shape of training; ZeRO 0 to 2.
    """

    recompute_activations: bool = False
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class GeneratorRunConfig(RunConfig):
    """What both generators' trainings have; read as `ContentRun` or `StructureRun`, by the key `kind`.

    Attributes:
        data: training records; their manifest fixes classes, grid, channels, codebook and canvas scales.
        validation_path: held-out records for the validation loss, or null.
        loss: how a step is made.
        init_from: run, checkpoint or imported weights that a new training begins with; null draws them. With another
            number of classes the class embedding begins anew.
        compute: how the network is computed.
        samples: pictures of samples.
        dinov2_weights: weight file of DINOv2 ViT-B/14, for `loss.repa_weight` on images stored beside the records.
        efficientnet_weights: the same of EfficientNet-Lite0; empty takes that of the installed package.
    """

    kind: str
    data: DataConfig = field(default_factory=DataConfig)
    validation_path: str | None = None
    loss: GeneratorLossConfig = field(default_factory=GeneratorLossConfig)
    init_from: str | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    samples: SampleSheetConfig = field(default_factory=SampleSheetConfig)
    dinov2_weights: str = ""
    efficientnet_weights: str = ""

    def __post_init__(self) -> None:
        if self.compute.compile and self.loop.engine == "deepspeed" and self.deepspeed.zero_stage == 3:
            raise UserError(
                "compute.compile=true at deepspeed.zero_stage=3: its hooks cut every graph; set compute.compile=false, "
                "or deepspeed.zero_stage to 0, 1 or 2"
            )

    @classmethod
    def read_as(cls, values: Mapping[str, Any]) -> type[GeneratorRunConfig]:
        """The schema of a file, for `load_config`."""
        kinds = {"content": ContentRun, "structure": StructureRun}
        kind = values.get("kind") or ("structure" if cls is StructureRun else "content")
        if kind not in kinds:
            raise refuse("kind", kind, "content or structure")
        if not issubclass(kinds[kind], cls):
            raise refuse("kind", kind, "the other generator's here", f"use nvg train {kind}")
        return kinds[kind]

    @property
    def model(self) -> Any:
        """The architecture."""
        return getattr(self, self.kind)

    @property
    def repa_weights(self) -> str:
        """Weight file of the network that hidden tokens are aligned with."""
        return getattr(self, WEIGHTS_KEYS[self.loss.repa_target])

    @property
    def loss_settings(self) -> dict[str, Any]:
        """`loss` as it must be equal for a run to go on: the block is a number, 8 where nothing is aligned."""
        loss = self.loss
        block = loss.aligned_block(self.model.depth) if _wants_repa(self) else loss.repa_block or PUBLISHED_BLOCK
        return {**asdict(loss), "repa_block": block}


@dataclass(frozen=True, kw_only=True)
class ContentRun(GeneratorRunConfig):
    """A training of the content generator; `content` is its architecture."""

    UNREAD: ClassVar = {"structure": StructureGeneratorConfig}
    network_type: ClassVar = ContentGenerator

    kind: Literal["content"] = "content"
    run_folder: str = "runs/content"
    content: ContentGeneratorConfig = field(default_factory=ContentGeneratorConfig)


@dataclass(frozen=True, kw_only=True)
class StructureRun(GeneratorRunConfig):
    """A training of the structure generator; `structure` is its architecture."""

    UNREAD: ClassVar = {"content": ContentGeneratorConfig}
    network_type: ClassVar = StructureGenerator

    kind: Literal["structure"] = "structure"
    run_folder: str = "runs/structure"
    structure: StructureGeneratorConfig = field(default_factory=StructureGeneratorConfig)


ModelConfig = TypeVar("ModelConfig", ContentGeneratorConfig, StructureGeneratorConfig)


def fill_from_manifest(model: ModelConfig, manifest: dict[str, Any]) -> ModelConfig:
    """Put the sizes that the records fix into a model's config: classes, grid, channels, codebook and canvas scales.

    Args:
        model: architecture; a size left at its default is filled.
        manifest: the records' manifest.

    Raises:
        UserError: the config sets one of them to something else.
    """
    defaults = type(model)()
    fixed: dict[str, Any] = {}
    for item in dataclasses.fields(model):
        if item.name not in _FIXED_BY_RECORDS:
            continue
        given, found = getattr(model, item.name), manifest[item.name]
        if given not in (getattr(defaults, item.name), found):
            raise UserError(
                f"{item.name} is {given!r} in the configuration and {found!r} in the records' manifest; "
                "leave it out of the configuration, or use other records"
            )
        fixed[item.name] = found
    return dataclasses.replace(model, **fixed)


def build_task(config: GeneratorRunConfig) -> TrainingTask:
    """Objective and records of a generator training.

    Raises:
        UserError: the records are missing, damaged or do not fit the configuration.
    """
    records = open_records(config.data)
    repa = _repa_source(config, records)
    objective = _objective(config, records, repa)
    network, model = objective.network, objective.network.config
    begun = prepare_network(network, config)
    return TrainingTask(
        kind=config.kind,
        objective=objective,
        model_config=asdict(model),
        loss_config=config.loss_settings,
        batches=generator_source(records, config.data, repa),
        validation=_validation(config, records),
        init_from=begun,
        tokens_per_image=tokens_per_image(network, config.loss.stages_per_image),
        count_flops=lambda: flops_per_image(model, config.loss.stages_per_image),
        samples=_sheets(config, model, records),
    )


def check_start(config: GeneratorRunConfig) -> int:
    """Every comparison of a start that needs no record, for a dry run: networks have no storage, nothing is written.

    Where there are no records yet, what they fix is not compared.

    Returns:
        The step that the run would go on from, 0 for a new one.

    Raises:
        Changed, UserError: what `build_task` and going on from the newest checkpoint would say.
    """
    data, fixed = {}, _FIXED_BY_RECORDS
    model = config.model
    if (Path(config.data.path) / MANIFEST_FILE).is_file():
        records = RecordDataset.open_description(Path(config.data.path))
        repa = repa_target(records, config.loss.repa_target, config.repa_weights) if _wants_repa(config) else None
        network = _objective(config, records, repa, device="meta").network
        if config.init_from is not None and is_new(Path(config.run_folder)):
            first_weights(network, config.init_from)
        if config.validation_path is not None and config.loop.validate_every_steps is not None:
            _check_held_out(config.validation_path, RecordDataset.open_description(config.validation_path), records)
        model, fixed = network.config, ()
        data = generator_source(records, config.data, repa).fingerprint
    settings = settings_of(config, config.kind, asdict(model), config.loss_settings)
    return refuse_changed(config, settings, data, _asked(config), unknown={f"model.{name}" for name in fixed})


def _wants_repa(config: GeneratorRunConfig) -> bool:
    return config.kind == "content" and config.loss.repa_weight > 0


def _repa_source(config: GeneratorRunConfig, records: RecordDataset) -> RepaSource | None:
    if not _wants_repa(config):
        return None
    return open_repa_source(records, config.loss.repa_target, config.repa_weights, config.data.num_threads)


def _objective(
    config: GeneratorRunConfig, records: RecordDataset, repa: RepaSource | None, device: str = "cpu"
) -> ContentObjective | StructureObjective:
    dequantizer = load_network(Dequantizer, config.data.path, "dequantizer")
    if isinstance(config, ContentRun):
        target = {} if repa is None else {"feature_width": repa.width, "teacher": repa.teacher}
        with torch.device(device):
            network = ContentGenerator(fill_from_manifest(config.content, records.manifest))
            return ContentObjective(network, dequantizer, config.loss, **target)
    if _structure(records) == SPATIAL:
        raise UserError(
            f"data.path {config.data.path} holds records of spatial structure, the same map for every image; there "
            "is nothing for a structure generator to learn: train the content generator alone"
        )
    with torch.device(device):
        network = StructureGenerator(fill_from_manifest(config.model, records.manifest))
    return StructureObjective(network, dequantizer, config.loss)


def _validation(config: GeneratorRunConfig, records: RecordDataset) -> BatchSource | None:
    if config.validation_path is None or config.loop.validate_every_steps is None:
        return None
    data = DataConfig(path=config.validation_path, loader="memory", views_per_epoch="all")
    held_out = RecordDataset.open(Path(config.validation_path))
    _check_held_out(config.validation_path, held_out, records)
    return generator_source(held_out, data, _repa_source(config, held_out))


def _check_held_out(path: str, held_out: RecordDataset, training: RecordDataset) -> None:
    found, expected = ((of.manifest["tokenizer_hash"], _structure(of)) for of in (held_out, training))
    if found != expected:
        raise UserError(
            f"validation_path {path} was made with tokenizer {found[0]} ({found[1]} structure), the training "
            f"records with {expected[0]} ({expected[1]}); precompute both with the same tokenizer"
        )


def _structure(records: RecordDataset) -> str:
    return records.manifest.get("structure", GRANULARITY)


def _sheets(config: GeneratorRunConfig, model: Any, records: RecordDataset) -> SampleSheets | None:
    if config.samples.every_steps is None:
        return None
    from pipelines.train.samples import GeneratorSheets  # loads what draws, such as matplotlib

    assert isinstance(config, ContentRun | StructureRun)
    return GeneratorSheets(network_type=config.network_type, model=model, records=records, config=config.samples)


def prepare_network(network: ContentGenerator | StructureGenerator, config: GeneratorRunConfig) -> dict[str, str]:
    """Give a freshly initialised network its first weights and the way it is computed.

    Returns:
        Where the weights are from, or were asked to be; see `TrainerState`.

    Raises:
        UserError: the weights to begin with do not fit.
    """
    begun = _asked(config)
    if config.init_from is not None and is_new(Path(config.run_folder)):
        begun |= begin_with(network, config.init_from)
    network.trunk.recompute_activations = config.compute.recompute_activations
    if config.compute.compile:
        network.trunk.compile_blocks()
    return begun


def _asked(config: GeneratorRunConfig) -> dict[str, str]:
    return {} if config.init_from is None else {KEY: str(Path(config.init_from).expanduser().absolute())}


def is_new(run_folder: Path) -> bool:
    """Whether a run has no checkpoint yet, so that its first weights matter."""
    return not checkpoints_in(run_folder / CHECKPOINTS_FOLDER)


def begin_with(network: ContentGenerator | StructureGenerator, path: str) -> dict[str, str]:
    """Fill a new network; arguments and errors are those of `first_weights`.

    Returns:
        The folder the weights are from, and the hash of their file.
    """
    folder, name, tensors = first_weights(network, path)
    network.load_state_dict(tensors)
    return {"weights": str(folder), "sha256": weights_hash(folder, name)}


def first_weights(network: ContentGenerator | StructureGenerator, path: str) -> tuple[Path, str, dict[str, Tensor]]:
    """Weights for a new network; its class embedding stays new where the number of classes differs.

    Averaged weights are taken where there are any. The canvas scales stay those of the new run's records.

    Args:
        network: freshly initialised.
        path: a run folder, a checkpoint, or a folder of (imported) weights.

    Returns:
        The folder they are from, the name of their file, and all tensors of the network.

    Raises:
        UserError: nothing usable is there, or it is another architecture.
    """
    folder = weights_folder(KEY, path)
    name = "ema" if (folder / "ema.safetensors").is_file() else "model"
    found, tensors = read_network(type(network), folder, name)
    wanted = asdict(network.config)
    differences = [
        f"{key}: {value!r} there, {wanted[key]!r} here"
        for key, value in asdict(found).items()
        if key not in _FREE and value != wanted[key]
    ]
    if differences:
        raise UserError(
            f"{KEY}: the weights in {folder} are of another architecture:\n  "
            + "\n  ".join(differences)
            + "\nset these as they are there, or leave init_from out"
        )
    own = network.state_dict()
    if found.num_classes != network.config.num_classes:
        tensors[_CLASS_EMBEDDING] = own[_CLASS_EMBEDDING]
        logger.warning(
            "%s: %s was trained on %d classes, this run has %d: the class embedding begins anew, the rest is taken",
            KEY,
            folder,
            found.num_classes,
            network.config.num_classes,
        )
    if _MEASURED in own:
        tensors[_MEASURED] = own[_MEASURED]
    check_fit(tensors, network, f"{folder}/{name}.safetensors")
    return folder, name, tensors


def train_generator(config: GeneratorRunConfig) -> Path:
    """Train, or go on where an earlier call stopped; see `run_training`."""
    return run_training(config, build_task)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return command(GeneratorRunConfig, train_generator, "Train one generator.", arguments)


if __name__ == "__main__":
    # Under its importable name: Ray workers look classes and functions up by module.
    from pipelines.train.generator import main as entry

    sys.exit(entry())
