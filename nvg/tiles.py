"""Images and structure maps laid out as one picture, in plain arrays: no drawing library is needed to look at samples.

Shapes: tiles uint8 (H, W, C); maps int64 (side, side).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nvg.pixels import ImageArray

TILE_PIXELS = 64  # a tile is enlarged to at least
_GAP = 12  # of a tile's side goes between two
_WHITE = 255


def lay_out(rows: Sequence[Sequence[ImageArray]]) -> ImageArray:
    """Rows of tiles of one size with white between them.

    Args:
        rows: uint8 (H, W, 1) or (H, W, 3) tiles, at least one, all of one size; a row may be shorter than others.

    Returns:
        uint8 (rows, columns, C): grey where all tiles are.
    """
    tiles = [tile for row in rows for tile in row]
    channels = max(tile.shape[-1] for tile in tiles)
    height, width = enlarge(tiles[0]).shape[:2]
    space, num_columns = max(1, width // _GAP), max(map(len, rows))
    shape = (len(rows) * (height + space) + space, num_columns * (width + space) + space, channels)
    ground = np.full(shape, _WHITE, np.uint8)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            top, left = space + y * (height + space), space + x * (width + space)
            ground[top : top + height, left : left + width] = enlarge(tile)  # grey spreads over all channels
    return ground


def stage_rows(maps: Sequence[NDArray[np.integer]], images: Sequence[ImageArray]) -> ImageArray:
    """How a picture was painted: above the structure map of every stage, below its canvas decoded.

    Args:
        maps: (side, side) of stages 0, 1, …
        images: uint8 (H, W, 1) or (H, W, 3), as many.

    Returns:
        uint8 (height, width, 3).
    """
    side = enlarge(images[0]).shape[0]
    coloured = [enlarge(map_colours(map_ss, stage), least=side) for stage, map_ss in enumerate(maps)]
    canvases = [enlarge(image, least=side) for image in images]
    if coloured[0].shape[:2] != canvases[0].shape[:2]:  # a side that the grid does not divide
        coloured = [_scaled(tile, side) for tile in coloured]
    return lay_out([coloured, canvases])


def to_rgb(images_BHWC: ImageArray) -> ImageArray:
    """Grey or colour uint8 images as uint8 RGB."""
    return np.repeat(images_BHWC, 3, axis=-1) if images_BHWC.shape[-1] == 1 else images_BHWC


def enlarge(image_HWC: ImageArray, *, least: int = TILE_PIXELS) -> ImageArray:
    """Repeat every pixel a whole number of times until the side is at least `least`."""
    factor = max(1, -(-least // max(image_HWC.shape[:2])))
    return image_HWC.repeat(factor, axis=0).repeat(factor, axis=1)


def map_colours(map_ss: NDArray[np.integer], stage: int) -> ImageArray:
    """Colour a structure map so that its hierarchy can be seen.

    The hue circle is divided as the clusters are: the two children of a cluster share its part of the circle.
    So colours at stage i + 1 are shades of the colours at stage i, and neighbouring numbers differ in
    lightness as well.

    Args:
        map_ss: cluster numbers 0..2^stage - 1.
        stage: i.

    Returns:
        uint8 RGB image, one pixel per position.
    """
    number = map_ss.astype(np.float64)
    share = (number + 0.5) / (1 << stage)
    hue = np.deg2rad(-55 + 340 * share)
    lightness = 0.73 + 0.045 * np.where(map_ss % 2 == 1, 1.0, -1.0) * (stage > 0)
    chroma = 0.118 if stage > 0 else 0.02
    return _oklch(lightness, np.full_like(number, chroma), hue)


def _scaled(tile_HWC: ImageArray, side: int) -> ImageArray:
    """A square tile at another side, each pixel the nearest one."""
    places = np.arange(side) * len(tile_HWC) // side
    return tile_HWC[places][:, places]


def _oklch(lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]) -> ImageArray:
    """OKLCH to sRGB bytes: equal steps of hue look equally far apart."""
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
        ],
        axis=-1,
    ).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)
