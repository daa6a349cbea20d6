"""The three published commands one after the other, on a few pictures: each finds what the one before it wrote."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nvg.checkpoints.runs import weights_folder
from nvg.tokenizer import Dinov2Features
from pipelines.configuration import load_config
from pipelines.precompute.beside import open_repa_stream
from pipelines.precompute.config import PrecomputeConfig
from pipelines.run_folder import read_metrics
from pipelines.train.generator import GeneratorRunConfig, train_generator
from pipelines.train.tokenizer import TokenizerRunConfig, train_tokenizer

SMALL_RUN = (
    "optimizer.global_batch=4",
    "optimizer.micro_batch=null",
    "optimizer.total_images=8",
    "optimizer.warmup_images=0",
    "loop.engine=plain",
    "loop.precision=fp32",
    "loop.log_every_steps=1",
    "launch.launcher=process",
)
# 32x32 pixels to the 16x16 positions of the published latent, everything else as small as it can be; without the two
# networks that judge it, whose weight files are not here.
SMALL_TOKENIZER = (
    "model.image_size=32",
    "model.base_width=8",
    "model.width_multipliers=[1, 1]",
    "model.num_res_blocks=1",
    "model.norm_groups=4",
    "model.codebook_size=32",
    "loss.perceptual_weight=0",
    "loss.adversarial_weight=0",
)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Eight colour pictures of two classes; the presets' folders are below the working folder."""
    noise = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / "pictures" / f"class-{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pictures"


@pytest.mark.slow
def test_the_published_commands_run_one_after_the_other(case, pictures, monkeypatch):
    source = (f"source.path={pictures}", "source.image_size=32")
    tokenizer = load_config(TokenizerRunConfig, "tokenizer/f16.yaml", [*source, *SMALL_RUN, *SMALL_TOKENIZER])
    train_tokenizer(tokenizer)
    assert len(read_metrics(pictures.parent / tokenizer.run_folder)) == 2
    small = ("source.num_views=2", "gpus_per_actor=0", "threads_per_actor=1", "batch_size=4")
    records = load_config(PrecomputeConfig, "precompute/imagenet.yaml", [*source, *small])
    weights = replace(records, tokenizer=str(weights_folder("tokenizer", records.tokenizer)))
    case.Prepared(weights, repa=open_repa_stream(records.repa, "cpu", 256)).run()
    torch.manual_seed(0)
    dinov2 = Dinov2Features(embed_dim=24, depth=1, num_heads=2)
    monkeypatch.setattr("pipelines.batches.records.load_dinov2_features", lambda path, key: dinov2)
    smaller = ("content.depth=8", "content.width=64", "loss.stages_per_image=1")
    content = load_config(GeneratorRunConfig, "content/d16.yaml", [*SMALL_RUN, *smaller])
    train_generator(content)
    rows = read_metrics(pictures.parent / content.run_folder)
    assert len(rows) == 2
    assert all(row["repa"] > 0 for row in rows)
