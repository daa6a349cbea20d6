"""Drawing ground of all pictures: two themes, mosaics of tiles.

Every picture is drawn twice, for light and for dark pages, on a transparent ground.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nvg.pixels import ImageArray
from nvg.tiles import enlarge

DPI = 200
_CSS_PIXELS_PER_INCH = 96


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of one page.

    Attributes:
        ink: text and axes.
        faint: grid, second-rank lines and text.
        accent: the one colour that carries meaning.
    """

    ink: str
    faint: str
    accent: str


LIGHT = Theme(ink="#22262b", faint="#8b939c", accent="#0f766e")
_DARK = Theme(ink="#e4e7ea", faint="#7d858e", accent="#4fd1c0")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture as PNG bytes, for a light and for a dark page; `width` and `height` in CSS pixels."""

    light: bytes
    dark: bytes
    width: int
    height: int


def both_themes(draw: Callable[[Theme], Figure]) -> Picture:
    """Draw a figure for both themes; `draw` makes it for one."""
    light, dark = draw(LIGHT), draw(_DARK)
    width, height = (round(_CSS_PIXELS_PER_INCH * inches) for inches in light.get_size_inches())
    return Picture(light=to_png(light), dark=to_png(dark), width=width, height=height)


def new_figure(width: float, height: float) -> Figure:
    """A figure of the given size in inches with a transparent ground, outside pyplot's global state."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    return figure


def white_figure(width: float, height: float) -> Figure:
    """As `new_figure`, on a white ground: for pictures that are files of their own."""
    figure = new_figure(width, height)
    figure.patch.set_alpha(1.0)
    figure.patch.set_facecolor("white")
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", transparent=True)
    return stream.getvalue()


def _rounded(tile_HW3: ImageArray) -> ImageArray:
    """A tile as RGBA with softly rounded corners."""
    height, width = tile_HW3.shape[:2]
    radius = max(2.0, 0.09 * min(height, width))
    y, x = np.mgrid[0:height, 0:width] + 0.5
    dy = np.maximum(np.maximum(radius - y, y - (height - radius)), 0)
    dx = np.maximum(np.maximum(radius - x, x - (width - radius)), 0)
    alpha = np.clip(radius - np.hypot(dx, dy) + 0.5, 0, 1)
    return np.concatenate([tile_HW3, (255 * alpha)[..., None].astype(np.uint8)], axis=-1)


def mosaic(tiles: list[list[ImageArray | None]], *, gap: float = 0.08) -> ImageArray:
    """Lay tiles out in rows on a transparent ground.

    Args:
        tiles: rows of uint8 (H, W, 3) tiles of one size; None leaves a place empty.
        gap: space between tiles, as a fraction of the tile.

    Returns:
        uint8 RGBA picture.
    """
    shown = [tile for row in tiles for tile in row if tile is not None]
    height, width = enlarge(shown[0]).shape[:2]
    space = max(1, round(gap * width))
    num_rows, num_columns = len(tiles), max(len(row) for row in tiles)
    ground = np.zeros((num_rows * (height + space) - space, num_columns * (width + space) - space, 4), dtype=np.uint8)
    for r, row in enumerate(tiles):
        for c, tile in enumerate(row):
            if tile is not None:
                top, left = r * (height + space), c * (width + space)
                ground[top : top + height, left : left + width] = _rounded(enlarge(tile))
    return ground


def show(axes: Axes, picture: ImageArray) -> None:
    """Draw a picture without frame or ticks, pixel edges kept sharp."""
    axes.imshow(picture, interpolation="nearest" if max(picture.shape) < 4000 else "antialiased")
    axes.set_axis_off()


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches from the upper left corner."""
    total_width, total_height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
    )
    axes.patch.set_alpha(0.0)
    return axes
