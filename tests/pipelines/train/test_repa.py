"""The alignment head trains with the generator under every engine, is resumed exactly and saved beside it."""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from golden_training import NUM_STEPS, SPACE, GoldenRunConfig, build_task
from PIL import Image
from safetensors.torch import save_file

from nvg.checkpoints import load_network
from nvg.checkpoints.frozen_weights import load_efficientnet_tokens
from nvg.errors import UserError
from nvg.models import ContentGenerator, ContentGeneratorConfig, RepaHead
from nvg.pixels import scale_levels
from nvg.records import DINOV2, EFFICIENTNET, RecordDataset
from nvg.tokenizer import EfficientNetTokens
from nvg.training import ContentObjective, GeneratorLossConfig
from pipelines.batches.order import ArraySource
from pipelines.batches.records import open_repa_source, repa_target
from pipelines.run_folder import read_metrics
from pipelines.train.config import DeepSpeedConfig
from pipelines.train.generator import ContentRun
from pipelines.train.launch import run_training

WIDTH, STEPS = 6, 6


def aligned_task(config):
    """The golden content task with made-up features beside its records."""
    torch.manual_seed(0)
    task = build_task(config)
    plain = task.objective
    assert isinstance(plain, ContentObjective)
    loss = GeneratorLossConfig(repa_weight=0.5, repa_block=1)
    objective = ContentObjective(plain.network, plain.dequantizer, loss, feature_width=WIDTH)
    features = torch.randn(40, SPACE["num_positions"], WIDTH, generator=torch.Generator().manual_seed(2))
    source = task.batches
    assert isinstance(source, ArraySource)
    fetch = source._fetch
    source._fetch = lambda rows: {**fetch(rows), "features": features[rows]}
    return replace(task, objective=objective)


def run_config(folder, engine="plain", zero_stage: Any = 1, stop=STEPS):
    config = GoldenRunConfig(kind="content", run_folder=str(folder))
    loop = replace(config.loop, engine=engine, stop_after_steps=stop)
    return replace(config, loop=loop, deepspeed=DeepSpeedConfig(zero_stage=zero_stage))


def numbers(folder):
    return [(row["loss"], row["repa"], row["grad_norm"]) for row in read_metrics(folder)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    run_training(run_config(folder), aligned_task)
    assert STEPS < NUM_STEPS
    return folder


def test_head_learns_and_is_saved_beside_the_generator(straight):
    rows = read_metrics(straight)
    assert rows[-1]["repa"] < rows[0]["repa"]
    checkpoint = straight / "checkpoints" / f"step-{STEPS:08d}"
    assert load_network(RepaHead, checkpoint, "repa").config.out == WIDTH
    assert load_network(ContentGenerator, checkpoint).config.depth == 2


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_deepspeed_gives_the_same_losses(straight, tmp_path, zero_stage):
    run_training(run_config(tmp_path, "deepspeed", zero_stage), aligned_task)
    np.testing.assert_allclose(numbers(tmp_path), numbers(straight), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["plain", "deepspeed"])
def test_resumed_run_equals_the_straight_one_bitwise(tmp_path, engine):
    run_training(run_config(tmp_path / "straight", engine), aligned_task)
    run_training(run_config(tmp_path / "stopped", engine, stop=3), aligned_task)
    resumed = run_training(run_config(tmp_path / "stopped", engine), aligned_task)
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "straight")
    for name in ("model", "ema", "repa"):
        twin = tmp_path / "straight" / resumed.relative_to(tmp_path / "stopped") / f"{name}.safetensors"
        assert (resumed / f"{name}.safetensors").read_bytes() == twin.read_bytes()


@dataclass
class Stored:
    """What a reader of stored features or JPEGs gives."""

    rows: dict

    def batch(self, indices):
        return [self.rows[int(index)] for index in indices]


def records(**repa):
    empty = np.zeros(0)
    return RecordDataset(folder=Path("here"), manifest={"repa": repa}, image=empty, view=empty, label=empty, shards=[])


def test_source_is_what_the_records_have(monkeypatch):
    features = np.ones((2, 16, WIDTH), dtype=np.float32)
    stored = SimpleNamespace(layout=SimpleNamespace(width=WIDTH), batch=lambda rows: features[rows])
    monkeypatch.setattr("pipelines.batches.records.FeatureDataset.open", lambda records: stored)
    source = open_repa_source(records(store="features", width=WIDTH, num_tokens=16), DINOV2, "", 1)
    assert (source.width, source.teacher) == (WIDTH, None)
    assert source.fetch(np.array([1]))["features"].shape == (1, 16, WIDTH)
    with pytest.raises(UserError, match=r"loss.repa_weight is above 0, but here has neither .* repa.store=features"):
        open_repa_source(records(), DINOV2, "", 1)


