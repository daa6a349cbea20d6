"""A user's picture as a tokenizer takes it: an array of any size, cut to its square as the training images were.

It does what `pipelines.sources` does to files, to the bit, with NumPy alone: Pillow's Lanczos filter, its grey of
colours and its nearest neighbour. Decoded pictures of Pillow come in through the array protocol.
Shapes: picture_HWC uint8; matrix_OI, output and input pixels of a line.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nvg.bounds import refuse
from nvg.errors import UserError
from nvg.pixels import ImageArray

Cut = Literal["center", "crop", "pad"]
CROP_RATIO = 1.125  # shorter side before a crop, in sides of the square
_MOST_PIXELS = 1 << 26
_MODES = ("L", "RGB", "RGBA")
_LANCZOS_LOBES = 3.0
_WEIGHT_BITS = 22  # of Pillow's integer weights: what 32 bits leave above a byte and two bits of overshoot


def cut_picture(picture: Any, size: int, channels: int, cut: Cut, *, name: str = "picture") -> ImageArray:
    """Cut a picture to a square.

    Args:
        picture: array, or anything with the array protocol: uint8 (H, W), (H, W, 1), (H, W, 3), or (H, W, 4) with
            transparency, which is laid on white.
        size: side of the square, pixels.
        channels: 1 (grey) or 3 (colour) of the result.
        cut: "center" resizes the shorter side to `size` and takes the centre; "crop" resizes it to 1.125 · `size` and
            takes the centre; "pad" keeps the pixels and puts them on the middle of a black square.
        name: what a message calls the picture.

    Returns:
        uint8 (size, size, channels).

    Raises:
        UserError: no such array, so elongated that it would not fit in memory, or too large to be padded.

    Release: shorter side to 288 (Lanczos), 256 crop
    """
    levels_HWC = _with_channels(_checked(picture, name), channels)
    side = _framed_side(size, cut, name)
    return _centre(_pad(levels_HWC, size, name) if cut == "pad" else _resize(levels_HWC, side, name, _lanczos), size)


def cut_labels(labels_HW: Any, size: int, cut: Cut, *, name: str = "labels") -> NDArray[np.int64]:
    """Cut a label map (a segmentation) as `cut_picture` cuts its picture; no label is blended.

    Args:
        labels_HW: integers, rows and columns.
        size, cut, name: as of `cut_picture`.

    Returns:
        int64 (size, size).

    Raises:
        UserError: no such array, or it cannot be cut so.

    Paper: §3.2
    """
    labels_HW = np.asarray(labels_HW)
    if labels_HW.ndim != 2 or labels_HW.size == 0 or not np.issubdtype(labels_HW.dtype, np.integer):
        found = f"{labels_HW.dtype} of shape {labels_HW.shape}"
        raise UserError(f"{name}: found {found}; expected integers, rows and columns of labels; convert them first")
    labels_HW1 = labels_HW.astype(np.int64)[..., None]
    side = _framed_side(size, cut, name)
    framed = _pad(labels_HW1, size, name) if cut == "pad" else _resize(labels_HW1, side, name, _nearest)
    return _centre(framed, size)[..., 0]


def cut_mask(mask: Any, picture: Any, size: int, cut: Cut, *, name: str = "keep") -> NDArray[np.bool_]:
    """Lay a mask over a picture and cut it as `cut_picture` cuts that; every pixel that black touches is black.

    Args:
        mask: numbers or true and false (H, W), or a picture, in the proportions of `picture`: white (above the middle
            between its lowest and highest value) is true.
        picture: what it lies over; its height and width are looked at.
        size, cut, name: as of `cut_picture`.

    Returns:
        bool (size, size), true where white; what `cut` pads is white, too.

    Raises:
        UserError: no such mask, one colour alone, other proportions, or it cannot be cut so.

    Paper: §3.2
    """
    levels_HW = mask_levels(mask, name).astype(np.float64)
    low, high = levels_HW.min(), levels_HW.max()
    if not np.isfinite([low, high]).all():
        raise UserError(f"{name}: found values that are not finite; expected numbers from black to white; mend them")
    if low == high:
        raise UserError(
            f"{name}: found one colour ({low:g}) all over; expected white where the picture is kept and black where it "
            "is not; draw both"
        )
    (height, width), shape = levels_HW.shape, np.asarray(picture).shape[:2]
    if min(abs(height * shape[1] / width - shape[0]), abs(width * shape[0] / height - shape[1])) > 1:
        raise UserError(
            f"{name}: found {width}x{height} pixels over a picture of {shape[1]}x{shape[0]}; expected the same "
            "proportions; crop one of them"
        )
    black_HW1 = (levels_HW <= (low + high) / 2)[..., None]
    for axis, length in enumerate(shape):
        black_HW1 = _touched(black_HW1, axis, length)
    side = _framed_side(size, cut, name)
    framed = _pad(black_HW1, size, name) if cut == "pad" else _resize(black_HW1, side, name, _touched)
    return ~_centre(framed, size)[..., 0]


def mask_levels(mask: Any, name: str = "mask") -> NDArray[Any]:
    """A drawn mask as numbers (H, W): of a picture the grey of its colours, of true and false white and black.

    Raises:
        UserError: neither numbers (H, W) nor a picture.
    """
    levels = np.asarray(mask)
    if levels.dtype == np.bool_:
        levels = levels.astype(np.uint8) * np.uint8(255)
    if levels.ndim == 2 and levels.size and np.issubdtype(levels.dtype, np.number) and not np.iscomplexobj(levels):
        return levels
    return _with_channels(_checked(mask if levels.dtype != np.uint8 else levels, name), 1)[..., 0]


def _framed_side(size: int, cut: str, name: str) -> int:
    if cut not in get_args(Cut):
        raise refuse("cut", cut, f"one of {', '.join(get_args(Cut))}, for {name}")
    return round(size * CROP_RATIO) if cut == "crop" else size


def _checked(picture: Any, name: str) -> ImageArray:
    """The picture as uint8 (H, W, C)."""
    mode = getattr(picture, "mode", None)  # of Pillow: a palette's numbers and CMYK would be taken for levels
    if isinstance(mode, str) and mode not in _MODES:
        raise UserError(f"{name}: found a picture of mode {mode}; expected {', '.join(_MODES)}; convert('RGB') it")
    levels = np.asarray(picture)
    levels_HWC = levels[..., None] if levels.ndim == 2 else levels
    if levels.dtype != np.uint8 or levels_HWC.ndim != 3 or levels_HWC.shape[-1] not in (1, 3, 4) or not levels.size:
        what = f"{levels.dtype} array of shape {levels.shape}" if levels.ndim else f"a {type(picture).__name__}"
        raise UserError(
            f"{name}: found {what}; expected uint8 (height, width), or (height, width, 1, 3 or 4 channels); read the "
            "file with an image library first, and give its pixels as bytes"
        )
    return levels_HWC


def _with_channels(levels_HWC: ImageArray, channels: int) -> ImageArray:
    if levels_HWC.shape[-1] == 4:
        levels_HWC = _on_white(levels_HWC)
    if levels_HWC.shape[-1] == channels:
        return levels_HWC
    if channels == 3:
        return np.repeat(levels_HWC, 3, axis=-1)
    red, green, blue = np.moveaxis(levels_HWC.astype(np.int64), -1, 0)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[..., None]


def _on_white(levels_HW4: ImageArray) -> ImageArray:
    """Transparent colours over white, in the integers of Pillow's `alpha_composite` over an opaque ground."""
    colours_HW3, alpha_HW1 = levels_HW4[..., :3].astype(np.int64), levels_HW4[..., 3:].astype(np.int64)
    weight_HW1 = alpha_HW1 * 255 * 255 * (1 << 7) // (255 * 255)
    blended = colours_HW3 * weight_HW1 + 255 * ((255 << 7) - weight_HW1) + (0x80 << 7)
    return ((((blended >> 8) + blended) >> 8) >> 7).astype(np.uint8)


