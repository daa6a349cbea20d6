"""Images a second of both generators' training at the demo's size on one thread, beside another checkout.

    .venv/bin/python benchmarks/cpu_step.py --baseline ../before

The real loop trains on made-up records with the networks, batch and stages of `configs/demo/digits.yaml` and the plain
engine. Each checkout has a process of its own; they take turns, so that other work on the machine meets both alike.
Wall time and CPU time are both told, medians over the steps: on a busy machine CPU time is the one to compare. The
share of matrix products is of the operators' own time under the profiler; the share of the peak is the step's FLOPs by
its CPU time and by what products of 512 x 512 reach in the same process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.tokenizer import Dequantizer, DequantizerConfig
from nvg.training import ContentObjective, GeneratorLossConfig, StructureObjective
from pipelines.batches.order import ArraySource
from pipelines.train.config import LoopConfig, OptimizerConfig
from pipelines.train.costs import flops_per_image
from pipelines.train.generator import ContentRun, StructureRun
from pipelines.train.launch import run_training
from pipelines.train.task import TrainingTask

KINDS = ("content", "structure")
BATCH, NUM_RECORDS, WARM_UP = 64, 512, 3
SPACE: dict[str, Any] = {"num_positions": 16, "latent_channels": 8}
CODEBOOK_SIZE = 64
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")


def main() -> None:
    """Prints a table of both checkouts, and all numbers as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--baseline", type=Path, help="folder of another checkout, e.g. of `git worktree add`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of each kind in a round")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    here = Path(__file__).parents[1]
    sides = {"this": here} | ({"baseline": given.baseline} if given.baseline else {})
    servers = {name: Server(folder) for name, folder in sides.items()}
    answers: dict[str, dict[str, list[dict[str, Any]]]] = {name: {kind: [] for kind in given.kinds} for name in sides}
    for _ in range(given.rounds):
        for kind in given.kinds:
            for name, server in servers.items():
                answers[name][kind].append(server.ask(kind=kind, steps=given.steps, profiled=False))
    results = {
        name: {kind: joined(answers[name][kind], server.ask(kind=kind, steps=8, profiled=True)) for kind in given.kinds}
        for name, server in servers.items()
    }
    for server in servers.values():
        server.close()
    sys.stdout.write(table(results))
    facts = {"rounds": given.rounds, "steps": given.steps, "batch": BATCH, "torch": torch.__version__}
    sys.stdout.write(json.dumps({"settings": {**facts, "load": os.getloadavg()}, **results}) + "\n")


def joined(rounds: list[dict[str, Any]], profiled: dict[str, Any]) -> dict[str, float]:
    """Numbers of one kind in one checkout over all rounds."""
    wall, cpu = (statistics.median(value for one in rounds for value in one[name]) for name in ("wall_s", "cpu_s"))
    peak = max(one["peak_flops"] for one in [*rounds, profiled])
    return {
        "images_per_s": BATCH / wall,
        "images_per_cpu_s": BATCH / cpu,
        "best_images_per_cpu_s": BATCH / min(value for one in rounds for value in one["cpu_s"]),
        "matrix_product_share": profiled["matrix_product_share"],
        "peak_gflops": peak / 1e9,
        "share_of_peak": profiled["flops"] / cpu / peak,
    }


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """A line for every kind and checkout, and the ratio to the baseline."""
    lines = [f"{'':22s}{'images/s':>10s}{'per CPU s':>11s}{'best':>8s}{'products':>10s}{'of peak':>9s}"]
    for kind in results["this"]:
        for name, kinds in results.items():
            one = kinds[kind]
            lines.append(
                f"{kind + ', ' + name:22s}{one['images_per_s']:10.1f}{one['images_per_cpu_s']:11.1f}"
                f"{one['best_images_per_cpu_s']:8.1f}{one['matrix_product_share']:10.1%}{one['share_of_peak']:9.1%}"
            )
        if "baseline" in results:
            keys = ("images_per_s", "images_per_cpu_s", "best_images_per_cpu_s")
            ratios = [results["this"][kind][key] / results["baseline"][kind][key] for key in keys]
            lines.append(f"{'  ratio':22s}{ratios[0]:10.2f}{ratios[1]:11.2f}{ratios[2]:8.2f}")
    return "\n".join(lines) + "\n"


