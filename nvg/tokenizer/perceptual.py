"""Perceptual distance of two images: LPIPS on a frozen VGG-16 (or AlexNet).

Legend: B images, C channels, S side.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from nvg.tokenizer.frozen import freeze


class PerceptualDistance(nn.Module):
    """LPIPS v0.1; its linear weights come with the `lpips` package, those of the trunk from a file.

    Built with a random trunk; `nvg.checkpoints.load_frozen` puts torchvision's ImageNet weights in place.

    Args:
        trunk: "vgg" (training loss, and reported) or "alex" (reported).

    Paper: App. A.5 (losses of Open-MAGVIT2), Table 3
    """

    def __init__(self, trunk: str) -> None:
        super().__init__()
        from lpips import LPIPS  # only where the distance is wanted: it needs torchvision

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # lpips names torchvision's argument by its old name
            self.lpips: Any = LPIPS(net=trunk, pnet_rand=True, verbose=False)
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
