"""What lies in a run folder beside the checkpoints: who may write there, where it comes from, and its numbers.

.lock               held by the training that writes here
config.yaml         the run's configuration, as it was last started
provenance.json     one entry per start: time, command, commit, versions, data
metrics.jsonl       one row of numbers per logged step
"""

from __future__ import annotations

import fcntl
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.files import write_atomically
from cluster.manifest import library_versions
from cluster.ranks import Ranks
from nvg.errors import UserError
from pipelines.configuration import dump_config

METRICS_FILE = "metrics.jsonl"
_CONFIG_FILE = "config.yaml"
_PROVENANCE_FILE = "provenance.json"
_LOCK_FILE = ".lock"


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl in order, without a half-written last line; none when there is no file yet."""
    path = run_folder / METRICS_FILE
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def trim_metrics(run_folder: Path, step: int) -> None:
    """Drop the rows after a step: the training goes on from there and writes them again."""
    path = run_folder / METRICS_FILE
    if path.is_file():
        kept = [row for row in read_metrics(run_folder) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def write_provenance(run_folder: Path, config: Any, data: dict[str, Any]) -> None:
    """Write `config.yaml` and add this start to `provenance.json`; `data` is the fingerprint of the data.

    Only once the start is accepted, under the run's lock: a refused one changes nothing.
    """
    write_atomically(run_folder / _CONFIG_FILE, dump_config(config).encode())
    path = run_folder / _PROVENANCE_FILE
    sessions: list[dict[str, Any]] = json.loads(path.read_text())["sessions"] if path.is_file() else []
    sessions.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": sys.argv,
            "commit": _commit(),
            "python": platform.python_version(),
            "versions": library_versions(),
            "data": data,
        }
    )
    write_atomically(path, json.dumps({"sessions": sessions}, indent=2).encode())


def _commit() -> str | None:
    """Commit of the code, None outside a clone."""
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


@contextmanager
def run_lock(run_folder: Path, ranks: Ranks) -> Iterator[None]:
    """Keep a second training out of a run folder; the system frees the lock of a killed process.

    Raises:
        UserError: another process trains here, or there can be no folder.
    """
    if not ranks.is_main:
        yield
        return
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_folder {run_folder} cannot be made: {error}; choose another one") from error
    with open(run_folder / _LOCK_FILE, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another training is writing to {run_folder}; wait for it or choose another run_folder"
            ) from error
        yield
