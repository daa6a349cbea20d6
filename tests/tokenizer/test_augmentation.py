"""Augmentation: every draw does what it says, per image, and gradients pass."""

from __future__ import annotations

import torch

from nvg.tokenizer.augmentation import NUM_UNIFORMS, augment, cutout, shift

NEUTRAL = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5])  # no move, no change of brightness, saturation and contrast


def images(side: int = 16) -> torch.Tensor:
    return torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def uniforms(seed: int = 1) -> torch.Tensor:
    return torch.rand(5, NUM_UNIFORMS, generator=torch.Generator().manual_seed(seed))


def test_neutral_draws_change_nothing_but_the_cutout():
    original = images()
    uniform = torch.cat([NEUTRAL, torch.tensor([0.5, 0.5])]).expand(5, -1)
    expected = cutout(original, uniform[:, 5], uniform[:, 6])
    torch.testing.assert_close(augment(original, uniform), expected)
    assert (expected == 0).sum() == 5 * 3 * 3 * 3  # a square of a fifth of 16


def test_shift_moves_whole_pixels_and_fills_with_zero():
    original = images()
    zero, last = torch.zeros(5), torch.full((5,), 1 - 1e-7)
    moved = shift(original, last, zero)  # two rows down, two columns left
    assert torch.equal(moved[:, :, 2:, :-2], original[:, :, :-2, 2:])
    assert not moved[:, :, :2].any()
    assert not moved[..., -2:].any()


def test_brightness_saturation_and_contrast_are_the_stated_maps():
    original = images()
    for column, extreme, expected in (
        (2, 0.0, original - 0.5),
        (3, 0.0, original.mean(1, keepdim=True).expand_as(original)),
        (4, 0.0, (original + original.mean((1, 2, 3), keepdim=True)) / 2),
    ):
        uniform = torch.cat([NEUTRAL, torch.tensor([0.0, 0.0])]).repeat(5, 1)
        uniform[:, column] = extreme
        found = augment(original, uniform)
        torch.testing.assert_close(found[:, :, 4:, 4:], expected[:, :, 4:, 4:])


def test_an_image_does_not_depend_on_its_batch():
    whole = augment(images(), uniforms())
    alone = augment(images()[2:3], uniforms()[2:3])
    torch.testing.assert_close(whole[2:3], alone)


def test_gradients_reach_the_images():
    original = images().requires_grad_()
    augment(original, uniforms()).sum().backward()
    assert original.grad is not None
    assert (original.grad != 0).float().mean() > 0.5
