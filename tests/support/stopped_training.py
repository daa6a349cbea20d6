"""Trainings with their real objectives that are stopped at some step and started again, compared with straight ones.

A launch of two ranks calls `compare_all` on both; the main rank writes what it found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import golden_training
from safetensors.torch import load_file

from nvg.tokenizer import TokenizerConfig
from nvg.training import TokenizerLossConfig
from pipelines.run_folder import read_metrics
from pipelines.sources import SourceConfig
from pipelines.train.config import DeepSpeedConfig, LoopConfig, OptimizerConfig
from pipelines.train.launch import run_on_this_rank
from pipelines.train.tokenizer import TokenizerRunConfig
from pipelines.train.tokenizer import build_task as build_tokenizer_task

NUM_STEPS, BATCH = 7, 8
PLAIN = "plain"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training: its objective, its engine ("plain" or the ZeRO stage) and the steps after which it is stopped."""

    kind: str
    engine: str
    stops: tuple[int, ...]
    depth: int = 1
    micro_batch: int | None = None
    stages_per_image: int | None = None

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in asdict(self).values()).replace(" ", "")

    @property
    def tolerance(self) -> float:
        """Of weights and losses: what is not partitioned is the same to the bit."""
        return 0.0 if self.engine in (PLAIN, "0") else 1e-5


def _config(case: Case, folder: Path) -> Any:
    plain = case.engine == PLAIN
    common: dict[str, Any] = {
        "run_folder": str(folder),
        "optimizer": OptimizerConfig(
            lr=2e-3,
            total_images=NUM_STEPS * BATCH,
            warmup_images=2 * BATCH,
            ema_half_life_images=16,
            global_batch=BATCH,
            micro_batch=case.micro_batch,
        ),
        "loop": LoopConfig(
            engine=PLAIN if plain else "deepspeed",
            log_every_steps=1,
            checkpoint_every_steps=NUM_STEPS,
            threads_per_rank=1,
        ),
        "deepspeed": DeepSpeedConfig(zero_stage=0 if plain else int(case.engine)),  # type: ignore[arg-type]
    }
    if case.kind != "tokenizer":
        return golden_training.GoldenRunConfig(
            kind=case.kind, depth=case.depth, stages_per_image=case.stages_per_image, **common
        )
    model = {"image_size": 16, "image_channels": 1, "base_width": 8, "width_multipliers": [1, 1, 2]}
    return TokenizerRunConfig(
        source=SourceConfig(kind="digits", image_size=16, image_channels=1, split="train"),
        model=TokenizerConfig(**model, num_res_blocks=1, norm_groups=4, latent_channels=4, codebook_size=16),  # type: ignore[arg-type]
        # The warm-up of the codebook ends inside the run; ZeRO-3 has no revival.
        loss=TokenizerLossConfig(
            soft_assignment_images=3 * BATCH,
            revive_after_images=None if case.engine == "3" else 2 * BATCH,
            token_perturbation=1.0,
            foreign_regions=0.5,
        ),
        **common,
    )


def _train(case: Case, folder: Path, stop: int | None = None) -> Path:
    config = _config(case, folder)
    if stop is not None:
        config = replace(config, loop=replace(config.loop, stop_after_steps=stop))
    build: Any = build_tokenizer_task if case.kind == "tokenizer" else golden_training.build_task
    return run_on_this_rank(config, build)


def _losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder)]


def compare(case: Case, folder: Path) -> float:
    """Train straight, and stopped at every stop in turn; the largest difference of a weight, an average or a loss."""
    straight = _train(case, folder / "straight")
    for stop in case.stops:
        assert _train(case, folder / "stopped", stop).name == f"step-{stop:08d}"
    resumed = _train(case, folder / "stopped")
    apart = [abs(a - b) for a, b in zip(*map(_losses, (folder / "straight", folder / "stopped")), strict=True)]
    for name in ("model", "ema"):
        ours, theirs = (load_file(of / f"{name}.safetensors") for of in (resumed, straight))
        assert ours.keys() == theirs.keys()
        apart += [float((value.double() - theirs[key].double()).abs().max()) for key, value in ours.items()]
    assert len(apart) > NUM_STEPS
    return max(apart)


def compare_all(cases: Sequence[Case], root: Path) -> None:
    """Compare on this rank; the differences by name in `found.json` (the same on all ranks)."""
    found = {case.name: compare(case, root / case.name) for case in cases}
    (root / "found.json").write_text(json.dumps(found))
