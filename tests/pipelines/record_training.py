"""A small generator training on records for the tests of the launchers, and one whose rank is killed once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nvg.models import ContentGeneratorConfig, StructureGeneratorConfig
from pipelines.configuration import dump_config
from pipelines.train_generator import GeneratorRunConfig, build_task
from pipelines.training_batches import Batch, BatchSource
from pipelines.training_config import DataConfig, LoopConfig, OptimizerConfig
from pipelines.training_env import RankEnvironment
from pipelines.training_metrics import read_metrics
from pipelines.training_task import TrainingTask

BIN = Path(sys.executable).parent
NUM_STEPS = 6
BATCH = 8


def record_config(records: Path, folder: Path, kind: str = "content", **changes: Any) -> GeneratorRunConfig:
    """Six steps of a generator of one block."""
    config = GeneratorRunConfig(
        kind=kind,
        run_folder=str(folder),
        data=DataConfig(path=str(records)),
        content=ContentGeneratorConfig(depth=1, width=64),
        structure=StructureGeneratorConfig(depth=1, width=64),
        optimizer=OptimizerConfig(
            lr=1e-3, total_images=NUM_STEPS * BATCH, ema_half_life_images=16.0, global_batch=BATCH
        ),
        loop=LoopConfig(log_every_steps=1, checkpoint_every_steps=2, keep_last=10, threads_per_rank=1),
    )
    return replace(config, **changes)


def losses(folder: Path) -> list[float]:
    """Loss of every logged step."""
    return [row["loss"] for row in read_metrics(folder)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(repository: Path, config: GeneratorRunConfig, *settings: str, num_ranks: int) -> None:
    """Train under the real ``deepspeed`` launcher, or with one rank as a plain process."""
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
            str(_free_port()),
            "--module",
        ]
    done = subprocess.run(
        [*launcher, "pipelines.train_generator", "--config", str(file), *settings],
        env={
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(repository),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        },
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]


@dataclass(frozen=True, kw_only=True)
class KilledOnce:
    """Batches of another source; the last rank dies by SIGKILL before one step, the first time only.

    Attributes:
        source: the batches.
        step: the step that is not made, counted from 1.
        marker: file that is there once the rank was killed.
    """

    source: BatchSource
    step: int
    marker: Path

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.source.fingerprint

    @property
    def num_images(self) -> int:
        return self.source.num_images

    def batches(self, *, start_step: int, global_batch: int, seed: int, place: RankEnvironment) -> Iterator[Batch]:
        stream = self.source.batches(start_step=start_step, global_batch=global_batch, seed=seed, place=place)
        for step, batch in enumerate(stream, start=start_step + 1):
            if step == self.step and place.rank == place.world_size - 1 and not self.marker.exists():
                self.marker.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def build_task_killed_once(config: GeneratorRunConfig) -> TrainingTask:
    """The real task, of which one rank is killed before step 4."""
    task = build_task(config)
    marker = Path(config.run_folder).with_suffix(".killed")
    return replace(task, batches=KilledOnce(source=task.batches, step=4, marker=marker))
