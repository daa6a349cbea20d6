"""The one progress bar: bars in a terminal; elsewhere a line when something has changed, and never too many of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class ProgressBars:
    """How far some tasks are; a context manager.

    Args:
        totals: name of each task to its number of steps.
        completed: name to the steps that are done already; a speed is told of the further ones.
        unit: what a step is, in the plural.
        console: where bars are drawn; None takes the terminal. Where it is none, lines go to stderr, so that they never
            mix with results.
        every_s: seconds between two lines.
    """

    def __init__(
        self,
        totals: Mapping[str, int],
        *,
        completed: Mapping[str, int] | None = None,
        unit: str = "",
        console: Console | None = None,
        every_s: float = 30.0,
    ) -> None:
        console = console or Console(stderr=True)
        self._unit, self._every_s = unit, every_s
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(unit),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        begun = completed or {}
        self._tasks = {
            name: self._bars.add_task(name, total=total, completed=begun.get(name, 0), status="")
            for name, total in totals.items()
        }
        self._line, self._written_s = self._text(), -every_s

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        self._write()

    def update(self, name: str, completed: int, status: str = "") -> None:
        """Say how far a task is, and a few words about it."""
        self._bars.update(self._tasks[name], completed=completed, status=status)
        if time.monotonic() - self._written_s >= self._every_s:
            self._write()

    def _write(self) -> None:
        """Where there is no terminal: one line, unless it is the last one again."""
        line = self._text()
        if self._bars.disable and line != self._line:
            self._line, self._written_s = line, time.monotonic()
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def _text(self) -> str:
        parts = (
            (f"{task.description} {task.completed:.0f}/{task.total:.0f}", self._unit, task.fields["status"])
            for task in self._bars.tasks
        )
        return " | ".join(" ".join(filter(None, part)) for part in parts)


class _Speed(ProgressColumn):
    """Steps a second, as soon as it is known."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(self._unit if speed is None else f"{speed:.1f} {self._unit}/s")
