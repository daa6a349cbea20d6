"""Runs a demo for several seeds and writes what it took and what came out: docs/results/demo.md, pictures.md.

    .venv/bin/python benchmarks/demo.py --seeds 0 1 2 --folder runs/benchmark
    .venv/bin/python benchmarks/demo.py --file demo/fashion.yaml --seeds 0 --output docs/results/fashion.json

Wall time is that of the whole command. Memory is the sum of the proportional set sizes of all its processes (shared
pages counted once) plus what lies in /dev/shm, which counts mapped shared memory twice: an upper bound. Linux only.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

POLL_S = 10.0  # asking the kernel takes a tenth of a second of a core


def main() -> None:
    """Measures, then writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--file", default="demo/digits.yaml", help="the experiment")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/demo.json"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()
    runs = [
        measure(given.file, given.folder / f"seed{seed}", [f"seed={seed}", *given.overrides]) for seed in given.seeds
    ]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(),
        "memory_GB": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "command": "python " + " ".join(sys.argv),
    }
    given.output.write_text(json.dumps({"machine": machine, "runs": runs}, indent=2) + "\n")
    print_summary(runs)


def measure(file: str, folder: Path, overrides: list[str]) -> dict[str, object]:
    """One experiment from nothing: seconds, peak bytes, scores."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("nvg")), "run", file, f"folder={folder}", *overrides]
    before = shared_memory()
    start = time.monotonic()
    process = subprocess.Popen(command)
    peak = 0
    while True:
        try:
            code = process.wait(POLL_S)
            break
        except subprocess.TimeoutExpired:
            peak = max(peak, tree_memory(process.pid) + shared_memory() - before)
    if code != 0:
        sys.exit(f"{' '.join(command)} ended with exit code {code}")
    seconds = time.monotonic() - start
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    return {
        "overrides": overrides,
        "seconds": round(seconds, 1),
        "peak_memory_GB": round(peak / 1e9, 2),
        "step_seconds": {
            name: round(step["seconds"], 1) for name, step in json.loads((folder / "times.json").read_text()).items()
        },
        "evaluation_seconds": results["seconds"],
        "scores": results["scores"],
    }


def tree_memory(pid: int) -> int:
    """Bytes of a process and everything it started, shared pages counted once."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue  # it has just ended
    return total


def shared_memory() -> int:
    """Bytes in /dev/shm."""
    return shutil.disk_usage("/dev/shm").used


def cpu_name() -> str:
    """Model name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def print_summary(runs: list[dict]) -> None:
    """Mean and range over the seeds, one line per figure."""
    for name in ("seconds", "peak_memory_GB"):
        values = [run[name] for run in runs]
        sys.stdout.write(f"{name}: {np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})\n")
    for row in runs[0]["scores"]:
        for name, value in runs[0]["scores"][row].items():
            if isinstance(value, float):
                values = [run["scores"][row][name] for run in runs]
                sys.stdout.write(f"{row} {name}: {np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})\n")


if __name__ == "__main__":
    main()
