"""Distances of two images as frozen networks see them: LPIPS on a VGG-16 (or AlexNet), or plainly in feature maps.

Legend: B images, C channels, S side, h side of a map.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.tokenizer.efficientnet import EfficientNetFeatures
from nvg.tokenizer.frozen import freeze

FEATURE_DEPTHS = (0, 1, 2, 3)  # of EfficientNet-Lite0; a map of the last would have four positions or fewer at 64
_LEAST_INPUT_SIDE = 64


class PerceptualDistance(nn.Module):
    """LPIPS v0.1; its linear weights come with torchmetrics, those of the trunk from a file.

    Built with a random trunk; `nvg.checkpoints.load_perceptual_distance` puts torchvision's ImageNet weights in place.

    Args:
        trunk: "vgg" (training loss, and reported) or "alex" (reported).

    Paper: App. A.5 (losses of Open-MAGVIT2), Table 3
    """

    def __init__(self, trunk: str) -> None:
        super().__init__()
        # Only where the distance is wanted: it needs torchvision. The public class builds the network with downloaded
        # weights alone.
        from torchmetrics.functional.image import lpips

        network: Any = lpips._LPIPS
        self.lpips = network(net=trunk, pnet_rand=True)
        freeze(self)

    def forward(self, found_BCSS: Tensor, expected_BCSS: Tensor) -> Tensor:
        """Distance of each pair of images.

        Args:
            found_BCSS, expected_BCSS: float (B, 1 or 3, S, S) in [-1, 1]; grey images are repeated over three channels.

        Returns:
            float (B,), 0 for equal images.
        """
        found_BCSS, expected_BCSS = (images.expand(-1, 3, -1, -1) for images in (found_BCSS, expected_BCSS))
        return self.lpips(found_BCSS, expected_BCSS).flatten()


class FeatureDistance(nn.Module):
    """Distance of two images in feature maps of EfficientNet-Lite0: a loss where there is no VGG, and never LPIPS.

    As in LPIPS, the channels of a position are scaled to unit length; unlike it, nothing was fitted to what people
    find alike: squared differences are summed over channels, and averaged over positions and over `FEATURE_DEPTHS`. At
    each position that is 2 - 2 · cosine.

    Built with random weights; `nvg.checkpoints.load_feature_distance` puts those of ImageNet in place.

    Args:
        image_side: S; images below 64 are enlarged to it, bicubic.

    Paper: App. A.5 (in the place of LPIPS)
    """

    def __init__(self, image_side: int) -> None:
        super().__init__()
        self.network = EfficientNetFeatures(max(image_side, _LEAST_INPUT_SIDE))

    def forward(self, found_BCSS: Tensor, expected_BCSS: Tensor) -> Tensor:
        """Distance of each pair of images; gradients reach `found` alone.

        Args:
            found_BCSS, expected_BCSS: float (B, 1 or 3, S, S) in [-1, 1].

        Returns:
            float32 (B,) from 0, for equal images, to 4.
        """
        with torch.no_grad():
            expected = self.network.maps(expected_BCSS, FEATURE_DEPTHS)
        found = self.network.maps(found_BCSS, FEATURE_DEPTHS)
        pairs = zip(found, expected, strict=True)
        distances = [
            (F.normalize(one_BChh, dim=1) - F.normalize(other_BChh, dim=1)).square().sum(1).mean((1, 2))
            for one_BChh, other_BChh in pairs
        ]
        return torch.stack(distances).mean(0)
