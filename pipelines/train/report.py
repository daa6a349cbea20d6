"""What a rank tells about a training: rows of numbers, a bar or lines, pictures, further sinks; times and memory."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.files import write_atomically
from cluster.progress import ProgressBars
from cluster.ranks import Ranks
from pipelines.run_folder import METRICS_FILE, trim_metrics
from pipelines.train.config import RunConfig
from pipelines.train.sinks import Sink, open_sinks

DATA = "data"


def open_report(
    run_folder: Path, name: str, config: RunConfig, settings: dict[str, Any], first_step: int, ranks: Ranks
) -> TrainingReport | SilentReport:
    """The report of this rank; the main rank's speaks. `settings` are shown on the run's page."""
    if not ranks.is_main:
        return SilentReport()
    loop = config.loop
    trim_metrics(run_folder, first_step)
    sinks = open_sinks(
        run_folder, wandb=loop.wandb, tensorboard=loop.tensorboard, settings=settings, first_step=first_step
    )
    return TrainingReport(
        run_folder, name=name, num_steps=config.optimizer.num_steps, first_step=first_step, sinks=sinks
    )


class TrainingReport:
    """Open outputs of one training session; a context manager.

    Args:
        run_folder: where metrics.jsonl lies.
        name: shown beside the bar.
        num_steps: steps of the whole training.
        first_step: steps already done.
        sinks: further places for rows and pictures; closed with the report.
    """

    def __init__(
        self, run_folder: Path, *, name: str, num_steps: int, first_step: int, sinks: Sequence[Sink] = ()
    ) -> None:
        self.name, self.num_steps, self.first_step = name, num_steps, first_step
        self.file = open(run_folder / METRICS_FILE, "a", buffering=1)  # noqa: SIM115 (closed in __exit__)
        self.bars = ProgressBars({name: num_steps}, completed={name: first_step}, unit="steps")
        self.status = ""
        self.sinks, self.run_folder = sinks, run_folder
        self.started = time.monotonic()

    def __enter__(self) -> TrainingReport:
        self.bars.__enter__()
        return self

    def __exit__(self, *given: object) -> None:
        self.bars.__exit__(*given)
        self.file.close()
        for sink in self.sinks:
            sink.close()

    def advance(self, step: int) -> None:
        """Move the bar (cheap, every step)."""
        self.bars.update(self.name, step, self.status)

    def row(self, values: dict[str, Any]) -> None:
        """Write one row of JSON values, `step` among them; a number that is not finite is written as null."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self.file.write(json.dumps(clean) + "\n")
        for sink in self.sinks:
            sink.row(clean)
        self._show(clean)

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Keep a PNG file of a step as `<name>/step-….png` in the run folder, and show it to the sinks."""
        path = self.run_folder / name / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, png)
        for sink in self.sinks:
            sink.picture(name, path, step)

    def _show(self, row: dict[str, Any]) -> None:
        self.status = f"loss {row['loss']:.4f}" if row.get("loss") is not None else ""
        if row.get("images_per_s"):
            self.status += f"  {row['images_per_s']:.0f} images/s"
        if not sys.stderr.isatty():  # the bar of a terminal tells it itself
            left = (time.monotonic() - self.started) / max(row["step"] - self.first_step, 1)
            self.status += f"  {left * (self.num_steps - row['step']):.0f} s left"
        self.advance(row["step"])


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

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Nothing to keep."""


def averages(window: Sequence[dict[str, Tensor]], ranks: Ranks) -> dict[str, float]:
    """Means of the metrics of some steps (all ranks call): one transfer from the device, one gather.

    Args:
        window: `StepNumbers.metrics` of the steps.
        ranks: this rank.

    Returns:
        Mean of "loss", then of every other name, over the values of all steps and ranks (a step may lack some stages).
    """
    named = [(name, value.float()) for metrics in window for name, value in metrics.items()]
    pairs = torch.stack([value if value.ndim else torch.stack([value, torch.ones_like(value)]) for _, value in named])
    own = _added((name, *pair) for (name, _), pair in zip(named, pairs.tolist(), strict=True))
    totals = _added(item for of_rank in ranks.gather(own) for item in of_rank)
    means = {name: total / count for name, total, count in totals}
    return {"loss": means.pop("loss"), **dict(sorted(means.items()))}


def _added(items: Iterable[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """(name, sum, number), one for each name."""
    totals: dict[str, tuple[float, float]] = {}
    for name, value, count in items:
        total, number = totals.get(name, (0.0, 0.0))
        totals[name] = total + value, number + count
    return [(name, *total) for name, total in totals.items()]


class TrainingClock:
    """Seconds since the last row of metrics, by what they went to, and the most memory of a rank's device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started = time.perf_counter()
        self.spans: dict[str, float] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Count the block's seconds under a name; all but `DATA` are no part of the steps."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spans[name] = self.spans.get(name, 0.0) + time.perf_counter() - started

    def close(self, num_steps: int) -> dict[str, float]:
        """Numbers of the window of so many steps that ends now.

        Returns:
            step_s: seconds of a step with its wait for data; data_s: that wait; <name>_s: seconds of everything else in
            the whole window; memory_gib: the most this rank has held, of its device or else of the host.
        """
        now = time.perf_counter()
        data = self.spans.pop(DATA, 0.0)
        seconds = (now - self.started - sum(self.spans.values())) / num_steps
        others = {f"{name}_s": value for name, value in self.spans.items()}
        self.started, self.spans = now, {}
        return {"step_s": seconds, "data_s": data / num_steps, **others, "memory_gib": self._memory_gib()}

    def _memory_gib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts it in KiB
