"""Images in memory: bytes, the classes they show, and what an extractor says about them.

Shapes: images_BHWC uint8, labels_B integers, features_NF and logits_NV float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nvg.pixels import ImageArray, check_images


class Features(NamedTuple):
    """What one extractor says about N images; logits and spatial features only of extractors that have them."""

    features_NF: NDArray[np.float32]
    logits_NV: NDArray[np.float32] | None = None
    spatial_NG: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class ImageSet:
    """Images that are looked at together.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: integers (N,), their classes.
        features: of these images; None where nothing has looked at them yet.
    """

    images: ImageArray
    labels: NDArray[np.integer]
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.images)

    def check(self, num_classes: int, name: str) -> None:
        """Refuse images that are none, and labels that do not fit them or the class count.

        Args:
            num_classes: labels must lie in 0..num_classes - 1.
            name: what the message calls the set.

        Raises:
            ValueError: names what was found and what was expected.
        """
        check_images(self.images, f"{name} images")
        check_labels(self.labels, len(self), num_classes, f"{name} labels")


def check_labels(labels_B: NDArray[np.integer], num_images: int, num_classes: int, name: str) -> None:
    """Refuse labels that are not `num_images` integers in 0..num_classes - 1; `name` is what the message calls them.

    Raises:
        ValueError: names what was found and what was expected.
    """
    if labels_B.shape != (num_images,) or not np.issubdtype(labels_B.dtype, np.integer):
        raise ValueError(
            f"{name}: found {labels_B.dtype} labels of shape {labels_B.shape}, expected {num_images} integers"
        )
    if num_images and (labels_B.min() < 0 or labels_B.max() >= num_classes):
        raise ValueError(f"{name}: found labels {labels_B.min()}..{labels_B.max()}, expected 0..{num_classes - 1}")
