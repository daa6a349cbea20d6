"""Measures how well samples follow given structures on a finished demo: docs/results/structure_control.json.

    .venv/bin/python benchmarks/structure_control.py --run runs/demo

Given are the maps (and contents) of every held-out digit, one sample each of its own class, and four drawn masks. Free
samples of the same classes from the same noise are held against the same maps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from eval.controlled import ControlledSamples, compare, draw_best, draw_samples
from eval.pool.samplers import GeneratorSampler, GeneratorSpec
from eval.scores.adherence import encode_images, measure, split_agreement
from eval.scores.judge import Judge, class_accuracy, train_judge
from nvg.checkpoints.runs import weights_folder
from nvg.granularity import StageLayout
from nvg.pixels import ImageArray, to_model_range
from nvg.sampling import give_contents, give_structure, mask_structure
from nvg.tokenizer import Tokenizer
from pipelines.configuration import load_config
from pipelines.evaluate.config import EvaluateConfig
from pipelines.sources import load_images, open_source

MASK_SIDE = 128
SAMPLES_PER_CLASS = 20
NOISE_LEVELS = (0.02, 0.05, 0.1)  # of the latents' standard deviation: how brittle maps are in themselves


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--split", default="test", help="digits whose structure is given: test, or judge to choose on")
    parser.add_argument("--images", type=int, help="how many of them, evenly spread; default: all")
    parser.add_argument("--candidates", type=int, nargs="*", default=[4, 8])
    parser.add_argument("--output", type=Path, default=Path("docs/results/structure_control.json"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the run's evaluation configuration")
    given = parser.parse_args()
    config = load_config(EvaluateConfig, given.run / "configs" / "evaluation.yaml", given.overrides)
    began = time.monotonic()
    bench = Bench(config, given.run, given.split, given.images)
    reached = reach(bench.sampler.tokenizer, bench.images_BHWC, bench.labels_B)
    results: dict[str, Any] = {"reach": reached, "structures": bench.structures(given.candidates)}
    results |= {"contents": bench.contents(), "masks": bench.masks()}
    results["protocol"] = {
        "command": "python " + " ".join(sys.argv),
        "sampling": config.sampling.__dict__,
        "split": given.split,
        "samples": len(bench.labels_B),
        "seconds": round(time.monotonic() - began, 1),
        "torch_threads": torch.get_num_threads(),
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(json.dumps(results, indent=1) + "\n")


class Bench:
    """The networks, the digits and one free sample for each of them."""

    def __init__(self, config: EvaluateConfig, run: Path, split: str, num_images: int | None = None) -> None:
        spec = GeneratorSpec(
            tokenizer=str(weights_folder("run", str(run / "tokenizer"))),
            content=str(weights_folder("run", str(run / "content"))),
            structure=str(weights_folder("run", str(run / "structure"))),
            num_classes=10,
            sampling=config.sampling,
            rounding="round",
        )
        source = replace(config.source, num_views=1, view_policy="center")
        digits, judged = (load_images(open_source(replace(source, split=name))) for name in (split, "judge"))
        self.judge: Judge = train_judge(judged.images, judged.labels, num_classes=10, config=config.judge)
        self.sampler: GeneratorSampler = spec.build("cpu")
        count = len(digits.labels)
        rows = np.linspace(0, count - 1, min(count, num_images or count)).round().astype(int)
        self.images_BHWC, self.labels_B = digits.images[rows], torch.from_numpy(digits.labels[rows]).long()
        self.indices_B = torch.arange(len(self.labels_B))
        self.ids_BT, self.structure_BL = self.sampler.tokenizer.tokenize(to_model_range(self.images_BHWC))
        self.layout = StageLayout(self.structure_BL.shape[1])
        self.free = draw_samples(self.sampler, self.labels_B, self.indices_B)

    def structures(self, candidates: list[int]) -> dict[str, Any]:
        """The first M splits given; all of them also with several draws of each sample."""
        rows = {}
        for num_splits in range(1, self.layout.num_structure_stages + 1):
            given = give_structure(self.structure_BL, num_splits)
            drawn = draw_samples(self.sampler, self.labels_B, self.indices_B, given)
            rows[f"{num_splits} splits"] = self._row(drawn, self.free, num_splits)
        splits = self.layout.num_structure_stages
        for count in candidates:
            given = give_structure(self.structure_BL, splits)
            best, best_free = (
                draw_best(
                    self.sampler,
                    self.labels_B,
                    self.indices_B,
                    prefix,
                    self.structure_BL,
                    splits,
                    num_candidates=count,
                )
                for prefix in (given, None)
            )
            rows[f"{splits} splits, best of {count}"] = self._row(best, self.free, splits) | {
                "best free": measure(best_free.latent_BLC, self.structure_BL, splits).__dict__
            }
        return rows

    def contents(self) -> dict[str, Any]:
        """The contents of the first M stages and the splits under them given; held against the whole map."""
        splits = self.layout.num_structure_stages
        rows = {}
        for count in range(1, self.layout.num_stages + 1):
            given = give_contents(self.ids_BT, self.structure_BL, count)
            drawn = draw_samples(self.sampler, self.labels_B, self.indices_B, given)
            rows[f"{count} stages"] = self._row(drawn, self.free, splits)
        return rows

    def masks(self) -> dict[str, Any]:
        """Drawn masks as first split, both label orders."""
        labels_B = torch.arange(10).repeat_interleave(SAMPLES_PER_CLASS)
        indices_B = torch.arange(len(labels_B))
        rows = {}
        for name, mask_HW in drawn_masks().items():
            for foreground in (1, 0):
                mask = mask_structure(mask_HW, self.layout.num_positions, foreground=foreground)
                given = give_structure(mask.structure_L.expand(len(labels_B), -1), 1)
                samples, free, comparison = compare(self.sampler, labels_B, indices_B, given)
                assert comparison is not None
                rows[f"{name}, foreground child {foreground}"] = {
                    "bend": mask.bend,
                    "samples": comparison.samples.mean,
                    "free": comparison.free.mean,
                    "read as asked": self._accuracy(samples, labels_B),
                    "free read as asked": self._accuracy(free, labels_B),
                }
        return rows

    def _row(self, samples: ControlledSamples, free: ControlledSamples, num_splits: int) -> dict[str, Any]:
        found, baseline = (measure(drawn.latent_BLC, self.structure_BL, num_splits) for drawn in (samples, free))
        return {
            "samples": found.__dict__,
            "free": baseline.__dict__,
            "margin": found.mean - baseline.mean,
            "read as asked": self._accuracy(samples, self.labels_B),
            "free read as asked": self._accuracy(free, self.labels_B),
        }

    def _accuracy(self, samples: ControlledSamples, labels_B: torch.Tensor) -> float:
        return class_accuracy(self.judge.read(samples.images_BHWC), labels_B.numpy(), 10)[0]


def reach(tokenizer: Tokenizer, images_BHWC: ImageArray, labels_B: torch.Tensor) -> dict[str, Any]:
    """Agreement of digits themselves with their own maps, as they lose precision on the way."""
    latent_BLC = encode_images(tokenizer, images_BHWC)
    ids_BT, maps_BL = tokenizer.tokenize_latent(latent_BLC)
    layout = tokenizer.dequantizer.layout
    splits = layout.num_structure_stages
    with torch.inference_mode():
        canvas_BLC = tokenizer.dequantizer.canvases(ids_BT, maps_BL)[:, -1]
        unquantised = tokenizer.encode(tokenizer.decode(latent_BLC))
        reconstructed = tokenizer.encode(tokenizer.decode(canvas_BLC))
    kept_B = (split_agreement(reconstructed, maps_BL, splits) == 1).all(1)
    ink_BL = F.adaptive_avg_pool2d(to_model_range(images_BHWC).mean(1, keepdim=True), layout.side).flatten(1)
    side_BL = 2 * (maps_BL >> (layout.last_stage - 1)) - 1
    generator = torch.Generator().manual_seed(0)
    noise_BLC = latent_BLC.std() * torch.randn(latent_BLC.shape, generator=generator)
    others = torch.tensor([other_of_class(labels_B, row) for row in range(len(maps_BL))])
    return {
        "digits whose child 1 of the first split has more ink": ((ink_BL * side_BL).sum(1) > 0).double().mean().item(),
        "digits that keep their whole map when reconstructed": kept_B.double().mean().item(),
        "digit": measure(latent_BLC, maps_BL, splits).__dict__,
        **{
            f"digit, latent noise of {level:.0%}": measure(latent_BLC + level * noise_BLC, maps_BL, splits).__dict__
            for level in NOISE_LEVELS
        },
        "decoded and encoded without quantising": measure(unquantised, maps_BL, splits).__dict__,
        "quantised latent": measure(canvas_BLC, maps_BL, splits).__dict__,
        "reconstruction": measure(reconstructed, maps_BL, splits).__dict__,
        "another digit of the class": measure(latent_BLC[others], maps_BL, splits).__dict__,
    }


def other_of_class(labels_B: torch.Tensor, row: int) -> int:
    """The next digit of the same class, cyclically."""
    same = (labels_B == labels_B[row]).nonzero().flatten().tolist()
    return same[(same.index(row) + 1) % len(same)]


def drawn_masks() -> dict[str, torch.Tensor]:
    """Circle, rectangle, left and upper half: bool (128, 128)."""
    y, x = np.mgrid[0:MASK_SIDE, 0:MASK_SIDE] / MASK_SIDE + 0.5 / MASK_SIDE
    masks = {
        "circle": (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.35**2,
        "rectangle": (np.abs(x - 0.5) < 0.25) & (np.abs(y - 0.5) < 0.4),
        "left half": x < 0.5,
        "upper half": y < 0.5,
    }
    return {name: torch.from_numpy(mask) for name, mask in masks.items()}


if __name__ == "__main__":
    main()
