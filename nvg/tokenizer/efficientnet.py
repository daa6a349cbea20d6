"""EfficientNet-Lite0, trained on ImageNet: features of images that nobody here trained.

A feature space for scores, the features of a judge, and the maps behind a loss and a target of the trainings.

Legend: B images, C channels, S side, h side of a map, F = 1,280 pooled features, N = h · h tokens of D = 112 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from nvg.bounds import refuse
from nvg.precision import without_autocast
from nvg.tokenizer.frozen import freeze

BACKBONE = "tf_efficientnet_lite0"
NUM_FEATURES = 1280
MAP_CHANNELS = (16, 24, 40, 112, 320)  # of the maps of each depth, whose sides are the input's over 2, 4, 8, 16, 32
_LEAST_SIDE = 32
_TOKEN_DEPTH, _TOKEN_STRIDE = 3, 16  # the map of the tokens; pixels from one of its positions to the next


class EfficientNetFeatures(nn.Module):
    """Frozen EfficientNet-Lite0 in fp32, also within autocast: pooled features, or feature maps of chosen depths.

    Built with random weights; `nvg.checkpoints.load_efficientnet_features` puts those of ImageNet in place. Gradients
    reach the images, never the weights.

    Args:
        input_side: images of any other side are resized to it, bicubic, with antialiasing where they shrink; trained
            at 224, and rarely worth less than 64.

    Raises:
        UserError: `input_side` is too small to leave a map.

    Release: images as (byte - 127) / 128, as in TensorFlow's `efficientnet_lite_builder`; BatchNorm epsilon 1e-3
    """

    def __init__(self, input_side: int) -> None:
        super().__init__()
        if input_side < _LEAST_SIDE:
            raise refuse("input_side", input_side, f"{_LEAST_SIDE} or more: the network halves it five times")
        from timm.models import create_model  # a frozen backbone is the only use of timm

        self.input_side = input_side
        self.backbone: Any = create_model(BACKBONE)
        freeze(self)

    def train(self, mode: bool = True) -> EfficientNetFeatures:
        """Stays in evaluation mode: the statistics of its BatchNorm are ImageNet's."""
        return super().train(False)

    def fold(self) -> None:
        """Puts the network in a form that takes less time, the same up to rounding; for when its weights are in place.

        Every BatchNorm goes into the convolution before it, and channels lie last in memory. Its `state_dict` has other
        names from then on.

        Release: BatchNorm's statistics are ImageNet's and fixed, so it is linear, as a convolution is
        """
        _fold(self.backbone)
        self.backbone.to(memory_format=torch.channels_last)

    def forward(self, images_BCSS: Tensor) -> Tensor:
        """float32 (B, F) of images (B, 1 or 3, S, S) in [-1, 1], grey ones repeated over three channels."""
        with without_autocast(images_BCSS.device):
            last = self.backbone.forward_features(self._prepared(images_BCSS))
            return self.backbone.forward_head(last, pre_logits=True)

    def maps(self, images_BCSS: Tensor, depths: Sequence[int]) -> list[Tensor]:
        """Feature maps, the shallowest first.

        Args:
            images_BCSS: float (B, 1 or 3, S, S) in [-1, 1].
            depths: numbers from 0 (side h of half the input's) to 4 (a 32nd), ascending; see `MAP_CHANNELS`.

        Returns:
            float32 (B, channels, h, h) for each depth; what lies deeper is not computed.
        """
        with without_autocast(images_BCSS.device):
            return self.backbone.forward_intermediates(
                self._prepared(images_BCSS), indices=list(depths), stop_early=True, intermediates_only=True
            )

    def _prepared(self, images_BCSS: Tensor) -> Tensor:
        """As the network saw images in its training, whose bytes are 127.5 · (x + 1)."""
        images_BCSS = images_BCSS.float().expand(-1, 3, -1, -1)
        if images_BCSS.shape[-2:] != (self.input_side, self.input_side):
            size = (self.input_side, self.input_side)
            images_BCSS = F.interpolate(images_BCSS, size=size, mode="bicubic", antialias=True)
        return (images_BCSS * 127.5 + 0.5) / 128.0


def _fold(module: nn.Module) -> None:
    """Folds what lies in a module, whose convolutions are registered in front of their normalisations."""
    convolutions: dict[str, nn.Conv2d] = {}
    for name, part in list(module.named_children()):
        if isinstance(part, nn.Conv2d):
            convolutions[name] = part
        elif isinstance(part, nn.BatchNorm2d):
            before, convolution = convolutions.popitem()
            setattr(module, before, fuse_conv_bn_eval(convolution, part))
            setattr(module, name, part.get_submodule("act"))  # timm's have their activation in them
        else:
            _fold(part)


class EfficientNetTokens(nn.Module):
    """Tokens on the grid of a latent, a target of the alignment of hidden tokens (REPA) that a CPU can afford.

    The map of depth 3 of images at 16 times the grid's side: it has the grid's positions, so nothing is resampled.
    Built with random weights; `nvg.checkpoints.load_efficientnet_tokens` puts those of ImageNet in place.

    Args:
        grid_side: h.

    Paper: §2.2.2 (in the place of DINOv2)
    """

    width = MAP_CHANNELS[_TOKEN_DEPTH]

    def __init__(self, grid_side: int) -> None:
        super().__init__()
        self.features = EfficientNetFeatures(_TOKEN_STRIDE * grid_side)
        self.num_tokens = grid_side**2

    @property
    def description(self) -> dict[str, int]:
        """What decides the tokens besides the weights, JSON."""
        return {"input_side": self.features.input_side, "depth": _TOKEN_DEPTH}

    @torch.no_grad()
    def forward(self, images_BCSS: Tensor) -> Tensor:
        """float32 (B, N, D) of images (B, 1 or 3, S, S) in [-1, 1]; N in raster order."""
        (map_BDhh,) = self.features.maps(images_BCSS, [_TOKEN_DEPTH])
        return map_BDhh.flatten(2).transpose(1, 2)
