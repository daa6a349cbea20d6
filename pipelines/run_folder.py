"""``metrics.jsonl`` of a run: one row of numbers per logged step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.files import write_atomically

METRICS_FILE = "metrics.jsonl"


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
