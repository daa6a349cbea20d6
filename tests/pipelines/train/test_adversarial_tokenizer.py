"""The tokenizer's training with all its losses: real VGG-16 and ViT-S/16 graphs, random weights, a few steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import vgg16

from nvg.checkpoints import load_network
from nvg.errors import NotFiniteError, UserError
from nvg.pixels import scale_levels
from nvg.tokenizer import DinoFeatures, Tokenizer, TokenizerConfig, quantize_for_training
from nvg.training import TokenizerLossConfig
from nvg.training.adversarial import hinge_loss
from pipelines.batches.order import Batch, BatchSource
from pipelines.run_folder import read_metrics
from pipelines.sources import SourceConfig
from pipelines.train.config import DeepSpeedConfig, LoopConfig, OptimizerConfig
from pipelines.train.launch import run_training
from pipelines.train.tokenizer import JudgesConfig, TokenizerRunConfig, build_task, train_tokenizer

pytestmark = pytest.mark.slow
STEPS = 4
BATCH = 2


@pytest.fixture(scope="module")
def judges(tmp_path_factory) -> JudgesConfig:
    folder = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    torch.save({f"features.{name}": value for name, value in vgg16().features.state_dict().items()}, folder / "vgg.pth")
    torch.save(DinoFeatures().vit.state_dict(), folder / "dino.pth")
    return JudgesConfig(vgg_weights=str(folder / "vgg.pth"), dino_weights=str(folder / "dino.pth"), lr=1e-3)


def run_config(folder: Path, judges: JudgesConfig, **loop: object) -> TokenizerRunConfig:
    model = {"image_size": 16, "image_channels": 1, "base_width": 8, "width_multipliers": [1, 1, 2]}
    return TokenizerRunConfig(
        run_folder=str(folder),
        source=SourceConfig(kind="digits", image_size=16, image_channels=1, split="train"),
        model=TokenizerConfig(**model, num_res_blocks=1, norm_groups=4, latent_channels=4, codebook_size=16),  # type: ignore[arg-type]
        loss=TokenizerLossConfig(perceptual_weight=1.0, adversarial_weight=0.1, soft_assignment_images=4),
        judges=judges,
        optimizer=OptimizerConfig(
            lr=1e-3, total_images=STEPS * BATCH, global_batch=BATCH, ema_half_life_images=8, weight_decay=0.0
        ),
        loop=LoopConfig(**{"engine": "plain", "log_every_steps": 1, "checkpoint_every_steps": 2, **loop}),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory, judges) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    train_tokenizer(run_config(folder, judges))
    return folder


@dataclass(frozen=True)
class Poisoned:
    """Batches of another source, the first image of one step not a number."""

    source: BatchSource
    step: int

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.source.fingerprint

    @property
    def num_images(self) -> int:
        return self.source.num_images

    def batches(self, *, start_step: int, **given: Any) -> Iterator[Batch]:
        for step, batch in enumerate(self.source.batches(start_step=start_step, **given), start=start_step + 1):
            if step == self.step:
                batch.tensors["image"] = scale_levels(batch.tensors["image"])
                batch.tensors["image"][0] = float("nan")
            yield batch


def numbers(folder: Path) -> list[dict[str, float]]:
    timing = {"images_per_s", "step_s", "data_s", "checkpoint_s", "memory_gib", "time"}
    return [{name: value for name, value in row.items() if name not in timing} for row in read_metrics(folder)]


def test_every_loss_and_the_codebook_are_in_the_log(straight):
    rows = numbers(straight)
    expected = {"l1", "quantizer", "perceptual", "adversarial", "discriminator", "lecam", "real_logit", "fake_logit"}
    assert expected <= set(rows[0])
    assert {"codebook_usage", "codebook_perplexity", "codebook_0_usage", "codebook_4_perplexity"} <= set(rows[0])
    assert rows[0]["loss"] == pytest.approx(
        rows[0]["l1"] + rows[0]["quantizer"] + rows[0]["perceptual"] + 0.1 * rows[0]["adversarial"], rel=1e-5
    )


def test_resumed_run_equals_the_straight_one_bitwise(straight, judges, tmp_path):
    config = run_config(tmp_path, judges)
    train_tokenizer(replace(config, loop=replace(config.loop, stop_after_steps=2)))
    checkpoint = train_tokenizer(config)
    assert numbers(tmp_path) == numbers(straight)
    name = checkpoint.relative_to(tmp_path)
    for file in ("model.safetensors", "ema.safetensors"):
        assert (checkpoint / file).read_bytes() == (straight / name / file).read_bytes()
    ours, theirs = (
        torch.load(folder / name / "plain-adversary" / "plain.pt", weights_only=True)["objective"]
        for folder in (tmp_path, straight)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert "lecam.real_mean" in ours


def test_deepspeed_with_two_engines_gives_the_same_losses(straight, judges, tmp_path):
    checkpoint = train_tokenizer(run_config(tmp_path, judges, engine="deepspeed"))
    for found, expected in zip(numbers(tmp_path), numbers(straight), strict=True):
        for name in ("loss", "discriminator", "adversary_loss"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4)
    assert (checkpoint / "deepspeed-adversary").is_dir()
    assert isinstance(load_network(Tokenizer, checkpoint), Tokenizer)


def test_loss_of_the_adversary_that_is_not_finite_stops_the_run_and_the_last_checkpoint_is_good(
    straight, judges, tmp_path, monkeypatch
):
    config, calls = run_config(tmp_path, judges), []
    with monkeypatch.context() as patch:

        def hinge(*logits):
            calls.append(logits)
            return hinge_loss(*logits) * (float("nan") if len(calls) == 3 else 1.0)

        patch.setattr("nvg.training.adversarial.hinge_loss", hinge)
        with pytest.raises(
            NotFiniteError, match=r"adversary of the tokenizer: the loss of step 3 is nan; sample ids \[\d+, \d+\]"
        ):
            train_tokenizer(config)
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000002"]
    for file in ("model.safetensors", "ema.safetensors"):
        name = Path("checkpoints", "step-00000002", file)
        assert (tmp_path / name).read_bytes() == (straight / name).read_bytes()
    train_tokenizer(config)
    assert numbers(tmp_path) == numbers(straight)


def test_image_that_is_not_finite_stops_the_run(judges, tmp_path):
    config = run_config(tmp_path, judges)
    task = build_task(config)

    def poisoned(config):
        return replace(task, batches=Poisoned(task.batches, step=3))

    with pytest.raises(
        NotFiniteError, match=r"tokenizer: step 3: latents of batch rows \[0\] .*; sample ids \[\d+, \d+\]"
    ):
        run_training(config, poisoned)
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000002"]


def decisions(tokenizer: Tokenizer, latent_BLC: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions are merged and which codes are nearest."""
    structure_BL = tokenizer.structure_maps(latent_BLC)
    found = quantize_for_training(
        latent_BLC, structure_BL, tokenizer.dequantizer, commitment_weight=0.25, soft_assignment=False
    )
    return structure_BL, found.content_ids_BT


