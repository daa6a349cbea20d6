"""Trains a tokenizer as the demo's with some settings changed, and measures how well maps survive it.

    .venv/bin/python benchmarks/tokenizer_maps.py --folder runs/tokenizer-16 model.latent_channels=16

What is measured on the held-out digits is the part "reach" of `structure_control.py`. Of a folder that holds a finished
training, nothing is trained again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from structure_control import reach

from nvg.checkpoints import load_network
from nvg.pixels import to_model_range
from nvg.tokenizer import Tokenizer
from pipelines.configuration import load_config
from pipelines.experiment.steps import ExperimentConfig
from pipelines.sources import load_images, open_source
from pipelines.train.tokenizer import train_tokenizer


def main() -> None:
    """Trains, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="of the training")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the demo's tokenizer configuration")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = [f"tokenizer.{text}" for text in (f"run_folder={given.folder}", "loop.engine=plain", *given.overrides)]
    config = load_config(ExperimentConfig, "demo/digits.yaml", settings).tokenizer
    assert config is not None
    tokenizer = load_network(Tokenizer, train_tokenizer(config))
    digits = load_images(open_source(replace(config.source, num_views=1, view_policy="center", split="test")))
    images = to_model_range(digits.images)
    found = reach(tokenizer, digits.images, torch.from_numpy(digits.labels).long())
    found |= {"mean squared error": (tokenizer.reconstruct(images) - images).square().mean().item()}
    sys.stdout.write(json.dumps({"settings": given.overrides, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
