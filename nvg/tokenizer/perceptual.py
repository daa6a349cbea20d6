"""Perceptual distance of two images: LPIPS on a frozen VGG-16 (or AlexNet).

Legend: B images, C channels, S side.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nvg.tokenizer.frozen import freeze


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