@pytest.mark.cluster
def test_two_ranks_of_zero_2_give_the_losses_of_one_process(two_ranks, judges, tmp_path, monkeypatch):
    """What rounds differently, here or on another processor, must neither turn a decision nor grow from step to step.

    The paper's learning rate, and an eps that keeps Adam from making whole steps of gradients that are rounding alone;
    no decision of the one process may be a near-tie: latents moved by 1e-4 of their size are merged and coded alike.
    """
    config = run_config(tmp_path / "one", replace(judges, lr=1e-4), seed=1)
    config = replace(config, optimizer=replace(config.optimizer, lr=1e-4, eps=1e-3))
    encode, generator = Tokenizer.encode, torch.Generator().manual_seed(0)
    num_looked_at = 0

    def encode_and_look(tokenizer: Tokenizer, images_BCSS: Tensor) -> Tensor:
        nonlocal num_looked_at
        latent_BLC = encode(tokenizer, images_BCSS)
        with torch.no_grad():
            expected = decisions(tokenizer, latent_BLC)
            for _ in range(10):
                moved_BLC = latent_BLC * (1 + 1e-4 * torch.randn(latent_BLC.shape, generator=generator))
                assert all(map(torch.equal, decisions(tokenizer, moved_BLC), expected)), "choose another seed"
        num_looked_at += len(images_BCSS)
        return latent_BLC

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode", encode_and_look)
        train_tokenizer(config)
    assert num_looked_at == STEPS * BATCH
    ranks = replace(
        config,
        run_folder=str(tmp_path / "two"),
        loop=replace(config.loop, engine="deepspeed", threads_per_rank=1),
        deepspeed=DeepSpeedConfig(zero_stage=2),
    )
    two_ranks.run(train_tokenizer, ranks)
    for found, expected in zip(numbers(tmp_path / "two"), numbers(tmp_path / "one"), strict=True):
        counted = {name for name in expected if name.startswith("codebook_")}  # of the whole batch, not of a share
        assert {name: found[name] for name in counted} == {name: expected[name] for name in counted}
        assert {"codebook_used", "codebook_usage", "codebook_perplexity", "codebook_4_usage"} <= counted
        for name in ("loss", "adversarial", "discriminator", "lecam", "adversary_loss"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3 if name == "lecam" else 1e-4), name
    weights = {
        name: load_network(Tokenizer, tmp_path / folder / "checkpoints" / step, "model").state_dict()
        for name, folder, step in (
            ("begun", "one", "step-00000002"),
            ("one", "one", "step-00000004"),
            ("two", "two", "step-00000004"),
        )
    }
    moved, apart = (
        sum(float((weights["one"][name] - weights[other][name]).square().sum()) for name in weights["one"]) ** 0.5
        for other in ("begun", "two")
    )
    assert apart < 0.05 * moved  # gradients summed instead of averaged, or a rank left out, give a half and more


def test_weights_that_are_needed_and_missing_are_named(judges, tmp_path):
    with pytest.raises(UserError, match=r"DINO ViT-S/16: found no file ''.*judges.dino_weights"):
        train_tokenizer(run_config(tmp_path, replace(judges, dino_weights="")))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("engine", ["plain", "deepspeed"])
def test_idle_entries_come_back_under_either_engine_and_after_a_resume(engine, judges, tmp_path):
    base = run_config(tmp_path / "straight", judges, engine=engine)
    loss = TokenizerLossConfig(soft_assignment_images=0, revive_after_images=3)
    optimizer = replace(base.optimizer, total_images=6 * BATCH)
    base = replace(base, loss=loss, optimizer=optimizer)
    straight = train_tokenizer(base)
    stopped = replace(base, run_folder=str(tmp_path / "stopped"))
    train_tokenizer(replace(stopped, loop=replace(base.loop, stop_after_steps=4)))
    resumed = train_tokenizer(stopped)
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "straight")
    codebooks = [load_network(Tokenizer, folder, "model").dequantizer.codebook for folder in (straight, resumed)]
    assert torch.equal(*codebooks)
    without = replace(base, run_folder=str(tmp_path / "without"), loss=replace(loss, revive_after_images=None))
    untouched = load_network(Tokenizer, train_tokenizer(without), "model").dequantizer.codebook
    assert not torch.equal(codebooks[0], untouched)
