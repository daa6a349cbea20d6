"""Tokenizers of the demo side by side: granularity against spatial structure, 64 against 256 entries, several seeds.

    .venv/bin/python benchmarks/tokenizer_study.py --seeds 0 1 2 --folder runs/tokenizer_study

All are trained on the same images for the same number of them, differing in one setting, and scored on the held-out
images with one feature network. A training that is finished is kept. Prints the table; writes `tokenizer_study.json`,
and the losses and the usage of every logged step of the demo's own setting as `tokenizer_curves.jsonl` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.session import cluster_session
from eval.pictures.drawing import LIGHT, new_figure, place, to_png
from eval.scores.adherence import encode_images, split_agreement
from eval.scores.judge import class_accuracy, train_judge
from nvg.checkpoints import load_network
from nvg.pixels import to_model_range, to_uint8
from nvg.tokenizer import Tokenizer
from pipelines.configuration import load_config
from pipelines.evaluate.tokenizer import EvaluateTokenizerConfig, run_evaluate_tokenizer
from pipelines.experiment.steps import ExperimentConfig
from pipelines.sources import load_images, open_source
from pipelines.train.tokenizer import train_tokenizer

VARIANTS = {
    "granularity, 64 entries": ["tokenizer.model.structure=granularity"],
    "spatial, 64 entries": ["tokenizer.model.structure=spatial"],
    "granularity, 256 entries": ["tokenizer.model.codebook_size=256"],
}
CURVES_OF = next(iter(VARIANTS))


def main() -> None:
    """Trains, scores, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/tokenizer_study"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/tokenizer_study.json"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the demo's configuration, for all")
    given = parser.parse_args()
    config = load_config(ExperimentConfig, "demo/digits.yaml", [f"folder={given.folder}", *given.overrides])
    assert config.tokenizer is not None
    study = Study(config, given.folder)
    with cluster_session(config.session):
        cells = [
            study.cell(name, overrides + given.overrides, seed)
            for name, overrides in VARIANTS.items()
            for seed in given.seeds
        ]
    result = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": "python " + " ".join(sys.argv),
        "images": config.tokenizer.optimizer.total_images,
        "cells": cells,
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    log = given.folder / folder_name(CURVES_OF, given.seeds[0]) / "tokenizer" / "metrics.jsonl"
    shutil.copyfile(log, given.output.with_name("tokenizer_curves.jsonl"))
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    given.output.with_name("tokenizer_curves.png").write_bytes(draw_curves(rows))
    sys.stdout.write(table(cells))


@dataclass(frozen=True)
class Study:
    """The held-out images, the judge, and where everything is kept."""

    config: ExperimentConfig
    folder: Path

    @cached_property
    def _held_out(self) -> Any:
        assert self.config.tokenizer is not None and self.config.evaluation is not None  # noqa: PT018
        source = replace(self.config.tokenizer.source, num_views=1, view_policy="center")
        judged = load_images(open_source(replace(source, split="judge")))
        judge = train_judge(judged.images, judged.labels, num_classes=10, config=self.config.evaluation.judge)
        return load_images(open_source(replace(source, split="test"))), judge

    def cell(self, name: str, overrides: list[str], seed: int) -> dict[str, Any]:
        """One tokenizer: trained, scored.

        Args:
            name: of the variant.
            overrides: what makes it.
            seed: of the training.

        Returns:
            Its scores.
        """
        folder = self.folder / folder_name(name, seed)
        values = [f"folder={folder}", f"seed={seed}", "tokenizer.loop.engine=plain", *overrides]
        run = load_config(ExperimentConfig, "demo/digits.yaml", values).tokenizer
        assert run is not None
        began = time.monotonic()
        weights = train_tokenizer(run)
        seconds = time.monotonic() - began
        source = replace(run.source, num_views=1, view_policy="center", split="test")
        evaluation = EvaluateTokenizerConfig(
            output=str(self.folder / "evaluation" / folder.name),
            tokenizer=str(weights),
            source=source,
            extractor_path=self._extractor(),
            rounding="round",
            session=self.config.session,
        )
        scores = run_evaluate_tokenizer(evaluation)["scores"]
        return {"variant": name, "seed": seed, "training_s": seconds, "scores": scores, **self._own_scores(weights)}

    def _extractor(self) -> str:
        """The feature network the first evaluation trained; empty before that."""
        found = sorted((self.folder / "evaluation").glob("*/feature-network/*"))
        return str(found[0].absolute()) if found else ""

    def _own_scores(self, weights: Path) -> dict[str, float]:
        """What `nvg eval tokenizer` does not tell."""
        digits, judge = self._held_out
        tokenizer = load_network(Tokenizer, weights)
        images_BCHW = to_model_range(digits.images)
        with torch.inference_mode():
            _, structure_BL = tokenizer.tokenize(images_BCHW)
            found_BCHW = tokenizer.reconstruct(images_BCHW)
        found_BHWC = to_uint8(found_BCHW, "round")
        read_B = judge.read(found_BHWC)
        scores = {
            "mean_squared_error": float((found_BCHW - images_BCHW).square().mean()),
            "read_correctly": class_accuracy(read_B, np.asarray(digits.labels), 10)[0],
        }
        if tokenizer.config.structure == "granularity":
            latent_BLC, num_splits = encode_images(tokenizer, found_BHWC), tokenizer.dequantizer.layout.last_stage
            scores["splits_kept"] = float(split_agreement(latent_BLC, structure_BL, num_splits).mean())
        return scores