def test_features_of_another_network_are_refused():
    of_efficientnet = records(store="features", width=WIDTH, num_tokens=16, target=EFFICIENTNET)
    assert repa_target(of_efficientnet, EFFICIENTNET, "").width == WIDTH
    with pytest.raises(UserError, match=r"loss.repa_target is 'dinov2-vitb14'; .* set loss.repa_target=efficientnet"):
        repa_target(of_efficientnet, DINOV2, "")
    with pytest.raises(UserError, match=r"loss.repa_target is 'efficientnet-lite0'; expected dinov2-vitb14, of which"):
        repa_target(records(store="features", width=WIDTH, num_tokens=16), EFFICIENTNET, "")


def test_efficientnet_makes_the_features_of_stored_images_on_the_latents_grid(tmp_path):
    torch.manual_seed(0)
    save_file(EfficientNetTokens(4).features.backbone.state_dict(), tmp_path / "lite0.safetensors")
    of = records(store="jpeg")
    of.manifest["num_positions"] = 16
    target = repa_target(of, EFFICIENTNET, str(tmp_path / "lite0.safetensors"))
    assert (target.width, target.teacher.num_tokens) == (112, 16)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"no file 'gone'.*set efficientnet_weights to the file; a loss weight of 0"):
        load_efficientnet_tokens("gone", key="efficientnet_weights", num_positions=16)


def test_block_is_the_eighth_or_in_the_first_half_and_compared_as_a_number():
    def settings(depth, **loss):
        run = ContentRun(content=ContentGeneratorConfig(depth=depth), loss=GeneratorLossConfig(**loss))
        return run.loss_settings["repa_block"]

    assert [settings(depth, repa_weight=0.5) for depth in (1, 6, 12, 16, 24)] == [1, 3, 6, 8, 8]
    assert settings(12, repa_weight=0.5, repa_block=8) == 8
    assert (settings(6), settings(6, repa_block=2)) == (8, 2)  # as written before there was another default


def test_stored_images_come_as_the_teacher_takes_them(monkeypatch):
    buffer = io.BytesIO()
    Image.new("L", (4, 4), 255).save(buffer, "jpeg")
    monkeypatch.setattr("pipelines.batches.records.JpegDataset.open", lambda records: Stored({7: buffer.getvalue()}))
    monkeypatch.setattr(
        "pipelines.batches.records.load_dinov2_features",
        lambda path, key: SimpleNamespace(width=768, path=path, key=key),
    )
    source = open_repa_source(records(store="jpeg"), DINOV2, "dinov2.pth", 2)
    assert (source.teacher.path, source.teacher.key) == ("dinov2.pth", "dinov2_weights")  # type: ignore[union-attr]
    image = source.fetch(np.array([7]))["image"]
    assert image.shape == (1, 3, 4, 4)
    assert torch.equal(image, torch.full_like(image, 255))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_stored_images_are_the_same_numbers_from_any_number_of_threads(num_threads, monkeypatch):
    stream, jpegs = np.random.default_rng(0), {}
    for row in range(9):
        jpegs[row] = io.BytesIO()
        Image.fromarray(stream.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(jpegs[row], "jpeg")
    stored = Stored({row: jpeg.getvalue() for row, jpeg in jpegs.items()})
    monkeypatch.setattr("pipelines.batches.records.JpegDataset.open", lambda records: stored)
    monkeypatch.setattr("pipelines.batches.records.load_dinov2_features", lambda path, key: SimpleNamespace(width=768))
    fetch = open_repa_source(records(store="jpeg"), DINOV2, "", num_threads).fetch
    rows = np.array([3, 8, 0, 5, 1])
    for row, image_CSS in zip(rows, scale_levels(fetch(rows)["image"]), strict=True):
        pixels = torch.from_numpy(np.array(Image.open(jpegs[row])))
        assert torch.equal(image_CSS, pixels.permute(2, 0, 1).float() / 127.5 - 1)
    stored.rows[5] = b"no image"
    with pytest.raises(UserError, match=r"rows \[3, 8, 0, 5, 1\] is damaged"):
        fetch(rows)
