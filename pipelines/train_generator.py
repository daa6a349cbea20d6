"""Train one generator: ``python -m pipelines.train_generator --config FILE key=value …``.

The key ``kind`` says which: content or structure. Also under ``deepspeed --module`` and ``torchrun -m``;
with ``launch.launcher=ray`` the ranks are Ray Train workers. ``train_generators`` in
``pipelines.training_pair`` runs both at the same time.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nvg.checkpoints import load_network
from nvg.errors import UserError
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.records import RecordDataset
from nvg.tokenizer import Dequantizer
from nvg.tokenizer.tokenizer import GRANULARITY, SPATIAL
from nvg.training import ContentObjective, GeneratorLossConfig, StructureObjective
from pipelines.training_config import DataConfig, DeepSpeedConfig, LaunchConfig, LoopConfig, OptimizerConfig
from pipelines.training_data import generator_source
from pipelines.training_run import command, run_training
from pipelines.training_task import TrainingTask

FIXED_BY_RECORDS = ("num_classes", "num_positions", "latent_channels", "codebook_size", "canvas_scales")


@dataclass(frozen=True, kw_only=True)
class GeneratorRunConfig:
    """A generator training.

    Attributes:
        kind: "content" or "structure".
        run_folder: outputs; starting again with the same folder resumes.
        data: training records; their manifest fixes classes, grid, channels, codebook and canvas scales.
        validation_path: held-out records for the validation loss, or null.
        content, structure: architecture; the section of the other kind is not read.
        loss: how a step is made.
        optimizer, loop, deepspeed, launch: see their classes.
    """

    kind: str = "content"
    run_folder: str = "runs/content"
    data: DataConfig = field(default_factory=DataConfig)
    validation_path: str | None = None
    content: ContentGeneratorConfig = field(default_factory=ContentGeneratorConfig)
    structure: StructureGeneratorConfig = field(default_factory=StructureGeneratorConfig)
    loss: GeneratorLossConfig = field(default_factory=GeneratorLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def __post_init__(self) -> None:
        if self.kind not in ("content", "structure"):
            raise ValueError(f"kind is {self.kind!r}; choose content or structure")


ModelConfig = TypeVar("ModelConfig", ContentGeneratorConfig, StructureGeneratorConfig)


def fill_from_manifest(model: ModelConfig, manifest: dict[str, Any]) -> ModelConfig:
    """Put the sizes that the records fix into a model's config.

    Args:
        model: architecture; a size left at its default is filled.
        manifest: the records' manifest.

    Returns:
        The config with the records' classes, grid, channels, codebook and canvas scales.

    Raises:
        UserError: the config sets one of them to something else.
    """
    defaults = type(model)()
    fixed: dict[str, Any] = {}
    for item in dataclasses.fields(model):
        if item.name not in FIXED_BY_RECORDS:
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

    Args:
        config: the run.

    Returns:
        The task for the loop.

    Raises:
        UserError: the records are missing, damaged or do not fit the configuration.
    """
    records = RecordDataset.open(Path(config.data.path), mapped=config.data.loader != "memory")
    dequantizer = load_network(Dequantizer, config.data.path, "dequantizer")
    if config.kind == "content":
        model = fill_from_manifest(config.content, records.manifest)
        objective = ContentObjective(ContentGenerator(model), dequantizer, config.loss)
    else:
        if _structure(records) == SPATIAL:
            raise UserError(
                f"data.path {config.data.path} holds records of spatial structure, the same map for every image; there "
                "is nothing for a structure generator to learn: train the content generator alone"
            )
        model = fill_from_manifest(config.structure, records.manifest)
        objective = StructureObjective(StructureGenerator(model), dequantizer, config.loss)
    validation = None
    if config.validation_path is not None and config.loop.validate_every_steps is not None:
        held_out = DataConfig(path=config.validation_path, loader="memory", views_per_epoch="all")
        validation = generator_source(_held_out_records(held_out, records), held_out)
    return TrainingTask(
        kind=config.kind,
        name=config.kind,
        objective=objective,
        model_config=dataclasses.asdict(model),
        loss_config=dataclasses.asdict(config.loss),
        batches=generator_source(records, config.data),
        validation=validation,
    )


def _held_out_records(config: DataConfig, training: RecordDataset) -> RecordDataset:
    records = RecordDataset.open(Path(config.path))
    found, expected = ((of.manifest["tokenizer_hash"], _structure(of)) for of in (records, training))
    if found != expected:
        raise UserError(
            f"validation_path {config.path} was made with tokenizer {found[0]} ({found[1]} structure), the training "
            f"records with {expected[0]} ({expected[1]}); precompute both with the same tokenizer"
        )
    return records


def _structure(records: RecordDataset) -> str:
    return records.manifest.get("structure", GRANULARITY)


def train_generator(config: GeneratorRunConfig) -> Path:
    """Train, or go on where an earlier call stopped.

    Args:
        config: the run.

    Returns:
        The newest checkpoint's folder.

    Raises:
        UserError: something the user can change; the message says what.
    """
    return run_training(config, build_task)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return command(GeneratorRunConfig, train_generator, "Train one generator.", arguments)


if __name__ == "__main__":
    # Under its importable name: Ray workers look classes and functions up by module.
    from pipelines.train_generator import main as entry

    sys.exit(entry())