def _resize(values_HWC: NDArray[Any], side: int, name: str, resample: Any) -> NDArray[Any]:
    """Bring the shorter side to `side` pixels: of a tall picture rows first, else columns, as Pillow 13 does.

    Bytes are rounded after each axis, so the order shows in the last level; earlier Pillows always begin with columns.
    """
    shorter = min(values_HWC.shape[:2])
    height, width = (max(side, round(length * side / shorter)) for length in values_HWC.shape[:2])
    if width * height > _MOST_PIXELS:
        raise UserError(f"{name}: too elongated: {values_HWC.shape[1]}x{values_HWC.shape[0]} pixels; cut it first")
    fewer_rows, fewer_columns = values_HWC.shape[0] - height, values_HWC.shape[1] - width
    passes = [(1, width), (0, height)]
    for axis, length in reversed(passes) if fewer_rows > max(0, 2 * fewer_columns) else passes:
        if values_HWC.shape[axis] != length:
            values_HWC = resample(values_HWC, axis, length)
    return values_HWC


def _lanczos(levels_HWC: ImageArray, axis: int, length: int) -> ImageArray:
    """Resize one axis of bytes with Pillow's Lanczos filter in its integers."""
    matrix_OI = _lanczos_weights(levels_HWC.shape[axis], length)
    # Products and sums are integers below 2^53: the matrix product of doubles is exact, in any order.
    summed = np.tensordot(matrix_OI, levels_HWC.astype(np.float64), axes=(1, axis))
    levels = (summed.astype(np.int64) + (1 << (_WEIGHT_BITS - 1))) >> _WEIGHT_BITS
    return np.moveaxis(levels.clip(0, 255).astype(np.uint8), 0, axis)


