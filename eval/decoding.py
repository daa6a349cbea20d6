"""From the bytes of an image file to its pixels: one decoder for training sources, references and scored folders.

What is scored must be read as what it is compared with, and both as what was trained on: so nobody else opens image
files of users.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms

from nvg.errors import BadImage

Pixels = Literal["shown", "stored"]
_Transform = ImageCms.ImageCmsTransform | None
MAX_MEGAPIXELS = 64.0
MOST_MEGAPIXELS = 178  # Pillow opens no larger image
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS_ACROSS = (5, 6, 7, 8)  # height becomes width
_BAND_PIXELS = 1 << 22  # what is converted at a time, so that large images need no second copy of each step
_PNG_DEPTH_AT, _PNG_KIND_AT, _PNG_GREY = 24, 25, 0
_SRGB_LEVELS = 2


def decode_image(
    data: bytes, channels: int, *, pixels: Pixels = "shown", max_megapixels: float = MAX_MEGAPIXELS
) -> Image.Image:
    """Decode an image file, whatever its colour model; of several frames the first.

    Transparent pixels are laid on white: what is stored below them is arbitrary, often black. 16-bit pixels are
    scaled (the upper byte is kept), CMYK and palettes become RGB.

    Args:
        data: the whole file.
        channels: 1 for grey (mode "L"), 3 for colour ("RGB").
        pixels: "shown" turns the image as its orientation tag says and converts its colour profile to sRGB, as a viewer
            does; "stored" takes the numbers as they lie, as the usual ImageNet pipelines do.
        max_megapixels: larger images are refused by their header, before memory is spent on them.

    Returns:
        The image; its `info` holds "turned" and "recoloured" where tag or profile changed it.

    Raises:
        BadImage: not an image, truncated, corrupt, too large, or of an unsupported pixel format.
    """
    with _opened(data, max_megapixels) as image:
        changes, transform = _changes(image, pixels), _transform_to_srgb(image)
        image.load()
        _check_size(image, max_megapixels)  # an icon knows its size now
        if image.mode == "I" and image.format == "TIFF" and 0 < (most := np.asarray(image).max()) <= 255:
            raise BadImage(f"32-bit pixels of at most {most}: black, or of 8 bits? Save them as 8 or 16 bits")
        _scale_transparency(image, data)
        plain = _flatten(image, "L" if channels == 1 else "RGB", transform if "recoloured" in changes else None)
        if (
            "turned" in changes and (orientation := _orientation(image)) in _TURNS
        ):  # none is left of TIFF: Pillow turned
            plain = plain.transpose(_TURNS[orientation])
    plain.info = dict.fromkeys(changes, True)
    return plain


class ImageHeader(NamedTuple):
    """What the header says of the image that `decode_image` returns."""

    height: int
    width: int
    changes: tuple[str, ...]


def read_header(data: bytes, *, pixels: Pixels = "shown", max_megapixels: float = MAX_MEGAPIXELS) -> ImageHeader:
    """Look at an image without decoding it; arguments and errors are those of `decode_image`."""
    with _opened(data, max_megapixels) as image:
        changes = _changes(image, pixels)
        across = "turned" in changes and image.format != "TIFF" and _orientation(image) in _TURNS_ACROSS
        height, width = image.size if across else image.size[::-1]
        return ImageHeader(height, width, changes)


@cache
def image_suffixes() -> frozenset[str]:
    """Endings of files that may be images, in lower case, with their dot."""
    return frozenset(Image.registered_extensions())


@contextmanager
def _opened(data: bytes, max_megapixels: float) -> Iterator[Image.Image]:
    """The image behind a header that is not too large; whatever goes wrong inside is a `BadImage`."""
    if not data:
        raise BadImage("empty file")
    _ignore_warnings()
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image, max_megapixels)
            yield image
    except BadImage:
        raise
    except Image.DecompressionBombError:
        found = f"more than {MOST_MEGAPIXELS} megapixels"
        raise BadImage(f"{found}, expected at most {max_megapixels:g} (max_megapixels)") from None
    except Image.UnidentifiedImageError:
        raise BadImage("not an image in a known format") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers of formats raise whatever damage made them stumble over
        raise BadImage(f"cannot be decoded: {error}") from error


@cache
def _ignore_warnings() -> None:
    """Pillow warns at a size of its own choice, where `max_megapixels` decides, and of tags that nobody reads."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _check_size(image: Image.Image, max_megapixels: float) -> None:
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise BadImage(
            f"{image.width}×{image.height} pixels are {megapixels:.1f} megapixels, expected at most "
            f"{max_megapixels:g} (max_megapixels)"
        )