def folder_name(variant: str, seed: int) -> str:
    """Of one tokenizer's run."""
    return f"{variant.replace(', ', '-').replace(' ', '-')}-seed{seed}"


def draw_curves(rows: list[dict[str, float]]) -> bytes:
    """Losses and usage of each stage over the images seen, as PNG bytes."""
    panels = {
        "L1": {"L1": "l1"},
        "quantiser loss": {"quantiser": "quantizer"},
        "codebook used, by stage": {str(stage): f"codebook_{stage}_usage" for stage in range(5)},
        "perplexity, by stage": {str(stage): f"codebook_{stage}_perplexity" for stage in range(5)},
    }
    figure = new_figure(11.2, 2.5)
    figure.patch.set(alpha=1.0, facecolor="white")
    images = [row["images"] / 1000 for row in rows]
    for number, (title, lines) in enumerate(panels.items()):
        axes = place(figure, 0.45 + 2.75 * number, 0.35, 2.2, 1.65)
        for shade, (label, key) in enumerate(lines.items()):
            alpha = 1.0 - 0.16 * shade
            axes.plot(images, [row[key] for row in rows], color=LIGHT.accent, alpha=alpha, linewidth=1.4)
            if len(lines) > 1:
                axes.text(
                    1.015 * images[-1], rows[-1][key], label, color=LIGHT.ink, alpha=alpha, fontsize=7, va="center"
                )
        axes.set_title(title, color=LIGHT.ink, fontsize=9, loc="left")
        axes.set_xlabel("thousand images", color=LIGHT.ink, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(colors=LIGHT.ink, labelsize=7.5, length=0)
        axes.grid(color=LIGHT.faint, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return to_png(figure)


def table(cells: list[dict[str, Any]]) -> str:
    """Mean and range over the seeds, a row for each figure, a column for each variant."""
    rows = {
        "reconstruction, mean squared error ×1000": lambda cell: 1000 * cell["mean_squared_error"],
        "PSNR, dB": lambda cell: cell["scores"]["psnr_db"],
        "SSIM": lambda cell: cell["scores"]["ssim"],
        "rFID": lambda cell: cell["scores"]["rfid"],
        "read correctly, %": lambda cell: 100 * cell["read_correctly"],
        "splits kept by the reconstruction, %": lambda cell: 100 * cell.get("splits_kept", math.nan),
        "codebook used, %": lambda cell: 100 * cell["scores"]["codebook"]["usage"],
        "perplexity": lambda cell: cell["scores"]["codebook"]["perplexity"],
    }
    for stage in range(len(cells[0]["scores"]["codebook"]["stages"])):
        rows[f"used by stage {stage}, %"] = lambda cell, stage=stage: (
            100 * cell["scores"]["codebook"]["stages"][stage]["usage"]
        )
    names = list(dict.fromkeys(cell["variant"] for cell in cells))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for title, figure in rows.items():
        columns = [[figure(cell) for cell in cells if cell["variant"] == name] for name in names]
        texts = [spread(values) for values in columns]
        lines.append(f"| {title} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Mean and range; a dash where there is no such figure."""
    if math.isnan(values[0]):
        return "–"
    return f"{statistics.fmean(values):.4g} ({min(values):.4g}–{max(values):.4g})"


if __name__ == "__main__":
    main()
