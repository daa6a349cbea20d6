"""The first hour on a GPU: is the project right on it, and how fast is it? Every number beside its prediction.

    python benchmarks/gpu_campaign.py --output campaign.json                # everything, 20 minutes at most
    python benchmarks/gpu_campaign.py --parts parity,kernels                # 5 minutes
    python benchmarks/gpu_campaign.py --parts train                         # 9 minutes, most of it compilation
    python benchmarks/gpu_campaign.py --parts train --depths 20             # 3 of them
    python benchmarks/gpu_campaign.py --parts sample,encode,host            # 6 minutes
    python benchmarks/gpu_campaign.py --device cpu --tiny                   # nothing in it is misspelt; a minute

It needs what `nvg/` needs, PyTorch, NumPy, einops and safetensors, and nothing else of the project's. Each part stands
alone. A measurement that fails is told with its error and costs no other one; one that the budget leaves no time for is
named. One table and one JSON file come last; the status is 1 where a parity or an attempt failed. The predictions are
bounds from counted bytes and operations: 700 TFLOP/s of products and 2.8 TB/s of memory, one after the other.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from device_clock import wait_for  # noqa: E402

PARTS = {
    "parity": "gpu_parity:parity", "kernels": "gpu_speed:kernels", "train": "gpu_speed:train",
    "sample": "gpu_speed:sample_part", "encode": "gpu_speed:encode", "host": "gpu_speed:host",
}  # fmt: skip

DEPTHS = (16, 24, 20)  # of the generators that are trained, most telling first

# (part, what): value and unit. Compiled rows are those of the block as it is now.
PREDICTIONS: dict[tuple[str, str], tuple[float, str]] = {
    ("kernels", "copy"): (3.0, "TB/s"),
    ("kernels", "product 8192"): (798, "TFLOP/s"),
    ("kernels", "clustering of 64, rounds"): (16, "ms"),
    ("kernels", "clustering of 64, Triton"): (0.3, "ms"),
    ("kernels", "clustering, rounds over Triton"): (50, "x"),
    ("train", "content d16, eager"): (92, "images/s"),
    ("train", "content d16, compiled"): (159, "images/s"),
    ("train", "content d20, eager"): (54, "images/s"),
    ("train", "content d20, compiled"): (88, "images/s"),
    ("train", "content d24, eager"): (34, "images/s"),
    ("train", "content d24, compiled"): (54, "images/s"),
    ("train", "structure d16, eager"): (144, "images/s"),
    ("train", "structure d16, compiled"): (288, "images/s"),
    ("train", "structure d20, eager"): (87, "images/s"),
    ("train", "structure d20, compiled"): (166, "images/s"),
    ("train", "structure d24, eager"): (58, "images/s"),
    ("train", "structure d24, compiled"): (105, "images/s"),
    ("sample", "d16, 25 flow steps, fp32"): (1.7, "images/s"),
    ("sample", "d16, 25 flow steps, tf32"): (4.5, "images/s"),
    ("sample", "d16, 25 flow steps, bf16"): (7.4, "images/s"),
    ("sample", "d16, 25 flow steps, bf16 compiled"): (16.3, "images/s"),
    ("encode", "encode, fp32"): (190, "images/s"),
    ("encode", "encode, tf32"): (700, "images/s"),
    ("encode", "tokenizer step without judges, tf32"): (63, "images/s"),
    ("host", "noise of 768 images, content"): (1.2, "ms"),
    ("host", "noise of 768 images, structure"): (32, "ms"),
    ("host", "average of content d16"): (1, "ms"),
}


@dataclass
class Row:
    """One number of the table."""

    part: str
    what: str
    value: float | str
    unit: str = ""
    predicted: float | None = None
    passed: bool | None = None
    more: dict[str, Any] = field(default_factory=dict)


class Campaign:
    """Device, size and time of a campaign, and what it has found."""

    def __init__(self, device: str, tiny: bool, budget_s: float, depths: tuple[int, ...] = DEPTHS) -> None:
        self.device, self.tiny, self.budget_s, self.depths = torch.device(device), tiny, budget_s, depths
        self.cuda = self.device.type == "cuda"
        self.rows: list[Row] = []
        self.errors: dict[str, str] = {}
        self.left_out: list[str] = []
        self._began = time.monotonic()

    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget_s - (time.monotonic() - self._began)

    def note(
        self, part: str, what: str, value: float | str, unit: str = "", *, passed: bool | None = None, **more: Any
    ) -> None:
        """Adds a row and prints it."""
        predicted, expected_unit = PREDICTIONS.get((part, what), (None, unit))
        assert unit == expected_unit, f"{part}, {what} is predicted in {expected_unit}"
        row = Row(part, what, value, unit, None if self.tiny else predicted, passed, more)
        self.rows.append(row)
        sys.stdout.write(f"[{self.budget_s - self.left_s():5.0f} s] {line(row)}\n")
        sys.stdout.flush()

    def attempt(self, name: str, call: Callable[[], Any], needs_s: float = 10.0) -> Any:
        """Calls what may fail alone; None where it did, or where the budget has no time for it."""
        if self.left_s() < needs_s:
            self.left_out.append(name)
            sys.stdout.write(f"left out for want of time: {name}\n")
            return None
        try:
            return call()
        except Exception as error:  # whatever it is, the other measurements are worth having
            self.errors[name] = traceback.format_exc()
            sys.stdout.write(f"FAILED {name}: {type(error).__name__}: {str(error).partition(chr(10))[0][:300]}\n")
            return None
        finally:
            self.free()

    def free(self) -> None:
        """Gives memory back, so that the next peak is its own."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """Most memory that tensors held since `free`; None on a CPU."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else None

    def ms(self, call: Callable[[], Any], repeats: int = 10, warm_up: int = 3) -> float:
        """Median milliseconds of a call, by the clock of the device."""
        repeats, warm_up = (1, 1) if self.tiny else (repeats, warm_up)
        for _ in range(warm_up):
            call()
        wait_for(self.device)
        times = []
        for _ in range(repeats):
            if self.cuda:
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                call()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            else:
                began = time.perf_counter()
                call()
                times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)

    @contextmanager
    def products(self, precision: str) -> Iterator[None]:
        """Matrix products and convolutions in fp32, tf32, or bf16 by autocast."""
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    def report(self) -> dict[str, Any]:
        """Everything found, for JSON."""
        facts = {
            "date": datetime.now(UTC).date().isoformat(),
            "command": "python " + " ".join(sys.argv),
            "device": torch.cuda.get_device_name(self.device) if self.cuda else "cpu",
            "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version() if self.cuda else None,
            "python": platform.python_version(),
            "tiny": self.tiny,
        }
        rows = [asdict(row) for row in self.rows]
        seconds = round(self.budget_s - self.left_s(), 1)
        return {**facts, "seconds": seconds, "rows": rows, "left_out": self.left_out, "errors": self.errors}


