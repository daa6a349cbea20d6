"""What the main rank tells about a training: metrics.jsonl, a bar or plain lines, optionally wandb."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.manifest import write_atomically
from nvg.errors import UserError
from pipelines.training_config import WandbConfig

METRICS_FILE = "metrics.jsonl"
WANDB_ID_FILE = "wandb-id.txt"
logger = logging.getLogger(__name__)


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl (a half-written last line is left out).

    Args:
        run_folder: the run.

    Returns:
        Rows in order; empty when there is no file yet.
    """
    path = run_folder / METRICS_FILE
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def trim_metrics(run_folder: Path, step: int) -> None:
    """Drop the rows after a step: the training goes on from there and writes them again.

    Args:
        run_folder: the run.
        step: last step that is kept.
    """
    path = run_folder / METRICS_FILE
    if path.is_file():
        kept = [row for row in read_metrics(run_folder) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


class TrainingReport:
    """Open outputs of one training session; a context manager.

    Args:
        run_folder: where metrics.jsonl lies.
        name: shown beside the bar.
        num_steps: steps of the whole training.
        first_step: steps already done.
        wandb: optional log.
        config: settings for wandb's page.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        name: str,
        num_steps: int,
        first_step: int,
        wandb: WandbConfig,
        config: dict[str, Any],
    ) -> None:
        self.name, self.num_steps, self.first_step = name, num_steps, first_step
        trim_metrics(run_folder, first_step)
        self.file = open(run_folder / METRICS_FILE, "a", buffering=1)  # noqa: SIM115 (closed in __exit__)
        self.console = Console(stderr=True)
        self.progress: Progress | None = None
        self.wandb = _open_wandb(wandb, run_folder, config) if wandb.enabled else None
        self.started = time.monotonic()

    def __enter__(self) -> TrainingReport:
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.progress.start()
            self.task = self.progress.add_task(self.name, total=self.num_steps, completed=self.first_step, status="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()
        self.file.close()
        if self.wandb is not None:
            self.wandb.finish()

    def advance(self, step: int) -> None:
        """Move the bar (cheap, every step)."""
        if self.progress is not None:
            self.progress.update(self.task, completed=step)

    def row(self, values: dict[str, Any]) -> None:
        """Write one row of numbers; it has at least ``step``.

        Args:
            values: JSON values; a number that is not finite is written as null.
        """
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self.file.write(json.dumps(clean) + "\n")
        if self.wandb is not None:
            self.wandb.log({key: value for key, value in clean.items() if key != "step"}, step=clean["step"])
        self._show(clean)

    def say(self, message: str) -> None:
        """One line for the user where no bar is shown."""
        sys.stderr.write(message + "\n")
        sys.stderr.flush()

    def _show(self, row: dict[str, Any]) -> None:
        status = f"loss {row['loss']:.4f}" if row.get("loss") is not None else ""
        if row.get("images_per_s"):
            status += f"  {row['images_per_s']:.0f} images/s"
        if self.progress is not None:
            self.progress.update(self.task, completed=row["step"], status=status)
            return
        done = row["step"] - self.first_step
        left = (time.monotonic() - self.started) / max(done, 1) * (self.num_steps - row["step"])
        self.say(f"{self.name}: step {row['step']}/{self.num_steps}  {status}  {left:.0f} s left")


class SilentReport:
    """The report of the ranks that do not speak."""

    def __enter__(self) -> SilentReport:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, step: int) -> None:
        """Nothing to show."""

    def row(self, values: dict[str, Any]) -> None:
        """Nothing to write."""


def _open_wandb(config: WandbConfig, run_folder: Path, settings: dict[str, Any]) -> Any:
    """The run's page, or None with a warning when the service refuses: metrics.jsonl has the same numbers."""
    try:
        import wandb  # optional dependency
        import wandb.errors
    except ImportError as error:
        raise UserError(
            "loop.wandb.enabled=true but wandb is not installed: pip install wandb, or switch it off"
        ) from error
    try:
        return wandb.init(
            project=config.project,
            group=config.group or None,
            name=run_folder.name,
            id=_wandb_id(run_folder),
            job_type="train",
            resume="allow",
            mode="online" if config.mode == "online" else "offline",
            dir=str(run_folder),
            config=settings,
        )
    except wandb.errors.Error as error:
        logger.warning("wandb could not be started, training without it: %s", error)
        return None


def _wandb_id(run_folder: Path) -> str:
    """Id of this run on its page, drawn once and kept: run folders of the same name are different runs."""
    file = run_folder / WANDB_ID_FILE
    if not file.is_file():
        write_atomically(file, uuid.uuid4().hex.encode())
    return file.read_text().strip()
