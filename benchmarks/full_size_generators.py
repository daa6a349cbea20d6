"""Real ZeRO-1 steps of the published sizes on whatever is here, under the deepspeed launcher.

    .venv/bin/python benchmarks/full_size_generators.py --output docs/results/full_size_generators.json

d16 content and structure take two steps in bf16 (one image, one stage of it), save, are started again, resume and take
a third. d20 and d24 take one step and save nothing. Every process says how much memory it held at most. What the
machine has too little memory for is left out and named. Records are made up, without features of DINOv2; sizes are
the presets'.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from generator_step import build_task

from cluster.ranks import Ranks
from cluster.session import free_port
from pipelines.configuration import load_config
from pipelines.run_folder import read_metrics
from pipelines.train.config import DeepSpeedConfig
from pipelines.train.costs import state_bytes
from pipelines.train.generator import GeneratorRunConfig
from pipelines.train.launch import run_on_this_rank
from pipelines.train.plan import generator_work
from pipelines.train.step import Step

GIB = 2.0**30
SPARE = 1.1  # of the memory that the states need, for activations of one sequence and the libraries
PRESETS = [f"{kind}/d{depth}.yaml" for depth in (16, 20, 24) for kind in ("content", "structure")]
OVERRIDES = [
    "data.path=made-up", "optimizer.global_batch=1", "optimizer.micro_batch=1", "loss.stages_per_image=1",
    "loss.repa_weight=0",
    "launch.launcher=process", "loop.log_every_steps=1", "loop.checkpoint_every_steps=1000", "deepspeed.zero_stage=1",
]  # fmt: skip


def main() -> None:
    """The rank's part where the launcher started this, else the whole table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", default=None, help="JSON file for the table")
    parser.add_argument("--presets", nargs="*", default=PRESETS)
    parser.add_argument("--rank-of", default=None, help="preset that this process trains; set by the launcher's call")
    parser.add_argument("--folder", default="")
    parser.add_argument("--last-step", type=int, default=0, help="0 takes one step and saves nothing")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the deepspeed launcher; unused")
    given = parser.parse_args()
    if given.rank_of is not None:
        _rank(given.rank_of, given.folder, given.last_step)
        return
    table = [_row(preset) for preset in given.presets]
    facts = {"cores": os.cpu_count(), "memory_gib": psutil.virtual_memory().total / GIB, "torch": torch.__version__}
    if given.output is not None:
        Path(given.output).write_text(json.dumps({"machine": facts, "rows": table}, indent=1) + "\n")


def _row(preset: str) -> dict[str, Any]:
    config = load_config(GeneratorRunConfig, preset, OVERRIDES)
    parameters = generator_work(config).num_parameters
    needed = SPARE * state_bytes(parameters, zero_stage=1, world_size=1, offload=False).total
    free = psutil.virtual_memory().available
    row: dict[str, Any] = {"preset": preset, "parameters": parameters}
    if needed > free:
        row["left out"] = f"{needed / GIB:.1f} GiB are needed, {free / GIB:.1f} GiB are free"
    elif "/d16" in preset:
        with tempfile.TemporaryDirectory() as folder:
            row["two steps, saved"] = _launch(preset, folder, 2)
            row["resumed, third step"] = _launch(preset, folder, 3)
            losses = [entry["loss"] for entry in read_metrics(Path(folder))]
        assert len(losses) == 3, losses
        assert all(map(math.isfinite, losses)), losses
        row["losses"] = losses
    else:
        row["one step"] = _launch(preset, "", 0)
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()
    return row


def _launch(preset: str, folder: str, last_step: int) -> dict[str, float]:
    """Seconds and peak GiB of one launch."""
    root, scripts = Path(__file__).resolve().parents[1], Path(sys.executable).parent
    command = [str(scripts / "deepspeed"), "--num_gpus", "1", "--master_port", str(free_port()), __file__]
    command += ["--rank-of", preset, "--last-step", str(last_step), f"--folder={folder}"]
    environment = {**os.environ, "PYTHONPATH": str(root), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    said = next(line for line in done.stdout.splitlines() if line.startswith("peak "))
    return {"seconds": round(time.perf_counter() - start, 1), "peak_gib": float(said.split()[1])}


def _rank(preset: str, folder: str, last_step: int) -> None:
    if last_step:
        run = [f"run_folder={folder}", f"loop.stop_after_steps={last_step}"]
        config = load_config(GeneratorRunConfig, preset, [*OVERRIDES, *run])
        run_on_this_rank(config, lambda config: build_task(config, online=False, watch=None))
    else:
        _one_step(load_config(GeneratorRunConfig, preset, OVERRIDES))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / GIB
    sys.stdout.write(f"\npeak {peak:.2f} GiB\n")


def _one_step(config: GeneratorRunConfig) -> None:
    """Forward, backward and update of one image's stage under ZeRO-1."""
    ranks = Ranks.read()
    ranks.join()
    config = replace(config, deepspeed=DeepSpeedConfig(zero_stage=1))
    task = build_task(config, online=False, watch=None)
    step = Step(task, config, ranks, universal=False)
    step.set_training(True)
    batch = next(task.batches.batches(start_step=0, global_batch=1, seed=0, ranks=ranks))
    numbers = step(step.feed.prepared(batch, seed=0, step=0), want_grad_norm=True)
    assert math.isfinite(float(numbers.metrics["loss"])), numbers
    assert numbers.grad_norm is not None
    assert math.isfinite(numbers.grad_norm), numbers
    assert step.total_skipped == 0


if __name__ == "__main__":
    main()
