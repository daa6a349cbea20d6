"""Convolutional encoder and decoder: residual blocks, no attention, one halving of the side per level.

Legend: images (B, channels, S, S); features (B, width, side, side).

Release: VQGAN layout, GroupNorm eps 1e-6, swish, stride-2 convolution after padding right and bottom by one
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """norm → swish → conv3×3, twice, plus the (1×1-projected) input."""

    def __init__(self, in_width: int, out_width: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_width, eps=1e-6)
        self.conv1 = nn.Conv2d(in_width, out_width, 3, padding=1)
        self.norm2 = nn.GroupNorm(norm_groups, out_width, eps=1e-6)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1)
        self.shortcut = nn.Identity() if in_width == out_width else nn.Conv2d(in_width, out_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_width, h, w) → (B, out_width, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class Downsample(nn.Module):
    """Halves the side with a stride-2 convolution, padded by one at the right and bottom."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) → (B, width, h / 2, w / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the side by nearest neighbour, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) → (B, width, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Module):
    """Image → latent: (B, channels, S, S) → (B, C, S / 2^(levels-1), same)."""

    def __init__(
        self,
        *,
        image_channels: int,
        widths: Sequence[int],
        num_res_blocks: int,
        latent_channels: int,
        norm_groups: int,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(image_channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        width = widths[0]
        for level, out_width in enumerate(widths):
            blocks = nn.ModuleList()
            for _ in range(num_res_blocks):
                blocks.append(ResidualBlock(width, out_width, norm_groups))
                width = out_width
            is_last = level == len(widths) - 1
            resample = nn.Identity() if is_last else Downsample(width)
            self.levels.append(nn.ModuleDict({"blocks": blocks, "resample": resample}))
        self.middle = nn.Sequential(*(ResidualBlock(width, width, norm_groups) for _ in range(2)))
        self.norm_out = nn.GroupNorm(norm_groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, S, S) → latent (B, C, side, side), unbounded."""
        x = _through_levels(self.levels, self.conv_in(images))
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Latent → image in [-1, 1]: the encoder mirrored, with one more residual block a level, levels coarse to fine."""

    def __init__(
        self,
        *,
        image_channels: int,
        widths: Sequence[int],
        num_res_blocks: int,
        latent_channels: int,
        norm_groups: int,
    ) -> None:
        super().__init__()
        width = widths[-1]
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.middle = nn.Sequential(*(ResidualBlock(width, width, norm_groups) for _ in range(2)))
        self.levels = nn.ModuleList()
        for level in range(len(widths) - 1, -1, -1):
            blocks = nn.ModuleList()
            for _ in range(num_res_blocks + 1):
                blocks.append(ResidualBlock(width, widths[level], norm_groups))
                width = widths[level]
            resample = nn.Identity() if level == 0 else Upsample(width)
            self.levels.append(nn.ModuleDict({"blocks": blocks, "resample": resample}))
        self.norm_out = nn.GroupNorm(norm_groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, image_channels, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Latent (B, C, side, side) → images (B, channels, S, S), clamped to [-1, 1]."""
        x = _through_levels(self.levels, self.middle(self.conv_in(latent)))
        return self.conv_out(F.silu(self.norm_out(x))).clamp(-1.0, 1.0)


def _through_levels(levels: nn.ModuleList, x: Tensor) -> Tensor:
    for level in levels:
        assert isinstance(level, nn.ModuleDict)
        for block in level["blocks"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = block(x)
        x = level["resample"](x)
    return x
