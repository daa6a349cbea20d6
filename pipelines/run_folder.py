"""What lies in a run folder beside the checkpoints: who may write there, where it comes from, and its numbers.

.lock               held by the training that writes here
config.yaml         the run's configuration, as it was last started
provenance.json     one entry per start: time, command, commit, versions, data
metrics.jsonl       one row of numbers per logged step
"""

from __future__ import annotations

import fcntl
import json
import logging
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.files import write_atomically
from cluster.ranks import Ranks
from cluster.versions import commit, library_versions
from nvg.errors import UserError
from pipelines.configuration import dump_config

CHECKPOINTS_FOLDER = "checkpoints"
METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.yaml"
_PROVENANCE_FILE = "provenance.json"
_LOCK_FILE = ".lock"
logger = logging.getLogger(__name__)


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl in order, without lines that are none (a training in it sets them aside)."""
    rows, _ = _read_lines(run_folder / METRICS_FILE)
    return rows


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], dict[int, bytes]]:
    """Rows of numbers, and the lines that are none by their number from 1: half of one, zeros after a power loss."""
    rows: list[dict[str, Any]] = []
    damaged: dict[int, bytes] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else [], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # JSON's and UTF-8's errors are of the first kind
            row = None
        if isinstance(row, dict) and _is_step(row.get("step")) and all(map(_is_number, row.values())):
            rows.append(row)
        elif line:
            damaged[number] = line
    return rows, damaged


def _is_number(value: Any) -> bool:
    """A number that is finite, or null, which stands for one that was not."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    return value is None or whole or (isinstance(value, float) and abs(value) < 1e300)


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def trim_metrics(run_folder: Path, step: int) -> None:
    """Drop the rows after a step: the training goes on from there and writes them again.

    A damaged line is moved to `metrics.jsonl.damaged` and said.
    """
    path = run_folder / METRICS_FILE
    if not path.is_file():
        return
    rows, damaged = _read_lines(path)
    if damaged:
        aside = path.with_name(f"{METRICS_FILE}.damaged")
        with open(aside, "ab") as file:
            file.writelines(line + b"\n" for line in damaged.values())
        numbers = ", ".join(map(str, damaged))
        logger.warning("%s: line(s) %s are no rows of numbers; moved to %s, training goes on", path, numbers, aside)
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step).encode())


def write_provenance(run_folder: Path, config: Any, data: dict[str, Any]) -> None:
    """Write `config.yaml` and add this start to `provenance.json`; `data` is the fingerprint of the data.

    Only once the start is accepted, under the run's lock: a refused one changes nothing.
    """
    write_atomically(run_folder / CONFIG_FILE, dump_config(config).encode())
    path = run_folder / _PROVENANCE_FILE
    sessions = _read_sessions(path)
    sessions.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": sys.argv,
            "commit": commit(),
            "python": platform.python_version(),
            "versions": library_versions(),
            "data": data,
        }
    )
    write_atomically(path, json.dumps({"sessions": sessions}, indent=2).encode())


def _read_sessions(path: Path) -> list[dict[str, Any]]:
    """Earlier starts; a file that cannot be read is set aside and said, it decides nothing."""
    try:
        sessions = json.loads(path.read_bytes())["sessions"] if path.is_file() else []
        return list(sessions)
    except (ValueError, KeyError, TypeError, RecursionError):
        aside = path.with_name(f"{path.name}.damaged")
        logger.warning("%s cannot be read; moved to %s, a new one begins with this start", path, aside)
        path.replace(aside)
        return []


@contextmanager
def run_lock(run_folder: Path, ranks: Ranks) -> Iterator[None]:
    """Keep a second training out of a run folder; see `folder_lock`."""
    if not ranks.is_main:
        yield
        return
    with folder_lock(run_folder, "training", "run_folder"):
        yield


@contextmanager
def folder_lock(folder: Path, what: str, key: str) -> Iterator[None]:
    """Keep a second writer out of a folder, which is made; the system frees the lock of a killed process.

    Args:
        what: the writer, in a word.
        key: setting that names the folder.

    Raises:
        UserError: another process holds it, or there can be no folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key} {folder} cannot be made: {error}; choose another one") from error
    with open(folder / _LOCK_FILE, "a") as lock:  # a start that will be refused leaves the file as it is
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another {what} is writing to {folder}; wait for it or choose another {key}") from error
        yield
