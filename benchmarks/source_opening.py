"""Seconds to open a folder source of 100,000 files, of this checkout and of another one in turns.

    git worktree add /tmp/before HEAD~20
    .venv/bin/python benchmarks/source_opening.py --against /tmp/before

The files are empty and lie in a temporary folder, in class folders of equal size: nothing is decoded when a source is
opened. Every opening is a process of its own; the first of each checkout warms the system's cache and does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
OPENING = """
import sys, time
from pipelines.sources import SourceConfig, open_source
import pipelines.sources.folders
config = SourceConfig(kind="folder", path=sys.argv[1])
began = time.perf_counter()
source = open_source(config)
print(time.perf_counter() - began, len(source))
"""


def main() -> None:
    """Measures, prints medians and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--against", type=Path, help="another checkout; without it this one alone is measured")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    checkouts = {"here": HERE, **({"before": given.against.resolve()} if given.against else {})}
    seconds: dict[str, list[float]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.files):
            file = Path(folder) / f"class {number % given.classes:03d}" / f"{number:06d}.png"
            if number < given.classes:
                file.parent.mkdir()
            file.touch()
        for repeat in range(given.repeats + 1):
            for name, checkout in checkouts.items():
                found = _open(folder, checkout)
                if repeat:
                    seconds[name].append(found)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        sys.stdout.write(f"{name:7s} {medians[name]:.3f} s (from {min(values):.3f} to {max(values):.3f})\n")
    ratio = medians["here"] / medians.get("before", medians["here"])
    sys.stdout.write(json.dumps({"files": given.files, "medians_s": medians, "ratio": round(ratio, 3)}) + "\n")


def _open(folder: str, checkout: Path) -> float:
    """Seconds of one opening with the code of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", OPENING, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    took, count = done.stdout.split()
    assert int(count) > 0
    return float(took)


if __name__ == "__main__":
    main()
