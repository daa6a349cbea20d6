"""What flow steps, the draw of splits and structure guidance do to samples, over trainings of several seeds.

    .venv/bin/python benchmarks/flow_steps.py --runs runs/seed0 runs/seed1 runs/seed2
    .venv/bin/python benchmarks/flow_steps.py --runs runs/fashion --output docs/results/flow_steps_fashion.json

Each folder is a finished experiment, `nvg demo` or another, trained with a seed of its own. Every cell is drawn and
scored in this process on one thread, few steps first, with the feature network and the judge of the first run's
evaluation for all trainings. A cell is written as soon as it is scored; the same command goes on where it was stopped,
and draws anew what was trained anew. Writes the results, a picture beside them, and prints the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.files import write_atomically
from eval.evaluation import EvaluationData
from eval.features.extractors import (
    ExtractorSpec,
    build_extractor,
    extract,
    given_extractor,
    trained_extractor,
)
from eval.pictures.drawing import LIGHT, place, to_png, white_figure
from eval.pool.samplers import GeneratorSpec
from eval.scores.judge import Judge, class_accuracy, train_judge
from eval.scores.metrics import score_features
from nvg.errors import UserError
from nvg.pixels import ImageArray
from pipelines.configuration import load_config
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.images import load_data

STEPS = (1, 2, 4, 10, 25)
GUIDANCE = (1.0, 2.0, 4.0)
GUMBEL = (False, True)
BATCH = 250
TITLES = {
    "fid": "FID ↓",
    "fd": "FD ↓",
    "class_accuracy": "accuracy ↑",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "distance_within_class": "distance within a class",
}


def main() -> None:
    """Draws and scores what is missing, writes, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of finished experiments")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--guidance", type=float, nargs="+", default=list(GUIDANCE), help="of the structure")
    parser.add_argument("--work", type=Path, default=Path("runs/flow_steps"), help="where the feature network is kept")
    parser.add_argument("--output", type=Path, default=Path("docs/results/flow_steps.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = Study.open(given.runs[0], given.work)
    kept = json.loads(given.output.read_text())["cells"] if given.output.exists() else []
    cells: dict[str, dict[str, Any]] = {cell["identity"]: cell for cell in kept}
    runs = [run for run in given.runs if _finished(study, run)]
    wanted = []
    for steps, run, gumbel, guidance in product(sorted(given.steps), runs, GUMBEL, given.guidance):
        setting = {"flow_steps": steps, "gumbel_split": gumbel, "structure_guidance": guidance}
        spec = study.spec(run, given.seed, setting)
        identity = _identity(spec, given.samples)
        wanted.append(identity)
        if identity not in cells:
            cells[identity] = {"identity": identity, "run": run.name, **setting, **study.score(spec, given.samples)}
            _write(given, cells.values(), study)
            sys.stderr.write(json.dumps(cells[identity]) + "\n")
    chosen = [cells[identity] for identity in wanted]
    if not chosen:
        raise UserError("--runs: found no finished experiment; train with `nvg demo folder=… seed=…` first")
    _write(given, cells.values(), study)
    given.output.with_suffix(".png").write_bytes(draw(means(chosen), study.real))
    sys.stdout.write(table(means(chosen), study.real))


@dataclass(frozen=True)
class Study:
    """What all cells share: how the first run was evaluated, the real images, the feature network and the judge."""

    config: EvaluateConfig
    data: EvaluationData
    named: ExtractorSpec
    extractor: Any
    judge: Judge
    reference_NF: NDArray[np.float32]
    real: dict[str, float]

    @classmethod
    def open(cls, run: Path, work: Path) -> Study:
        """Reads the images; trains network and judge, the same whatever the seed of a training."""
        config = replace(_evaluation_of(run), output=str(work))
        data = load_data(config.source)
        assert data.judge is not None
        classes = len(data.class_names)
        named = given_extractor(config) or trained_extractor(config, data.train, classes)
        extractor = build_extractor(named)
        judge = train_judge(data.judge.images, data.judge.labels, num_classes=classes, config=config.judge)
        reference_NF = extract(extractor, data.train.images).features_NF
        study = cls(config, data, named, extractor, judge, reference_NF, real={})
        return replace(study, real=study._scores(data.held_out.images, data.held_out.labels))

    def spec(self, run: Path, seed: int, setting: dict[str, Any]) -> GeneratorSpec:
        """What a cell draws from: the run's own sampling but for the setting.

        Raises:
            UserError: the experiment in `run` is not finished.
        """
        config = _evaluation_of(run).resolved()
        sampling = replace(
            config.sampling,
            num_flow_steps=setting["flow_steps"],
            gumbel_split=setting["gumbel_split"],
            structure_guidance=setting["structure_guidance"],
        )
        return replace(config.generator_spec(len(self.data.class_names)), sampling=sampling, seed=seed)

    def score(self, spec: GeneratorSpec, num_samples: int) -> dict[str, float]:
        """Draws samples of all classes in turn and scores them; also the seconds it took on one thread."""
        sampler, began = spec.build("cpu"), time.process_time()
        indices_N = torch.arange(num_samples)
        labels_N = indices_N % spec.num_classes
        drawn = [
            sampler.draw(labels_N[start : start + BATCH], indices_N[start : start + BATCH])
            for start in range(0, num_samples, BATCH)
        ]
        cpu_seconds = time.process_time() - began
        return {**self._scores(np.concatenate(drawn), labels_N.numpy()), "sampling_cpu_s": cpu_seconds}

    def _scores(self, images_NHWC: ImageArray, labels_N: NDArray[np.integer]) -> dict[str, float]:
        features_NF = extract(self.extractor, images_NHWC).features_NF
        key, classes = self.named.distance_key, len(self.data.class_names)
        seen_NF = features_NF if self.judge.looks_with(self.named) else None
        return {
            "num_images": len(images_NHWC),
            "class_accuracy": class_accuracy(self.judge.read(images_NHWC, seen_NF), labels_N, classes)[0],
            **score_features(
                features_NF,
                None,
                self.reference_NF,
                distance_key=key,
                manifold_images=self.config.images_of_a_side,
            ),
            "distance_within_class": distance_within_class(features_NF, labels_N),
        }


def _evaluation_of(run: Path) -> EvaluateConfig:
    """As the run was scored, its networks where the run lies now."""
    config = load_config(EvaluateConfig, run / "configs" / "evaluation.yaml")
    here = {name: str(run / name) for name in ("tokenizer", "content", "structure") if getattr(config, name)}
    return replace(config, **here)


def distance_within_class(features_NF: NDArray[np.float32], labels_N: NDArray[np.integer]) -> float:
    """How varied the images of a class are: mean distance of two of them in feature space, averaged over classes."""
    means_of_classes = []
    for label in np.unique(labels_N):
        rows = torch.from_numpy(features_NF[labels_N == label]).double()
        means_of_classes.append(float(torch.pdist(rows).mean()))
    return statistics.mean(means_of_classes)


def means(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a setting: the mean of each score over the trainings, and how many there are."""
    rows = []
    keys = ("gumbel_split", "structure_guidance", "flow_steps")
    for setting in sorted({tuple(cell[key] for key in keys) for cell in cells}):
        found = [cell for cell in cells if tuple(cell[key] for key in keys) == setting]
        scores = {name: statistics.mean(cell[name] for cell in found) for name in TITLES if name in found[0]}
        rows.append({**dict(zip(keys, setting, strict=True)), "trainings": len(found), **scores})
    return rows


def table(rows: list[dict[str, Any]], real: dict[str, float]) -> str:
    """Markdown: a line a setting, then the real images."""
    head = ["split", "guidance", "steps", *(title for name, title in TITLES.items() if name in real), "trainings"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        split = "Gumbel" if row["gumbel_split"] else "top half"
        name = [split, f"{row['structure_guidance']:g}", str(row["flow_steps"])]
        lines.append(f"| {' | '.join([*name, *_numbers(row), str(row['trainings'])])} |")
    lines.append(f"| {' | '.join(['held-out images', '', '', *_numbers(real), ''])} |")
    return "\n".join(lines) + "\n"


def _numbers(row: dict[str, Any]) -> list[str]:
    shares = ("class_accuracy",)
    return [f"{100 * row[name]:.1f} %" if name in shares else f"{row[name]:.3g}" for name in TITLES if name in row]


def draw(rows: list[dict[str, Any]], real: dict[str, float]) -> bytes:
    """Every score over the steps, a line for each guidance, dashed where splits are drawn; PNG bytes."""
    shown = {name: title for name, title in TITLES.items() if name in real}
    guidances = sorted({row["structure_guidance"] for row in rows})
    figure = white_figure(2.4 * len(shown) + 0.5, 2.7)
    for number, (name, title) in enumerate(shown.items()):
        axes = place(figure, 0.4 + 2.4 * number, 0.35, 1.9, 1.85)
        for gumbel, (shade, guidance) in product(GUMBEL, enumerate(guidances)):
            line = [row for row in rows if (row["gumbel_split"], row["structure_guidance"]) == (gumbel, guidance)]
            axes.plot(
                [row["flow_steps"] for row in line],
                [row[name] for row in line],
                "--" if gumbel else "-",
                color=LIGHT.accent,
                alpha=0.35 + 0.6 * shade / max(1, len(guidances) - 1),
                marker="o",
                markersize=3,
                label=f"{'Gumbel' if gumbel else 'top half'}, guidance {guidance:g}",
            )
        axes.axhline(real[name], color=LIGHT.faint, linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xticks(STEPS, [str(steps) for steps in STEPS])
        axes.minorticks_off()
        axes.set_title(title, color=LIGHT.ink, fontsize=9, loc="left")
        axes.set_xlabel("flow steps", color=LIGHT.ink, fontsize=8)
        axes.tick_params(colors=LIGHT.ink, labelsize=7.5, length=0)
        axes.grid(color=LIGHT.faint, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if number == 0:
            axes.legend(fontsize=5.5, frameon=False)
    return to_png(figure)


def _finished(study: Study, run: Path) -> bool:
    """Whether an experiment can be drawn from; says why not."""
    try:
        study.spec(run, 0, {"flow_steps": 1, "gumbel_split": False, "structure_guidance": 1.0}).identity()
    except UserError as error:
        sys.stderr.write(f"passed over: {run}: {error}\n")
        return False
    return True


def _identity(spec: GeneratorSpec, num_samples: int) -> str:
    """Short hash of the weights, every setting of the draw and the number of samples."""
    described = json.dumps({**spec.identity(), "num_samples": num_samples}, sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _write(given: argparse.Namespace, cells: Any, study: Study) -> None:
    result = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": "python " + " ".join(sys.argv),
        "torch": torch.__version__,
        "held_out": study.real,
        "cells": list(cells),
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.output, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
