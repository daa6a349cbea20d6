"""All steps of an experiment in one table, alive while they run: `status.json` for a terminal, `status.html`.

The running experiment writes both a few times a minute, from what its steps write anyway. Whoever looks reads the file
and touches nothing.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Annotated, Literal, TypedDict
from urllib.parse import quote

from cluster.files import write_atomically
from eval.pages.page import header, page, section, table, time_text
from nvg.bounds import Range
from nvg.json_files import Count, read_json
from pipelines.entry import TrainingStopped
from pipelines.experiment.plan import Plan, describe_progress
from pipelines.experiment.steps import Progress, Standing

STATUS_FILE, STATUS_PAGE = "status.json", "status.html"
_EVERY_S = 15.0
_SILENT_S = 120.0  # after which nobody can tell whether it still runs
_Seconds = Annotated[float, Range(0)]
logger = logging.getLogger(__name__)


class _Part(TypedDict):
    part: str
    done: Count
    total: Count
    unit: str
    note: str


class Row(TypedDict):
    """A step: its state, seconds it has taken so far, its parts, and files for the reader, relative to the folder."""

    name: str
    state: Literal["finished", "finished earlier", "to do", "runs", "stopped", "failed"]
    seconds: _Seconds | None
    progress: list[_Part]
    shown: list[str]


class Status(TypedDict):
    """An experiment as it was at a time, in seconds since 1970; its steps in the order of work."""

    state: Literal["finished", "runs", "stopped", "failed"]
    time: _Seconds
    rows: list[Row]


def read_status(folder: Path) -> list[str]:
    """What the experiment in a folder has last said of itself, a line each.

    Raises:
        UserError: none has run there, or the file is damaged.
    """
    advice = "start the experiment, or name its folder by folder=…"
    status = read_json(folder / STATUS_FILE, Status, "the status of an experiment", advice)
    age = max(time.time() - status["time"], 0.0)
    lines = [f"{folder}: {status['state']}, as of {time_text(age)} ago", *_row_lines(status["rows"])]
    if status["state"] == "runs" and age > _SILENT_S:
        lines.append("nothing has been heard of it since: it may have been killed; the same command goes on")
    return lines


def _row_lines(rows: Sequence[Row]) -> list[str]:
    """The table as text."""
    cells = [_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def _cells(row: Row) -> list[str]:
    parts = [] if row["state"] == "to do" else [describe_progress(Progress(**part)) for part in row["progress"]]
    seconds = "" if row["seconds"] is None else time_text(row["seconds"])
    return [row["name"], row["state"], seconds, "; ".join(parts)]


def _page_of(status: Status, folder: Path) -> str:
    """The table as a page that loads itself again while the experiment runs."""
    rows, state = status["rows"], status["state"]
    links = [f'<a href="{quote(path)}">{escape(path)}</a>' for row in rows for path in row["shown"]]
    written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(status["time"]))
    first = next((number for number, row in enumerate(rows) if row["state"] == "runs"), None)
    return page(
        f"{folder.name}: {state}",
        header(str(folder), f"{state.capitalize()}. Written {written}."),
        section(
            "Steps",
            "Each is done once: a step that was stopped goes on where it was, and what is finished is passed over.",
            table(["", "state", "time", "progress"], [_cells(row) for row in rows], first=first),
        ),
        *([section("Files", "What the steps say themselves.", f"<p>{'<br>'.join(links)}</p>")] if links else []),
        again_s=_EVERY_S if state == "runs" else None,
    )


class LiveStatus:
    """Keeps both files of an experiment as they should be while it runs; a context manager.

    Args:
        plan: the steps.
        standings: how they stood at the start.
        seconds: that steps have taken before it.
    """

    def __init__(self, plan: Plan, standings: Mapping[str, Standing], seconds: Mapping[str, float]) -> None:
        self._plan = plan
        self._rows: dict[str, Row] = {
            name: {
                "name": name,
                "state": "finished earlier" if standings[name].state == "finished" else "to do",
                "seconds": seconds.get(name),
                "progress": [],
                "shown": [],
            }
            for name in plan.steps
        }
        self._state: Literal["finished", "runs", "stopped", "failed"] = "runs"
        self._running, self._began, self._before_s = "", 0.0, 0.0
        self._lock, self._ended, self._warned = threading.RLock(), threading.Event(), False
        self._writer = threading.Thread(target=self._write_now_and_then, name="status", daemon=True)

    def __enter__(self) -> LiveStatus:
        self._write()
        self._writer.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        self._ended.set()
        self._writer.join()
        as_asked = error is None or isinstance(error, TrainingStopped | KeyboardInterrupt)
        is_whole = error is None and all(row["state"] != "to do" for row in self._rows.values())
        self._state = "finished" if is_whole else "stopped" if as_asked else "failed"
        if self._running:
            self._end(self._state)
        self._write()

    def begins(self, name: str) -> None:
        """A step begins."""
        with self._lock:
            self._running, self._began, self._before_s = name, time.time(), self._rows[name]["seconds"] or 0.0
            self._rows[name]["state"] = "runs"
        self._write()

    def ends(self, name: str, state: Literal["finished", "finished earlier"]) -> None:
        """A step is done, by this start or an earlier one."""
        if self._running:
            self._end(state)
        self._rows[name]["state"] = state
        self._write()

    def _end(self, state: Literal["finished", "finished earlier", "runs", "stopped", "failed"]) -> None:
        with self._lock:
            self._follow()
            self._rows[self._running]["state"], self._running = state, ""

    def _follow(self) -> None:
        """Bring the running step's row up to now."""
        row, step = self._rows[self._running], self._plan.steps[self._running]
        row["seconds"] = self._before_s + time.time() - self._began
        row["progress"] = [_Part(**asdict(part)) for part in step.progress(self._began)]

    def _write(self) -> None:
        """Write both files as things are now; a disk that takes none ends no experiment."""
        folder = self._plan.folder
        with self._lock:
            try:
                if self._running:
                    self._follow()
                for name, row in self._rows.items():
                    files = [file.absolute() for file in self._plan.steps[name].shown if file.exists()]
                    row["shown"] = [os.path.relpath(file, folder) for file in files]
                status = Status(state=self._state, time=time.time(), rows=list(self._rows.values()))
                write_atomically(folder / STATUS_FILE, json.dumps(status, indent=1).encode())
                write_atomically(folder / STATUS_PAGE, _page_of(status, folder).encode())
            except OSError as error:
                if not self._warned:
                    logger.warning("%s cannot be kept up to date: %s", folder / STATUS_PAGE, error)
                self._warned = True

    def _write_now_and_then(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._write()
