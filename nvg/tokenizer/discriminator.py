"""Discriminator of the tokenizer's training: small heads on the tokens of a frozen DINO ViT-S/16.

Legend: B images, C image channels, S side, N = 196 patches, D = 384 channels of a token, F = 5 depths.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from nvg.layers import SynchronizedBatchNorm
from nvg.tokenizer.frozen import Companion, ImageNetRange, freeze

INPUT_SIDE = 224
BACKBONE = "vit_small_patch16_224"
BLOCKS_READ = (2, 5, 8, 11)  # and the tokens before block 0
KERNEL_SIZE = 9
NUM_CALL_UNIFORMS = 3  # per call: crop or resize, row, column


class DinoFeatures(nn.Module):
    """Frozen ViT-S/16: each patch token plus the class token, before block 0 and after blocks 2, 5, 8 and 11.

    Built with random weights; `nvg.checkpoints.load_dino_features` puts DINO's in place.

    Release: tanh GELU, LayerNorm eps 1e-6, key biases zeroed, no final norm
    """

    def __init__(self) -> None:
        super().__init__()
        from timm.models import create_model  # a frozen backbone is the only use of timm

        self.vit: Any = create_model(
            BACKBONE,
            num_classes=0,
            act_layer=partial(nn.GELU, approximate="tanh"),
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.imagenet_range = ImageNetRange()
        freeze(self)

    @property
    def width(self) -> int:
        """D, channels of a token."""
        return self.vit.embed_dim

    @torch.no_grad()
    def zero_key_biases(self) -> None:
        """Sets the keys' part of every query-key-value bias to zero; attention does not depend on it."""
        for block in self.vit.blocks:
            block.attn.qkv.bias[self.width : 2 * self.width] = 0.0

    def forward(self, images_BCSS: Tensor) -> list[Tensor]:
        """F tensors (B, D, N) of images (B, 3, 224, 224) in [-1, 1]."""
        vit = self.vit
        tokens_BND = vit.norm_pre(vit._pos_embed(vit.patch_embed(self.imagenet_range(images_BCSS))))
        features = [_patches_plus_class(tokens_BND)]
        for number, block in enumerate(vit.blocks):
            tokens_BND = block(tokens_BND)
            if number in BLOCKS_READ:
                features.append(_patches_plus_class(tokens_BND))
        return features


class HeadBlock(nn.Module):
    """Spectrally normalised circular convolution along the tokens → batch norm → leaky ReLU 0.2.

    Release: block of the heads
    """

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        conv = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, padding_mode="circular")
        self.conv = spectral_norm(conv)
        self.norm = SynchronizedBatchNorm(width, eps=1e-6)

    def forward(self, x_BDN: Tensor) -> Tensor:
        """(B, D, N) → (B, D, N)."""
        return F.leaky_relu(self.norm(self.conv(x_BDN)), 0.2)


class Head(nn.Module):
    """One logit per token: block of 1 tap, then (block of 9 taps + x) / √2, then a bare 1×1 convolution.

    Release: one head for each depth
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_in = HeadBlock(width, 1)
        self.block_wide = HeadBlock(width, KERNEL_SIZE)
        self.logit = spectral_norm(nn.Conv1d(width, 1, 1))

    def forward(self, x_BDN: Tensor) -> Tensor:
        """(B, D, N) → logits (B, N)."""
        x_BDN = self.block_in(x_BDN)
        x_BDN = (self.block_wide(x_BDN) + x_BDN) / math.sqrt(2.0)
        return self.logit(x_BDN)[:, 0]


class Discriminator(nn.Module):
    """Heads, one for each depth of the frozen features; they alone are trained.

    Paper: App. A.5 (DINO, as in VAR); Release: StyleGAN-T's discriminator
    """

    def __init__(self, features: DinoFeatures) -> None:
        super().__init__()
        self.features = Companion(features)
        self.heads = nn.ModuleList(Head(features.width) for _ in range(1 + len(BLOCKS_READ)))

    def forward(self, images_BCSS: Tensor, uniform_3: Tensor) -> Tensor:
        """Logits of images.

        Args:
            images_BCSS: float (B, 1 or 3, S, S), about [-1, 1]; grey images are repeated over three channels.
            uniform_3: uniforms in [0, 1) of this call, on the CPU, see `to_input_side`.

        Returns:
            (B, F · N) logits, large for real.
        """
        images_BCSS = to_input_side(images_BCSS.expand(-1, 3, -1, -1), uniform_3)
        logits = [head(x_BDN) for head, x_BDN in zip(self.heads, self.features(images_BCSS), strict=True)]
        return torch.cat(logits, dim=1)


def to_input_side(images_BCSS: Tensor, uniform_3: Tensor) -> Tensor:
    """Images at the backbone's side of 224.

    Larger ones are, with probability one half, cropped at a place that all images of the call share, else resized by
    area; smaller ones are resized bicubically.

    Args:
        images_BCSS: any side.
        uniform_3: uniforms in [0, 1), on the CPU since they decide a size: crop or resize, row, column.

    Release: one draw per call
    """
    side = images_BCSS.shape[-1]
    if side <= INPUT_SIDE:
        if side == INPUT_SIDE:
            return images_BCSS
        return F.interpolate(images_BCSS, size=(INPUT_SIDE, INPUT_SIDE), mode="bicubic", align_corners=False)
    choice, row, column = uniform_3.tolist()
    if choice >= 0.5:
        return F.interpolate(images_BCSS, size=(INPUT_SIDE, INPUT_SIDE), mode="area")
    top, left = (int(draw * (side - INPUT_SIDE + 1)) for draw in (row, column))
    return images_BCSS[..., top : top + INPUT_SIDE, left : left + INPUT_SIDE]


def _patches_plus_class(tokens_BND: Tensor) -> Tensor:
    return (tokens_BND[:, 1:] + tokens_BND[:, :1]).transpose(1, 2)