class Server:
    """A process that trains with one checkout's code when it is asked.

    Args:
        folder: the checkout; the interpreter is this one's.
    """

    def __init__(self, folder: Path) -> None:
        path = {"PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, **path},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.questions, self.answers = self.process.stdin, self.process.stdout

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer of `measure`."""
        self.questions.write(json.dumps(question) + "\n")
        self.questions.flush()
        for line in self.answers:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError(f"the process of {self.process.args} has ended; its messages stand above")

    def close(self) -> None:
        """End the process."""
        self.questions.close()
        self.process.wait()


def serve() -> None:
    """Answers questions of standard input, one a line, until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a training tells belongs to the messages
    torch.set_num_threads(1)
    for line in sys.stdin:
        answers.write(f"answer {json.dumps(measure(**json.loads(line)))}\n")
        answers.flush()


def measure(*, kind: str, steps: int, profiled: bool) -> dict[str, Any]:
    """Trains for some steps; seconds of each step after the first, and the rate of large matrix products."""
    ticks: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        config = run_config(kind, folder, steps + WARM_UP)
        if profiled:
            with profile(activities=[ProfilerActivity.CPU]) as watch:
                run_training(config, lambda config: build_task(config, ticks))
            own = {event.key: event.self_cpu_time_total for event in watch.key_averages()}
            products = sum(seconds for name, seconds in own.items() if name.startswith(PRODUCTS))
            share = products / sum(seconds for name, seconds in own.items() if name.startswith("aten::"))
        else:
            run_training(config, lambda config: build_task(config, ticks))
            share = None
    seconds = np.diff(np.array(ticks[WARM_UP:]), axis=0)
    return {
        "wall_s": seconds[:, 0].tolist(),
        "cpu_s": seconds[:, 1].tolist(),
        "matrix_product_share": share,
        "flops": BATCH * flops_per_image(config.model, config.loss.stages_per_image),
        "peak_flops": peak_flops(),
    }


def run_config(kind: str, folder: str, steps: int) -> Any:
    """The demo's generator, for some steps, without logs or checkpoints in between."""
    common: dict[str, Any] = {
        "run_folder": folder,
        "loss": GeneratorLossConfig(stages_per_image=1),
        "optimizer": OptimizerConfig(lr=0.006, total_images=steps * BATCH, global_batch=BATCH),
        "loop": LoopConfig(
            engine="plain", log_every_steps=steps, checkpoint_every_steps=steps, threads_per_rank=1, precision="fp32"
        ),
    }
    sizes: dict[str, Any] = {"depth": 6, "width": 64, "num_classes": 10, **SPACE}
    if kind == "content":
        return ContentRun(content=ContentGeneratorConfig(**sizes, codebook_size=CODEBOOK_SIZE), **common)
    return StructureRun(structure=StructureGeneratorConfig(**sizes), **common)


def build_task(config: Any, ticks: list[tuple[float, float]]) -> TrainingTask:
    """The real objective on made-up records; `ticks` gets wall and CPU time whenever a step's records are asked for."""
    stream = torch.Generator().manual_seed(0)
    columns = {
        "label": torch.randint(0, 10, (NUM_RECORDS,), generator=stream),
        "content_ids": torch.randint(0, CODEBOOK_SIZE, (NUM_RECORDS, 31), generator=stream),
        "structure": torch.stack([torch.randperm(16, generator=stream) for _ in range(NUM_RECORDS)]),
    }

    def fetch(rows: np.ndarray) -> dict[str, Tensor]:
        ticks.append((time.perf_counter(), time.process_time()))
        return {name: values[rows] for name, values in columns.items()}

    dequantizer = Dequantizer(DequantizerConfig(**SPACE, codebook_size=CODEBOOK_SIZE))
    torch.nn.init.normal_(dequantizer.codebook, std=0.3)
    objective: Any
    if config.kind == "content":
        objective = ContentObjective(ContentGenerator(config.model), dequantizer, config.loss)
    else:
        objective = StructureObjective(StructureGenerator(config.model), dequantizer, config.loss)
    return TrainingTask(
        kind=config.kind,
        objective=objective,
        model_config=asdict(config.model),
        batches=ArraySource(np.arange(NUM_RECORDS).reshape(-1, 1), fetch, {"name": "made up"}),
    )


def peak_flops(size: int = 512, repeats: int = 10) -> float:
    """Operations a second of CPU time in the fastest of some matrix products."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        torch.mm(left, right)
        best = min(best, time.thread_time() - start)
    return 2 * size**3 / best


if __name__ == "__main__":
    main()