def line(row: Row) -> str:
    """A row of the table, in Markdown."""
    cells = [row.part, row.what, _number(row.value, row.unit), _number(row.predicted, row.unit)]
    cells.append("" if row.passed is None else "passed" if row.passed else "**FAILED**")
    cells.append(", ".join(f"{name} {_number(value, '')}" for name, value in row.more.items() if value is not None))
    return "| " + " | ".join(cells) + " |"


def table(rows: list[Row]) -> str:
    """All rows in Markdown."""
    head = ["| part | what | measured | predicted | parity | more |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *map(line, rows)]) + "\n"


def predicted_rows() -> list[Row]:
    """The table before there is a measurement."""
    return [Row(*key, "–", unit, value) for key, (value, unit) in PREDICTIONS.items()]


def _number(value: Any, unit: str) -> str:
    if value is None or value == "–":
        return "–"
    text = f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value}"
    return f"{text} {unit}".strip()


def _run(part: str, campaign: Campaign) -> None:
    module, _, function = part.partition(":")
    getattr(import_module(module), function)(campaign)


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts, prints the table, writes the JSON; 1 where something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="one or several of " + ", ".join(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks and one repetition")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS, help="generators that `train` measures")
    parser.add_argument("--budget-s", type=float, default=1200)
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the figures")
    parser.add_argument("--predictions", action="store_true", help="print the table of predictions alone")
    given = parser.parse_args(arguments)
    if given.predictions:
        sys.stdout.write(table(predicted_rows()))
        return 0
    names = given.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"`--parts` names {unknown}; expected some of {', '.join(PARTS)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; `--device cpu --tiny` tries the campaign without one")
    campaign = Campaign(given.device, given.tiny, given.budget_s, tuple(given.depths))
    for name in names:
        campaign.attempt(name, partial(_run, PARTS[name], campaign))
    report = campaign.report()
    sys.stdout.write("\n" + table(campaign.rows))
    if given.output is not None:
        given.output.write_text(json.dumps(report, indent=1) + "\n")
    failed = [f"{row.part}, {row.what}" for row in campaign.rows if row.passed is False]
    facts = {"seconds": report["seconds"], "failed": failed, "errors": sorted(campaign.errors)}
    sys.stdout.write(json.dumps({**facts, "left_out": campaign.left_out}) + "\n")
    return 1 if failed or campaign.errors else 0


if __name__ == "__main__":
    sys.exit(main())
