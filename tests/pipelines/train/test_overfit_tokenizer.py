"""A tokenizer that cannot learn a few images by heart has a fault somewhere: the demo's, through the real training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.scores.metrics import peak_signal_to_noise
from nvg.checkpoints import load_network
from nvg.pixels import to_model_range, to_uint8
from nvg.tokenizer import Tokenizer
from pipelines.configuration import load_config
from pipelines.experiment.steps import ExperimentConfig
from pipelines.sources import load_images, open_source
from pipelines.train.tokenizer import train_tokenizer

STEPS = 300


def write_digits(folder: Path, num_images: int) -> None:
    config = load_config(ExperimentConfig, "demo/digits.yaml", []).tokenizer
    assert config is not None
    source = open_source(replace(config.source, num_views=1))
    for number, image in enumerate(load_images(source, range(1)).images[:num_images]):
        (folder / "digit").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image)[..., 0]).save(folder / "digit" / f"{number:02d}.png")


@pytest.mark.slow
@pytest.mark.parametrize("num_images", [16, pytest.param(64, marks=pytest.mark.long)])
def test_digits_are_learned_by_heart(num_images, tmp_path):
    write_digits(tmp_path / "images", num_images)
    overrides = [
        f"folder={tmp_path}",
        "source.kind=folder",
        f"source.path={tmp_path / 'images'}",
        "tokenizer.source.num_views=1",
        "tokenizer.source.view_policy=center",
        "tokenizer.source.split=all",
        "tokenizer.loop.engine=plain",
        f"tokenizer.optimizer.total_images={STEPS * num_images}",
        f"tokenizer.optimizer.global_batch={num_images}",
        "tokenizer.optimizer.decay_start=0.5",
        "tokenizer.optimizer.final_factor=0.02",
        f"tokenizer.optimizer.ema_half_life_images={10 * num_images}",
    ]
    config = load_config(ExperimentConfig, "demo/digits.yaml", overrides).tokenizer
    assert config is not None
    tokenizer = load_network(Tokenizer, train_tokenizer(config))
    images = load_images(open_source(config.source), range(1)).images
    assert len(images) == num_images
    with torch.inference_mode():
        found = to_uint8(tokenizer.reconstruct(to_model_range(images, planes=True)), "round")
    assert peak_signal_to_noise(found, images).mean() >= 30.0
