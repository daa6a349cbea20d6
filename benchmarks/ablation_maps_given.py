"""After `nvg ablate`: how many samples are read as asked when maps are drawn, and when held-out digits' maps are given.

    .venv/bin/python benchmarks/ablation_maps_given.py --study runs/ablate

Tells apart what a variant's content generator does and what the maps it was handed cost. One sample for each held-out
digit, of its class, drawn as in the study.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from eval.controlled import draw_samples
from eval.scores.judge import class_accuracy, train_judge
from nvg.pixels import to_model_range
from nvg.sampling import give_structure
from pipelines.ablate.plan import AblateConfig, make_plan
from pipelines.ablate.study import cell_spec
from pipelines.configuration import load_config
from pipelines.sources import load_images, open_source


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", type=Path, default=Path("runs/ablate"))
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the figures")
    given = parser.parse_args()
    config = load_config(AblateConfig, "ablate/digits.yaml", [f"folder={given.study}"])
    plan = make_plan(config)
    source = replace(config.tokenizer.source, num_views=1, view_policy="center")
    digits, judged = (load_images(open_source(replace(source, split=name))) for name in ("test", "judge"))
    judge = train_judge(judged.images, judged.labels, num_classes=10)
    labels_B = torch.from_numpy(digits.labels).long()
    shares: dict[str, dict[str, list[float]]] = {}
    for cell in plan.cells:
        if cell.structure is None:
            continue
        sampler = cell_spec(cell, plan, config, num_classes=10).build("cpu")
        _, maps_BL = sampler.tokenizer.tokenize(to_model_range(digits.images))
        prefix = give_structure(maps_BL, sampler.tokenizer.dequantizer.layout.num_structure_stages)
        rows = shares.setdefault(cell.variant, {"maps drawn": [], "maps given": []})
        for name, fixed in (("maps drawn", None), ("maps given", prefix)):
            samples = draw_samples(sampler, labels_B, torch.arange(len(labels_B)), fixed)
            rows[name].append(class_accuracy(judge.read(samples.images_BHWC), digits.labels, 10)[0])
        sys.stdout.write(f"{cell.variant}, seed {cell.seed}: {rows}\n")
    if given.output is not None:
        given.output.write_text(json.dumps(shares, indent=2) + "\n")


if __name__ == "__main__":
    main()
