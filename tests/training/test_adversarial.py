"""Adversarial losses against their formulas, and the real discriminator on random weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nvg.errors import UserError
from nvg.tokenizer import DinoFeatures, Discriminator
from nvg.tokenizer.discriminator import INPUT_SIDE, to_input_side
from nvg.training.adversarial import (
    DiscriminatorLossConfig,
    DiscriminatorObjective,
    LeCam,
    generator_loss,
    hinge_loss,
)


@pytest.fixture(scope="module")
def discriminator() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(DinoFeatures())


def colour_images(count: int = 2, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_losses_are_their_formulas():
    real, fake = torch.tensor([[2.0, 0.0], [0.5, -1.0]]), torch.tensor([[-3.0, 1.0], [0.0, -0.5]])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 1 + 0.5 + 2) / 4 + (0 + 2 + 1 + 0.5) / 4))
    expected = (F.softplus(torch.tensor(1.0)) + F.softplus(torch.tensor(0.25))) / 2
    assert generator_loss(fake).item() == pytest.approx(float(expected))


def test_lecam_updates_its_averages_before_use_and_not_in_evaluation():
    lecam = LeCam(decay=0.9)
    real, fake = torch.tensor([[2.0, 4.0]]), torch.tensor([[-1.0, -3.0]])
    penalty = lecam(real, fake)
    assert lecam.real_mean.item() == pytest.approx(0.3)
    assert lecam.fake_mean.item() == pytest.approx(-0.2)
    assert penalty.item() == pytest.approx((2.2**2 + 4.2**2) / 2 + (1.3**2 + 3.3**2) / 2)
    lecam.eval()
    lecam(real, fake)
    assert lecam.real_mean.item() == pytest.approx(0.3)


def test_only_the_heads_are_trained_and_saved(discriminator):
    assert all(name.startswith("heads.") for name in discriminator.state_dict())
    assert len(list(discriminator.heads)) == 5
    assert not any(parameter.requires_grad for parameter in discriminator.features.network.parameters())
    assert not discriminator.features.network.training
    discriminator.train()
    assert not discriminator.features.network.training  # frozen for good
    assert discriminator.double().features.network.vit.cls_token.dtype == torch.float64  # yet it moves with the heads
    discriminator.float()


def test_key_biases_do_not_matter(discriminator):
    """So zeroing them changes nothing: a check of where they lie in the joint bias."""
    features = discriminator.features.network
    images = colour_images(1, INPUT_SIDE)
    torch.nn.init.normal_(features.vit.blocks[3].attn.qkv.bias)
    before = features(images)
    features.zero_key_biases()
    assert not features.vit.blocks[3].attn.qkv.bias[384:768].any()
    for found, expected in zip(features(images), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_gradients_reach_the_images_through_the_frozen_network(discriminator):
    images = colour_images().requires_grad_()
    logits = discriminator(images, torch.zeros(3))
    assert logits.shape == (2, 5 * 196)
    generator_loss(logits).backward()
    assert images.grad is not None
    assert bool(images.grad.abs().sum() > 0)
    discriminator.zero_grad()


@pytest.mark.slow
def test_the_discriminator_learns_to_tell_two_kinds_of_images_apart(discriminator):
    objective = DiscriminatorObjective(discriminator, DiscriminatorLossConfig())
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=2e-3, betas=(0.9, 0.95))
    real, fake = colour_images(3, seed=1), colour_images(3, seed=2).mean(1, keepdim=True).expand(-1, 3, -1, -1) * 0.2
    noise = {"augment_real": torch.full((3, 7), 0.5), "augment_fake": torch.full((3, 7), 0.5)}
    noise |= {"crop_real": torch.zeros(3, 3), "crop_fake": torch.zeros(3, 3)}
    gaps = []
    for _ in range(4):
        loss, metrics = objective({"image": real, "reconstruction": fake}, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gaps.append(float(metrics["real_logit"] - metrics["fake_logit"]))
    assert gaps == sorted(gaps)
    assert gaps[-1] > gaps[0] + 0.1
    assert set(metrics) == {"discriminator", "lecam", "real_logit", "fake_logit"}


def test_large_images_are_cropped_or_shrunk_and_small_ones_enlarged():
    large = colour_images(1, 256)
    cropped = to_input_side(large, torch.tensor([0.0, 0.999, 0.0]))
    assert torch.equal(cropped, large[..., 32:, :224])
    shrunk = to_input_side(large, torch.tensor([0.5, 0.0, 0.0]))
    torch.testing.assert_close(shrunk, F.interpolate(large, size=(224, 224), mode="area"))
    assert to_input_side(colour_images(1, 16), torch.zeros(3)).shape[-1] == INPUT_SIDE
    exact = colour_images(1, INPUT_SIDE)
    assert to_input_side(exact, torch.zeros(3)) is exact


def test_impossible_settings_are_named():
    with pytest.raises(UserError, match="lecam_decay"):
        DiscriminatorLossConfig(lecam_decay=1.0)
