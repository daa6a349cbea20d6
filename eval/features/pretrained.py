"""Networks trained elsewhere, on photographs, whose features images are compared in: EfficientNet-Lite0, DINOv2.

Neither is Inception, so a Fréchet distance in their features is called FD with their name, never FID; and neither has
what an Inception score is made of.
Shapes: images_BCHW uint8, features_BF float32.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.checkpoints import load_efficientnet_features
from nvg.checkpoints.frozen_weights import read_tensors, require_file
from nvg.checkpoints.networks import check_fit
from nvg.pixels import scale_levels
from nvg.tokenizer import Dinov2Features
from nvg.tokenizer.dinov2 import INPUT_SIDE as DINOV2_SIDE

EFFICIENTNET: Final = "efficientnet-lite0"
DINOV2: Final = "dinov2-vitl14"
EFFICIENTNET_SIDE = 96  # classes of Fashion-MNIST read 3.6 points worse than at 224, ten times as fast
NUM_DINOV2_FEATURES = 1024
_VIT_LARGE = {"embed_dim": NUM_DINOV2_FEATURES, "depth": 24, "num_heads": 16}
_DINOV2_FILE = (
    "DINOv2 ViT-L/14",
    "dinov2_vitl14_pretrain.pth of DINOv2's release, or timm's vit_large_patch14_dinov2.lvd142m",
    "extractor_path",
)
_OFFSET = 0.1  # of DINOv2's own resampling of its position table


class PretrainedExtractor(nn.Module):
    """A frozen network that gives features of images in [-1, 1], as an extractor of bytes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor]:
        """The one layer, float32 (B, F), of uint8 images (B, 1 or 3, H, W) of any side."""
        return (self.network(scale_levels(images_BCHW)),)


class Dinov2ClassToken(nn.Module):
    """The normalised class token of DINOv2 ViT-L/14 at 224 pixels, as EDM2 takes it for FD.

    Args:
        sizes: `embed_dim`, `depth` and `num_heads` of another network than ViT-L.

    Release: EDM2's `DINOv2Detector`: bytes to 224 bicubic with antialiasing, then ImageNet's mean and deviation
    """

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.network = Dinov2Features(**{**_VIT_LARGE, **sizes})

    def forward(self, images_BCSS: Tensor) -> Tensor:
        """float32 (B, F) of images (B, 1 or 3, S, S) in [-1, 1]."""
        size = (DINOV2_SIDE, DINOV2_SIDE)
        resized = F.interpolate(images_BCSS.expand(-1, 3, -1, -1), size=size, mode="bicubic", antialias=True)
        return self.network.vit.forward_features(self.network.imagenet_range(resized))[:, 0]


def load_efficientnet(path: str, *, key: str = "extractor_path") -> PretrainedExtractor:
    """EfficientNet-Lite0 at the side at which scores take its features; see `load_efficientnet_features`."""
    return PretrainedExtractor(
        load_efficientnet_features(path, key=key, input_side=EFFICIENTNET_SIDE, without=another_way(key))
    )


def another_way(key: str) -> str:
    """How to evaluate without EfficientNet's weights; `key` names their path."""
    if key.startswith("judge"):
        return "or set judge.kind=svm-rbf, a judge on pixels that needs no weights"
    return "or set extractor_kind=nvg-small-image, which trains a network on the training images"


def check_dinov2_file(path: str) -> None:
    """Refuse a file that is not there, with a UserError that says where it can be had."""
    require_file(path, *_DINOV2_FILE, without=another_way("extractor_path"))


def load_dinov2(path: str, network: Dinov2ClassToken | None = None) -> PretrainedExtractor:
    """DINOv2's ViT-L/14 from the authors' file, its position table resampled as their own code does.

    Args:
        path: the file.
        network: the network to fill; None builds it.

    Raises:
        UserError: the file is missing or damaged, or holds another network.
    """
    network = network or Dinov2ClassToken()
    tensors = read_tensors(path, *_DINOV2_FILE, without=another_way("extractor_path"))
    tensors.pop("mask_token", None)  # of its own training
    vit = network.network.vit
    table, side = tensors.get("pos_embed"), vit.patch_embed.grid_size[0]
    if table is not None and table.ndim == 3 and table.shape[1:] != vit.pos_embed.shape[1:]:
        own_side = round((table.shape[1] - 1) ** 0.5)
        if table.shape[1] == 1 + own_side**2:
            grid = table[:, 1:].float().unflatten(1, (own_side, own_side)).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, scale_factor=(side + _OFFSET) / own_side, mode="bicubic")
            tensors["pos_embed"] = torch.cat([table[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)
    check_fit(tensors, vit, path)
    vit.load_state_dict(tensors)
    return PretrainedExtractor(network)
