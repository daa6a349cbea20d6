"""Between image bytes and the range of the networks: the one place where either becomes the other.

Bytes are uint8, 0 to 255, channels last; networks read and write float32 in [-1, 1], channels first.
Shapes: images_BHWC uint8, images_BCHW float32; C is 1 or 3.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rounding = Literal["release", "round"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)

ImageArray = NDArray[np.uint8]


def scale_levels(levels: Tensor) -> Tensor:
    """Bytes as float32 in [-1, 1], x / 127.5 - 1, of any shape; shape, layout and device stay.

    The same numbers on every device: a GPU would multiply by the reciprocal of a plain number, off in the last bit.

    Release: images / 127.5 - 1
    """
    return levels.to(torch.float32) / torch.full((), 127.5, dtype=torch.float32, device=levels.device) - 1


def to_model_range(images_BHWC: ImageArray, *, planes: bool = False) -> Tensor:
    """Turn image bytes into network input.

    Args:
        images_BHWC: uint8 array.
        planes: lay the result out channel after channel, as training reads it. Otherwise it lies in memory as the bytes
            do (channels last), as the published scores were computed: a convolution may sum in another order on either.

    Returns:
        float32 tensor (B, C, H, W) on the CPU, in [-1, 1].

    Raises:
        ValueError: not such an array.
    """
    check_images(images_BHWC, "images")
    if planes:
        return scale_levels(torch.from_numpy(np.moveaxis(images_BHWC, -1, 1).copy()))
    return scale_levels(torch.from_numpy(images_BHWC.copy()).permute(0, 3, 1, 2))


def to_uint8(images_BCHW: Tensor, rounding: str = "release") -> ImageArray:
    """Turn network output into image bytes.

    Args:
        images_BCHW: float tensor on any device, nominally in [-1, 1]; values outside are clamped.
        rounding: `release` cuts 255·(x + 1)/2 off to the integer below, as the published scores were made; `round`
            takes the nearest integer (half up). The choice moves FID a little, so it is part of the protocol.

    Returns:
        uint8 array (B, H, W, C).

    Raises:
        ValueError: unknown rounding, wrong number of dimensions, or a value that is not finite.

    Release: truncation of 255 (x + 1) / 2
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding is {rounding!r}; expected one of {', '.join(ROUNDINGS)}; change rounding")
    if images_BCHW.ndim != 4:
        raise ValueError(f"images: found shape {tuple(images_BCHW.shape)}, expected (B, C, H, W)")
    if not bool(torch.isfinite(images_BCHW).all()):
        raise ValueError("images: found values that are not finite; the generator or decoder has diverged")
    levels = (images_BCHW.detach().to("cpu", torch.float32).clamp(-1, 1) + 1) * 127.5
    if rounding == "round":
        levels = levels + 0.5
    return levels.floor().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


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
    if images_BHWC.size == 0:
        raise ValueError(f"{name}: found no image in an array of shape {images_BHWC.shape}, expected at least one")
