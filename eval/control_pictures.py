"""What was given and what came of it, in one picture.

Shapes: images uint8 (H, W, C); maps int64 (side, side).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eval.pictures.drawing import (
    Picture,
    Theme,
    both_themes,
    enlarge,
    map_colours,
    mosaic,
    new_figure,
    place,
    show,
    to_rgb,
)
from eval.pixels import ImageArray, check_images

WIDTH, GAP, HEAD, LINE = 7.6, 0.1, 0.3, 0.2
MOST_COLUMNS = 12
LEAST_TILE_PIXELS = 192


def control_sheet(
    source_HWC: ImageArray | None,
    maps_Sss: Sequence[NDArray[np.integer]],
    rows: Sequence[tuple[str, ImageArray]],
    *,
    source_name: str,
    agreements: Sequence[float] | None = None,
) -> Picture:
    """The image or mask, the maps it gave, and rows of samples under them.

    Args:
        source_HWC: uint8 image or mask; None leaves its place out.
        maps_Sss: given maps of stages 1, 2, …; may be empty.
        rows: name and uint8 samples of each row, as many columns as fit are shown.
        source_name: what stands over the source.
        agreements: of the samples with each given split, written under its map; may be shorter.

    Returns:
        The picture.

    Raises:
        ValueError: no row, or not such images.
    """
    if not rows:
        raise ValueError("rows: found none, expected at least one row of samples")
    for name, images_BHWC in rows:
        check_images(images_BHWC, name)
    heads = [] if source_HWC is None else [(source_name, "", to_rgb(source_HWC[None])[0])]
    heads += [
        (f"split {stage}", _agreement(agreements, stage - 1), map_colours(map_ss, stage))
        for stage, map_ss in enumerate(maps_Sss, start=1)
    ]
    columns = max(len(heads), min(MOST_COLUMNS, max(len(images) for _, images in rows)), 6)
    margin = 1.0

    def draw(theme: Theme) -> Figure:
        tile = (WIDTH - margin - GAP * (columns - 1)) / columns
        height = HEAD + tile + LINE + len(rows) * (tile + GAP) + GAP
        figure = new_figure(WIDTH, height)
        _write(figure, 0.0, HEAD + tile / 2, "given", theme.accent, bold=True)
        for column, (above, below, picture) in enumerate(heads):
            x = margin + column * (tile + GAP)
            _write(figure, x + tile / 2, HEAD / 2, above, theme.ink, centred=True)
            show(place(figure, x, HEAD, tile, tile), mosaic([[enlarge(picture, least=LEAST_TILE_PIXELS)]]))
            _write(figure, x + tile / 2, HEAD + tile + LINE / 2, below, theme.faint, centred=True)
        if agreements:
            _write(figure, 0.0, HEAD + tile + LINE / 2, "agreement", theme.faint)
        for number, (name, images_BHWC) in enumerate(rows):
            y = HEAD + tile + LINE + GAP + number * (tile + GAP)
            _write(figure, 0.0, y + tile / 2, name, theme.ink)
            for column, image in enumerate(to_rgb(images_BHWC[:columns])):
                x = margin + column * (tile + GAP)
                show(place(figure, x, y, tile, tile), mosaic([[enlarge(image, least=LEAST_TILE_PIXELS)]]))
        return figure

    return both_themes(draw)


def _agreement(agreements: Sequence[float] | None, split: int) -> str:
    return f"{agreements[split]:.0%}" if agreements is not None and split < len(agreements) else ""


def _write(
    figure: Figure, x: float, y: float, text: str, colour: str, *, bold: bool = False, centred: bool = False
) -> None:
    """Write at a place given in inches from the upper left corner."""
    width, height = figure.get_size_inches()
    figure.text(
        x / width,
        1 - y / height,
        text,
        color=colour,
        fontsize=8.5,
        fontweight="bold" if bold else "normal",
        ha="center" if centred else "left",
        va="center",
    )
