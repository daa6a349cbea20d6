"""DINOv2's patch tokens, the target of the alignment of hidden tokens (REPA).

Legend: B images, S side, N = 256 patches, D = 768 channels of a token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.tokenizer.frozen import ImageNetRange, freeze

INPUT_SIDE = 224
BACKBONE = "vit_base_patch14_dinov2"


class Dinov2Features(nn.Module):
    """Frozen ViT-B/14: normalised patch tokens of an image at 224, a grid of 16×16.

    Built with random weights; `nvg.checkpoints.load_dinov2_features` puts DINOv2's in place.

    Release: image to [0, 1], ImageNet's mean and deviation, 224 bicubic without antialias, position table resampled
    """

    def __init__(self, **sizes: Any) -> None:
        """
        Args:
            sizes: `embed_dim`, `depth` and `num_heads` of another network than ViT-B.
        """
        super().__init__()
        from timm.models import create_model  # a frozen backbone is the only use of timm

        self.vit: Any = create_model(BACKBONE, img_size=INPUT_SIDE, num_classes=0, **sizes)
        self.imagenet_range = ImageNetRange()
        freeze(self)

    @property
    def width(self) -> int:
        """D, channels of a token."""
        return self.vit.embed_dim

    @property
    def num_tokens(self) -> int:
        """N, patches of an image."""
        return self.vit.patch_embed.num_patches

    @torch.no_grad()
    def forward(self, images_BCSS: Tensor) -> Tensor:
        """float32 (B, N, D) of images (B, 1 or 3, S, S) in [-1, 1]; N in raster order."""
        colour = images_BCSS.expand(-1, 3, -1, -1)
        resized = F.interpolate(self.imagenet_range(colour), size=(INPUT_SIDE, INPUT_SIDE), mode="bicubic")
        return self.vit.forward_features(resized)[:, self.vit.num_prefix_tokens :]
