"""Granularity against spatial structure on an experiment's images, with one budget: docs/results/structure_study.json.

    .venv/bin/python benchmarks/structure_study.py --file demo/fashion.yaml --seeds 0 1 --folder runs/structures

Of each structure and seed the experiment is run from the tokenizer to the generators; a spatial one has no structure
generator. What is finished is kept: the same command goes on. Samples of granularity are scored at several numbers of
flow steps, with one feature network and one judge for all, and the one with the lowest distance is its best.
Prints the table: mean and range over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flow_steps import Study

from eval.results import RESULTS_FILE
from pipelines.configuration import dump_config, load_config
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.tokenizer import EvaluateTokenizerConfig

SETTINGS = {
    "granularity": ["tokenizer.model.structure=granularity"],
    "spatial": ["tokenizer.model.structure=spatial", "generators.structure=null", "evaluation.structure="],
}
OF_MAPS = "generators.structure."
NVG = str(Path(sys.executable).with_name("nvg"))


def main() -> None:
    """Runs what is missing, scores, writes, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--file", default="demo/fashion.yaml", help="the experiment")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--folder", type=Path, default=Path("runs/structures"))
    parser.add_argument("--flow-steps", type=int, nargs="+", default=[1, 2, 4, 10])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=Path("docs/results/structure_study.json"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the experiment, for both structures")
    given = parser.parse_args()
    runs = {(kind, seed): given.folder / f"{kind}-seed{seed}" for seed in given.seeds for kind in SETTINGS}
    tokenizers = {}
    for (kind, seed), folder in runs.items():
        own = [word for word in given.overrides if kind == "granularity" or not word.startswith(OF_MAPS)]
        for step in ("tokenizer", "precompute", "generators"):
            call("run", given.file, f"folder={folder}", f"seed={seed}", *SETTINGS[kind], *own, "--only", step)
        tokenizers[kind, seed] = tokenizer_scores(folder)
    torch.set_num_threads(1)
    study = Study.open(next(iter(runs.values())), given.folder / "features")
    cells = [
        {
            "structure": kind,
            "seed": seed,
            "tokenizer": tokenizers[kind, seed],
            "samples": best_samples(study, folder, given.flow_steps if kind == "granularity" else [1], given.samples),
        }
        for (kind, seed), folder in runs.items()
    ]
    result = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": "python " + " ".join(sys.argv),
        "held_out": study.real,
        "cells": cells,
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(table(cells))


def call(*arguments: str) -> None:
    """One command of the project; its failure ends the study."""
    if subprocess.run([NVG, *arguments], check=False).returncode:
        sys.exit(f"nvg {' '.join(arguments)} failed")


def tokenizer_scores(folder: Path) -> dict[str, Any]:
    """Scores of a run's tokenizer on the held-out images, its own source and features; kept beside the run."""
    output = folder / "tokenizer-evaluation"
    if not (output / RESULTS_FILE).is_file():
        scored = load_config(EvaluateConfig, folder / "configs" / "evaluation.yaml")
        config = EvaluateTokenizerConfig(
            output=str(output),
            tokenizer=str(folder / "tokenizer"),
            source=replace(scored.source, split="test", num_views=1),
            extractor_kind=scored.extractor_kind,
            session=scored.session,
        )
        file = folder / "configs" / "tokenizer-evaluation.yaml"
        file.write_text(dump_config(config))
        call("eval", "tokenizer", "--config", str(file))
    return json.loads((output / RESULTS_FILE).read_text())["scores"]


def best_samples(study: Study, folder: Path, flow_steps: list[int], num_samples: int) -> dict[str, Any]:
    """Scores at the number of flow steps that has the lowest distance; those of the others beside them."""
    sampling = study.config.sampling
    cells = {}
    for steps in flow_steps:
        setting = {
            "flow_steps": steps,
            "gumbel_split": sampling.gumbel_split,
            "structure_guidance": sampling.structure_guidance,
        }
        cells[steps] = study.score(study.spec(folder, 0, setting), num_samples)
        sys.stderr.write(f"{folder.name}, {steps} flow step(s): {json.dumps(cells[steps])}\n")
    best = min(cells, key=lambda steps: cells[steps][study.named.distance_key])
    return {"flow_steps": best, **cells[best], "at": cells}


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown: a row a figure, a column a structure; mean and range over the seeds."""
    key = "fd" if "fd" in cells[0]["samples"] else "fid"
    rows: dict[str, Callable[[dict[str, Any]], float]] = {
        "tokenizer: PSNR, dB ↑": lambda cell: cell["tokenizer"]["psnr_db"],
        "SSIM ↑": lambda cell: cell["tokenizer"]["ssim"],
        f"r{key.upper()} ↓": lambda cell: cell["tokenizer"][f"r{key}"],
        "codebook used, % ↑": lambda cell: 100 * cell["tokenizer"]["codebook"]["usage"],
    }
    for stage in range(len(cells[0]["tokenizer"]["codebook"]["stages"])):
        rows[f"used by stage {stage}, %"] = lambda cell, stage=stage: (
            100 * cell["tokenizer"]["codebook"]["stages"][stage]["usage"]
        )
    rows |= {
        f"samples: {key.upper()} ↓": lambda cell: cell["samples"][key],
        "read as asked, % ↑": lambda cell: 100 * cell["samples"]["class_accuracy"],
        "precision ↑": lambda cell: cell["samples"]["precision"],
        "recall ↑": lambda cell: cell["samples"]["recall"],
        "flow steps": lambda cell: cell["samples"]["flow_steps"],
    }
    lines = [f"| | {' | '.join(SETTINGS)} |", "|---" * (len(SETTINGS) + 1) + "|"]
    for name, value in rows.items():
        columns = []
        for kind in SETTINGS:
            found = [value(cell) for cell in cells if cell["structure"] == kind]
            columns.append(f"{statistics.mean(found):.4g} ({min(found):.4g} to {max(found):.4g})")
        lines.append(f"| {name} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
