"""A small generator training on records for the tests of the launchers, and one whose rank is killed once."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from faulty_step import fail_once

from cluster.devices import WITHOUT_GPU
from cluster.session import free_port
from nvg.models import ContentGeneratorConfig, StructureGeneratorConfig
from pipelines.batches.config import DataConfig
from pipelines.configuration import dump_config
from pipelines.run_folder import read_metrics
from pipelines.train.config import LoopConfig, OptimizerConfig
from pipelines.train.generator import ContentRun, GeneratorRunConfig, StructureRun, build_task
from pipelines.train.task import TrainingTask

BIN = Path(sys.executable).parent
NUM_STEPS = 6
BATCH = 8


def record_config(records: Path, folder: Path, kind: str = "content", **changes: Any) -> Any:
    """Six steps of a generator of one block."""
    common: dict[str, Any] = {
        "run_folder": str(folder),
        "data": DataConfig(path=str(records)),
        "optimizer": OptimizerConfig(
            lr=1e-3, total_images=NUM_STEPS * BATCH, ema_half_life_images=16.0, global_batch=BATCH
        ),
        "loop": LoopConfig(log_every_steps=1, checkpoint_every_steps=2, keep_last=10, threads_per_rank=1),
    }
    if kind == "content":
        return replace(ContentRun(content=ContentGeneratorConfig(depth=1, width=64), **common), **changes)
    return replace(StructureRun(structure=StructureGeneratorConfig(depth=1, width=64), **common), **changes)


def losses(folder: Path) -> list[float]:
    """Loss of every logged step."""
    return [row["loss"] for row in read_metrics(folder)]


def launch(repository: Path, config: GeneratorRunConfig, *settings: str, num_ranks: int) -> None:
    """Train under the real `deepspeed` launcher, or with one rank as a plain process."""
    folder = Path(config.run_folder)
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(dump_config(config))
    launcher = [sys.executable, "-m"]
    if num_ranks > 1:
        launcher = [
            str(BIN / "deepspeed"),
            "--num_gpus",
            str(num_ranks),
            "--master_port",
            str(free_port()),
            "--module",
        ]
    done = subprocess.run(
        [*launcher, "pipelines.train.generator", "--config", str(file), *settings],
        env={
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(repository),
            "OMP_NUM_THREADS": "1",
            **WITHOUT_GPU,
        },
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]


def build_task_killed_once(config: GeneratorRunConfig) -> TrainingTask:
    """The real task, of which one rank is killed in step 4."""
    task = build_task(config)
    fail_once(task.objective, step=4, fault="kill", marker=Path(config.run_folder).with_suffix(".killed"))
    return task