@lru_cache(maxsize=8)
def _lanczos_weights(num_inputs: int, num_outputs: int) -> NDArray[np.float64]:
    """Integer weights of each input for each output, (outputs, inputs)."""
    scale = num_inputs / num_outputs
    filter_scale = max(scale, 1.0)
    support = _LANCZOS_LOBES * filter_scale
    matrix_OI = np.zeros((num_outputs, num_inputs))
    for output in range(num_outputs):
        centre = (output + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        last = min(num_inputs, int(centre + support + 0.5))
        weights = [_lanczos_at((place - centre + 0.5) * (1.0 / filter_scale)) for place in range(first, last)]
        total = sum(weights)
        for place, weight in enumerate(weights, start=first):
            scaled = weight * (1.0 / total) * (1 << _WEIGHT_BITS)
            matrix_OI[output, place] = int(scaled - 0.5) if scaled < 0 else int(scaled + 0.5)
    return matrix_OI


def _lanczos_at(place: float) -> float:
    if not -_LANCZOS_LOBES <= place < _LANCZOS_LOBES:
        return 0.0
    return _sinc(place) * _sinc(place / _LANCZOS_LOBES)


def _sinc(place: float) -> float:
    return 1.0 if place == 0.0 else math.sin(place * math.pi) / (place * math.pi)


def _nearest(values_HWC: NDArray[Any], axis: int, length: int) -> NDArray[Any]:
    """Resize one axis by taking the nearest value, in the running sums of Pillow."""
    step = values_HWC.shape[axis] / length
    places = np.cumsum(np.r_[step * 0.5, np.full(length - 1, step)])
    return values_HWC.take(np.minimum(places.astype(np.int64), values_HWC.shape[axis] - 1), axis)


def _touched(values_HWC: NDArray[np.bool_], axis: int, length: int) -> NDArray[np.bool_]:
    """Resize one axis of truths: an output is true where any input that it lies over is."""
    count = values_HWC.shape[axis]
    firsts = [output * count // length for output in range(length)]
    ends = [-(-(output + 1) * count // length) for output in range(length)]
    parts = [values_HWC.take(range(first, end), axis).any(axis) for first, end in zip(firsts, ends, strict=True)]
    return np.stack(parts, axis)


def _pad(values_HWC: NDArray[Any], size: int, name: str) -> NDArray[Any]:
    height, width = values_HWC.shape[:2]
    if max(height, width) > size:
        raise UserError(
            f"{name}: too large to pad: {width}x{height} pixels, expected at most {size} a side, as this model's "
            'training images were padded; give a smaller one, or set cut="center" (control.view_policy=center)'
        )
    square = np.zeros((size, size, values_HWC.shape[-1]), values_HWC.dtype)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = values_HWC
    return square


def _centre(framed_HWC: NDArray[Any], size: int) -> NDArray[Any]:
    top, left = ((length - size) // 2 for length in framed_HWC.shape[:2])
    return np.ascontiguousarray(framed_HWC[top : top + size, left : left + size])
