"""A training small enough for every test of the loop; also a script for the launchers.

deepspeed tests/support/tiny_training.py run_folder=/tmp/x deepspeed.zero_stage=1
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from faulty_step import fail_once
from torch import Tensor, nn

from nvg.randomness import EVERY_ROW
from pipelines.batches.order import ArraySource
from pipelines.train.config import DeepSpeedConfig, LoopConfig, OptimizerConfig, RunConfig
from pipelines.train.launch import command, run_training
from pipelines.train.task import TrainingTask

NUM_IMAGES = 50
WIDTH = 8


class TinyObjective(nn.Module):
    """Regression with noise: enough to tell whether noise, data and order are the same."""

    host_noise = frozenset({"bad"})

    def __init__(self, depth: int, bad_gradients: list[int]) -> None:
        super().__init__()
        self.bad_gradients = bad_gradients
        self.network = nn.Sequential(
            *(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(depth)), nn.Linear(WIDTH, 1)
        )

    def draw_noise(self, *, seed: int, step: int, global_batch: int, rows: slice = EVERY_ROW) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        bad = torch.full((global_batch,), step in self.bad_gradients)
        return {"noise": 0.1 * torch.randn(global_batch, WIDTH, generator=generator)[rows], "bad": bad[rows]}

    def forward(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        error = self.network(batch["x"] + noise["noise"])[:, 0] - batch["y"]
        if noise["bad"].any():
            error = error + (0.0 * error).square().sqrt()  # 0, with the slope 0 / 0
        return error.square().mean(), {"absolute": error.abs().mean()}


@dataclass(frozen=True, kw_only=True)
class TinyRunConfig(RunConfig):
    """Fields of a run config and ways to disturb it.

    `depth` stands for an architecture, `bad_image` gives one sample a NaN, the steps in `bad_gradients` (counted
    from 0) have a finite loss whose gradient is not; for `fault` see `fail_once`.
    """

    run_folder: str = "runs/tiny"
    depth: int = 2
    bad_image: int | None = None
    bad_gradients: list[int] = field(default_factory=list)
    fault: str = ""
    fault_step: int = 6
    stages: list[int] = field(default_factory=list)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            lr=0.01, total_images=96, warmup_images=16, ema_half_life_images=32.0, global_batch=8
        )
    )
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            engine="plain", log_every_steps=1, checkpoint_every_steps=4, keep_last=10, threads_per_rank=1
        )
    )


def tiny_config(folder: Path, **loop: object) -> TinyRunConfig:
    """A tiny run with some settings of the loop changed."""
    config = TinyRunConfig(run_folder=str(folder))
    return replace(config, loop=replace(config.loop, **loop))  # type: ignore[arg-type]


def build_task(config: TinyRunConfig) -> TrainingTask:
    """Objective and data."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_IMAGES, WIDTH, generator=generator)
    y = x.square().mean(1)
    if config.bad_image is not None:
        y[config.bad_image] = float("nan")
    rows = list(np.arange(NUM_IMAGES).reshape(-1, 1))
    source = ArraySource(rows, lambda rows: {"x": x[rows], "y": y[rows]}, {"name": "tiny"})
    objective = TinyObjective(config.depth, config.bad_gradients)
    if config.fault:
        fail_once(objective, step=config.fault_step, fault=config.fault, marker=Path(config.run_folder) / "fault")
    return TrainingTask(
        kind="tiny",
        objective=objective,
        model_config={"depth": config.depth},
        batches=source,
        validation=source,
    )


def run(config: TinyRunConfig) -> None:
    """Train once, or once per ZeRO stage in one launch."""
    for stage in config.stages:
        folder = f"{config.run_folder}/zero{stage}"
        run_training(replace(config, run_folder=folder, deepspeed=DeepSpeedConfig(zero_stage=stage)), build_task)  # type: ignore[arg-type]
    if not config.stages:
        run_training(config, build_task)


if __name__ == "__main__":
    sys.exit(command(TinyRunConfig, run, "Tiny training.", None))
