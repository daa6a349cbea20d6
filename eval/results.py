"""`results.json`: what every evaluation leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.manifest import write_atomically

RESULTS_FILE = "results.json"


def write_results(folder: Path, results: dict[str, Any]) -> Path:
    """Write `results.json`; a number that is not finite is refused.

    Args:
        folder: where to.
        results: JSON values.

    Returns:
        The file.
    """
    path = folder / RESULTS_FILE
    write_atomically(path, f"{json.dumps(results, indent=2, allow_nan=False)}\n".encode())
    return path