def _changes(image: Image.Image, pixels: Pixels) -> tuple[str, ...]:
    """What showing the image does to it: "turned", "recoloured"."""
    if pixels == "stored":
        return ()
    turned = ("turned",) if _orientation(image) in _TURNS else ()
    return turned if _transform_to_srgb(image) is None else (*turned, "recoloured")


def _orientation(image: Image.Image) -> int:
    """The EXIF tag, wherever a format keeps it; 1 (as it lies) where there is none or it cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as above; the pixels may be sound
        return 1
    return found if isinstance(found, int) else 1


def _scale_transparency(image: Image.Image, data: bytes) -> None:
    """Bring the transparent value of a PNG to the scale of its pixels: Pillow scales the pixels alone."""
    value = image.info.get("transparency")
    if image.format != "PNG" or value is None:
        return
    depth = data[_PNG_DEPTH_AT]
    if depth in (2, 4) and data[_PNG_KIND_AT] == _PNG_GREY:
        image.info["transparency"] = value * 255 // ((1 << depth) - 1)
    elif depth == 16 and isinstance(value, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in value)


def _flatten(image: Image.Image, mode: str, transform: _Transform) -> Image.Image:
    """8-bit pixels of a mode without transparency, in sRGB; the image itself where it has them."""
    if image.mode == mode and not image.has_transparency_data and transform is None:
        return image
    plain = Image.new(mode, image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = _on_white(_to_8_bit(image.crop((0, top, image.width, min(top + rows, image.height)))), transform)
        plain.paste(band.convert(mode), (0, top))
    return plain


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadImage("floating-point pixels have no defined range")
    if image.mode == "LAB":
        return image.convert("RGB")  # Pillow has no way from there to grey
    if not image.mode.startswith("I"):
        return image
    wide = np.asarray(image)
    if wide.min() < 0 or wide.max() > 65535:
        raise BadImage(f"pixels from {wide.min()} to {wide.max()}, expected 8 or 16 bits")
    levels = (wide >> 8).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        levels[wide == transparent] = 255
    return Image.fromarray(levels)


def _on_white(image: Image.Image, transform: _Transform) -> Image.Image:
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        alpha = colours.getchannel("A")
    elif transform is None:
        return image
    else:
        colours, alpha = image, None
    if transform is not None:
        grey = transform.input_mode == "L"  # stays grey: rounding must not tint it
        colours = transform.apply(colours.convert(transform.input_mode))
        colours = colours.convert("L").convert("RGB") if grey else colours
        if alpha is not None:
            colours.putalpha(alpha)
    if alpha is None:
        return colours
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)


def _transform_to_srgb(image: Image.Image) -> _Transform:
    """From the colours of the image's profile to sRGB; None where it has none, or none that moves a colour."""
    profile = image.info.get("icc_profile")
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    return _transform_of(profile, "L" if grey else "CMYK" if image.mode == "CMYK" else "RGB") if profile else None


@lru_cache(maxsize=32)
def _transform_of(profile: bytes, mode: str) -> _Transform:
    """None for a profile that is damaged, of another colour model, or sRGB by another name."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    lattice = np.stack(np.meshgrid(*[levels] * 3), -1).reshape(1, -1, 3) if mode == "RGB" else levels[None]
    moved = np.asarray(transform.apply(Image.fromarray(lattice))).astype(int)
    expected = lattice if mode == "RGB" else lattice[..., None]
    return transform if np.abs(moved - expected).max() > _SRGB_LEVELS else None
