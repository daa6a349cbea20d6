"""Augmentation of what the discriminator sees: the same kinds of change for real and for reconstructed images.

Every step is differentiable, so that the tokenizer's gradient passes through. Legend: B images, C channels, S side.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_UNIFORMS = 7  # per image: shift (2), brightness, saturation, contrast, cutout (2)
LARGEST_SHIFT = 0.125  # of the side
CUTOUT_SIDE = 0.2  # of the side


def augment(images_BCSS: Tensor, uniform_B7: Tensor) -> Tensor:
    """Shift, brightness, saturation, contrast and cutout, each drawn per image.

    Args:
        images_BCSS: float in [-1, 1].
        uniform_B7: uniforms in [0, 1) from which every draw follows.

    Returns:
        Augmented images; brightness and contrast may leave [-1, 1].

    Paper: App. A.5 (the discriminator's setup is VAR's); Release: DiffAug
    """
    columns = uniform_B7.unbind(1)
    images_BCSS = shift(images_BCSS, columns[0], columns[1])
    brightness, saturation, contrast = (column.float()[:, None, None, None] for column in columns[2:5])
    images_BCSS = images_BCSS + (brightness - 0.5)
    grey_B1SS = images_BCSS.mean(1, keepdim=True)
    images_BCSS = grey_B1SS + (images_BCSS - grey_B1SS) * (2.0 * saturation)
    level_B111 = images_BCSS.mean((1, 2, 3), keepdim=True)
    images_BCSS = level_B111 + (images_BCSS - level_B111) * (0.5 + contrast)
    return cutout(images_BCSS, columns[5], columns[6])


def shift(images_BCSS: Tensor, row_B: Tensor, column_B: Tensor) -> Tensor:
    """Moves every image by whole pixels, up to an eighth of its side in each direction; what comes in is zero.

    Args:
        images_BCSS: float.
        row_B, column_B: uniforms in [0, 1).

    Release: ± 1/8 of the side, zero filled
    """
    side = images_BCSS.shape[-1]
    most = int(side * LARGEST_SHIFT + 0.5)
    rows_BS = _moved(row_B, side, most)
    columns_BS = _moved(column_B, side, most)
    inside_BSS = _inside(rows_BS, side)[:, :, None] & _inside(columns_BS, side)[:, None, :]
    image_B11 = torch.arange(len(images_BCSS), device=images_BCSS.device)[:, None, None]
    rows_BS1 = rows_BS.clamp(0, side - 1)[:, :, None]
    columns_B1S = columns_BS.clamp(0, side - 1)[:, None, :]
    moved_BSSC = images_BCSS.permute(0, 2, 3, 1)[image_B11, rows_BS1, columns_B1S]
    return (moved_BSSC * inside_BSS[..., None]).permute(0, 3, 1, 2)


def cutout(images_BCSS: Tensor, row_B: Tensor, column_B: Tensor) -> Tensor:
    """Sets a square of a fifth of the side to zero, its centre anywhere in the image.

    Args:
        images_BCSS: float.
        row_B, column_B: uniforms in [0, 1).

    Release: 0.2 of the side
    """
    side = images_BCSS.shape[-1]
    length = int(side * CUTOUT_SIDE + 0.5)
    position_S = torch.arange(side, device=images_BCSS.device)
    hidden = []
    for uniform_B in (row_B, column_B):
        first_B1 = (uniform_B[:, None] * (side + 1 - length % 2)).floor() - length // 2
        hidden.append((position_S >= first_B1) & (position_S < first_B1 + length))
    hidden_B1SS = (hidden[0][:, :, None] & hidden[1][:, None, :])[:, None]
    return images_BCSS.masked_fill(hidden_B1SS, 0.0)


def _moved(uniform_B: Tensor, side: int, most: int) -> Tensor:
    """Source index (B, S) of every target index, for moves drawn evenly from -most..most."""
    move_B = (uniform_B * (2 * most + 1)).floor().long() - most
    return torch.arange(side, device=uniform_B.device) - move_B[:, None]


def _inside(index_BS: Tensor, side: int) -> Tensor:
    return (index_BS >= 0) & (index_BS < side)
