"""Thirty steps of each generator in each precision on made-up records, and the numbers they gave when written down.

python tests/support/golden_training.py writes tests/golden/ anew; see CHANGELOG.md, Numerics, before you do.
"""

import itertools
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.tokenizer import Dequantizer, DequantizerConfig
from nvg.training import ContentObjective, GeneratorLossConfig, StructureObjective
from pipelines.batches.order import ArraySource
from pipelines.run_folder import read_metrics
from pipelines.train.config import LoopConfig, OptimizerConfig, RunConfig
from pipelines.train.launch import run_training
from pipelines.train.task import TrainingTask

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = ("content", "structure")
PRECISIONS = ("fp32", "bf16")
NUM_STEPS, BATCH, NUM_IMAGES = 30, 8, 40
SPACE = {"num_positions": 16, "latent_channels": 4}
CODEBOOK_SIZE = 16
NUMBERS = ("loss", "accuracy", "grad_norm")


@dataclass(frozen=True, kw_only=True)
class GoldenRunConfig(RunConfig):
    """One of the two curves; with other blocks or stages of an image it is another training on the same records."""

    kind: str
    depth: int = 2
    stages_per_image: int | None = None
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            lr=2e-3,
            total_images=NUM_STEPS * BATCH,
            warmup_images=4 * BATCH,
            ema_half_life_images=64,
            global_batch=BATCH,
        )
    )
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            engine="plain", log_every_steps=1, checkpoint_every_steps=NUM_STEPS, threads_per_rank=1
        )
    )


def build_task(config: GoldenRunConfig) -> TrainingTask:
    """Small networks and records of one class rule: ids follow the class, maps are shuffled."""
    stream = np.random.Generator(np.random.Philox(key=[7, 0]))
    label = torch.from_numpy(stream.integers(0, 10, NUM_IMAGES))
    noise = torch.from_numpy(stream.integers(0, 2, (NUM_IMAGES, 2 * SPACE["num_positions"] - 1)))
    structure = torch.from_numpy(np.stack([stream.permutation(SPACE["num_positions"]) for _ in range(NUM_IMAGES)]))
    columns = {"label": label, "content_ids": label[:, None] + noise, "structure": structure}

    def fetch(rows: np.ndarray) -> dict[str, Tensor]:
        return {name: values[rows] for name, values in columns.items()}

    dequantizer = Dequantizer(DequantizerConfig(**SPACE, codebook_size=CODEBOOK_SIZE))
    torch.nn.init.normal_(dequantizer.codebook, std=0.3)
    loss = GeneratorLossConfig(stages_per_image=config.stages_per_image)
    network: dict[str, Any] = {"depth": config.depth, "width": 64, "num_classes": 10, **SPACE}
    model: Any
    if config.kind == "content":
        model = ContentGeneratorConfig(**network, codebook_size=CODEBOOK_SIZE)
        objective = ContentObjective(ContentGenerator(model), dequantizer, loss)
    else:
        model = StructureGeneratorConfig(**network)
        objective = StructureObjective(StructureGenerator(model), dequantizer, loss)
    return TrainingTask(
        kind=config.kind,
        objective=objective,
        model_config=asdict(model),
        batches=ArraySource(np.arange(NUM_IMAGES).reshape(-1, 1), fetch, {"name": "golden"}),
    )


def golden_file(kind: str, precision: str) -> Path:
    """Where the numbers are written down."""
    return GOLDEN / f"{kind}{'' if precision == 'fp32' else f'_{precision}'}.json"


def curve(kind: str, precision: Any, folder: Path) -> dict[str, list[float]]:
    """Train; the numbers of every step."""
    config = GoldenRunConfig(kind=kind, run_folder=str(folder))
    run_training(replace(config, loop=replace(config.loop, precision=precision)), build_task)
    rows = read_metrics(folder)
    return {name: [row[name] for row in rows] for name in NUMBERS}


def write() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for kind, precision in itertools.product(KINDS, PRECISIONS):
        with tempfile.TemporaryDirectory() as folder:
            found = curve(kind, precision, Path(folder))
        golden_file(kind, precision).write_text(json.dumps(found, indent=1) + "\n")
        sys.stdout.write(f"{kind}, {precision}: loss {found['loss'][0]:.4f} -> {found['loss'][-1]:.4f}\n")


if __name__ == "__main__":
    write()
