"""From network range to bytes: the one place where a generated image becomes uint8.

Shapes: images_BCHW float in [-1, 1], images_BHWC uint8.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

ROUNDINGS: tuple[str, ...] = ("release", "round")

ImageArray = NDArray[np.uint8]


def to_uint8(images_BCHW: torch.Tensor, rounding: str = "release") -> ImageArray:
    """Turn network output into image bytes.

    Args:
        images_BCHW: float tensor, nominally in [-1, 1]; values outside are clamped.
        rounding: `release` cuts 255·(x + 1)/2 off to the integer below, as the published scores were made;
            `round` takes the nearest integer (half up). The choice moves FID a little, so it is part of
            the protocol.

    Returns:
        uint8 array (B, H, W, C).

    Raises:
        ValueError: unknown rounding, wrong number of dimensions, or a value that is not finite.

    Release: truncation of 255 (x + 1) / 2
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding: found {rounding!r}, expected one of {', '.join(ROUNDINGS)}")
    if images_BCHW.ndim != 4:
        raise ValueError(f"images: found shape {tuple(images_BCHW.shape)}, expected (B, C, H, W)")
    if not bool(torch.isfinite(images_BCHW).all()):
        raise ValueError("images: found values that are not finite; the generator or decoder has diverged")
    levels = (images_BCHW.detach().to("cpu", torch.float32).clamp(-1, 1) + 1) * 127.5
    if rounding == "round":
        levels = levels + 0.5
    return levels.floor().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def to_model_range(images_BHWC: ImageArray) -> torch.Tensor:
    """Turn image bytes into network input.

    Args:
        images_BHWC: uint8 array (B, H, W, C).

    Returns:
        float32 tensor (B, C, H, W): x / 127.5 - 1.

    Raises:
        ValueError: not a uint8 array of four dimensions.
    """
    check_images(images_BHWC, "images")
    return torch.from_numpy(images_BHWC.copy()).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1


def check_images(images_BHWC: ImageArray, name: str) -> None:
    """Refuse anything but a non-empty uint8 (B, H, W, 1 or 3) array.

    Args:
        images_BHWC: the array to look at.
        name: what the message calls it.

    Raises:
        ValueError: names what was found and what was expected.
    """
    if images_BHWC.dtype != np.uint8 or images_BHWC.ndim != 4 or images_BHWC.shape[-1] not in (1, 3):
        raise ValueError(
            f"{name}: found {images_BHWC.dtype} array of shape {images_BHWC.shape}, "
            "expected uint8 (images, height, width, 1 or 3 channels)"
        )
    if len(images_BHWC) == 0:
        raise ValueError(f"{name}: found no image, expected at least one")


def check_labels(labels_B: NDArray[np.integer], num_images: int, num_classes: int, name: str) -> None:
    """Refuse labels that do not fit their images or the class count.

    Args:
        labels_B: integer array.
        num_images: expected length.
        num_classes: labels must lie in 0..num_classes - 1.
        name: what the message calls them.

    Raises:
        ValueError: names what was found and what was expected.
    """
    if labels_B.shape != (num_images,) or not np.issubdtype(labels_B.dtype, np.integer):
        raise ValueError(
            f"{name}: found {labels_B.dtype} labels of shape {labels_B.shape}, expected {num_images} integers"
        )
    if num_images and (labels_B.min() < 0 or labels_B.max() >= num_classes):
        raise ValueError(f"{name}: found labels {labels_B.min()}..{labels_B.max()}, expected 0..{num_classes - 1}")
