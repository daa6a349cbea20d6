"""Times the opening of a tar shard against a plain pass of `tarfile` and against an earlier commit, in turns.

    .venv/bin/python benchmarks/tar_reading.py --before HEAD~1 --output docs/results/tar_reading.json

The shard, of random bytes in members as large as given, is made in a temporary folder; nothing is decoded.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pipelines.sources import SourceConfig, open_source

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT}


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--image-bytes", type=int, default=20000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--before", default="HEAD~1", help="commit whose tars.py is measured beside today's")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the figures")
    given = parser.parse_args()
    load_before = os.getloadavg()[0]
    seconds: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        before = source_class_of(given.before)
        for name in FORMATS:
            path = Path(folder) / f"{name}.tar"
            write_shard(path, given.samples, given.image_bytes, FORMATS[name])
            config = SourceConfig(kind="webdataset", path=str(path), split="all")
            ways = {
                "tarfile": lambda path=path: read_with_tarfile(path),
                "before": lambda config=config: before(config),
                "now": lambda config=config: open_source(config),
            }
            seconds[name] = medians(ways, given.repeats)
    results: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load_before, 2),
        "before": given.before,
        "members": 2 * given.samples,
        "seconds": {name: {way: round(value, 4) for way, value in ways.items()} for name, ways in seconds.items()},
        "now_by_before": {name: round(ways["now"] / ways["before"], 3) for name, ways in seconds.items()},
    }
    text = json.dumps(results, indent=2)
    sys.stdout.write(text + "\n")
    if given.output is not None:
        given.output.write_text(text + "\n")


def source_class_of(commit: str) -> Callable[[SourceConfig], Any]:
    """The source of tar shards as it was, over the modules of today."""
    command = ["git", "show", f"{commit}:pipelines/sources/tars.py"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    module = ModuleType("tars_before")
    sys.modules[module.__name__] = module
    exec(text, module.__dict__)
    return module.WebdatasetSource


def write_shard(path: Path, num_samples: int, image_bytes: int, form: int) -> None:
    """A shard of samples with an image and a label; in pax, with a header of its own for each member's time."""
    generator = random.Random(0)
    with tarfile.open(path, "w", format=form) as archive:
        for number in range(num_samples):
            for name, data in (("jpg", generator.randbytes(image_bytes)), ("cls", str(number % 10).encode())):
                member = tarfile.TarInfo(f"{number:06d}.{name}")
                member.size, member.mtime = len(data), 1.5
                archive.addfile(member, io.BytesIO(data))


def read_with_tarfile(path: Path) -> int:
    """What a pass over headers and labels costs at the least, by the standard library."""
    num_bytes = 0
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".cls") else None
            num_bytes += len(file.read()) if file is not None else member.size
    return num_bytes


def medians(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, in turns, so that the machine's load is shared; the first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in found.items()}


if __name__ == "__main__":
    main()
