"""Bytes of an image file to pixels."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image

from pipelines.sources.source import BadImage

_DECODING_ERRORS = (
    OSError,  # includes UnidentifiedImageError and truncated files
    SyntaxError,  # how Pillow reports a broken PNG
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)


def decode_image(data: bytes, channels: int) -> Image.Image:
    """Decode an image file, whatever its colour model.

    Transparent pixels are laid on white: what is stored below them is arbitrary, often black. 16-bit pixels are
    scaled (the upper byte is kept), CMYK and palettes become RGB. Orientation tags are not applied, as in the
    usual ImageNet pipelines.

    Args:
        data: The whole file.
        channels: 1 for grey, 3 for RGB.

    Returns:
        An 8-bit image of mode "L" or "RGB".

    Raises:
        BadImage: Not an image, truncated, corrupt, too large, or of an unsupported pixel format.
    """
    if not data:
        raise BadImage("empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return _on_white(_to_8_bit(image)).convert("L" if channels == 1 else "RGB")
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage("not an image in a known format") from None
    except _DECODING_ERRORS as error:
        raise BadImage(f"cannot be decoded: {error}") from error


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadImage("floating-point pixels have no defined range")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise BadImage(f"pixels from {wide.min()} to {wide.max()}, expected 8 or 16 bits")
        return Image.fromarray((wide >> 8).astype(np.uint8))
    return image


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
