"""The pictures of a report, each drawn for light and dark pages.

Every function takes arrays and returns a `Picture`; nothing is written to disk.
Shapes: images_BHWC uint8, labels_B int64.

One picture of a tokenizer: originals, reconstructions, error, and the reconstruction after each stage.

What was given and what came of it, in one picture.

Shapes: images uint8 (H, W, C); maps int64 (side, side).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eval.pictures.drawing import (
    LIGHT,
    Picture,
    Theme,
    both_themes,
    enlarge,
    map_colours,
    mosaic,
    new_figure,
    place,
    show,
    to_png,
    to_rgb,
)
from eval.pictures.paintings import Painting
from nvg.errors import UserError
from nvg.pixels import ImageArray, check_images

ERROR_SCALE = 4  # white is a difference of 64 grey levels or more
MOST_CLASSES_SHOWN = 12
LARGEST_TILE = 1.1  # inches
WIDTH, GAP, HEAD, LINE = 7.6, 0.1, 0.3, 0.2
MOST_COLUMNS = 12
LEAST_TILE_PIXELS = 192


def absolute_error(images_BHWC: ImageArray, copies_BHWC: ImageArray) -> ImageArray:
    """Absolute difference, mean over channels, four times as bright: uint8 (B, H, W, 1)."""
    error = np.abs(images_BHWC.astype(np.int16) - copies_BHWC).mean(axis=-1, keepdims=True)
    return (ERROR_SCALE * error).clip(0, 255).astype(np.uint8)


def tokenizer_sheet(paintings: Sequence[Painting]) -> bytes:
    """Draw the sheet, one column per image.

    Args:
        paintings: images taken apart, their originals with them.

    Returns:
        PNG bytes on a white ground.

    Raises:
        ValueError: no painting, or one without its original.
    """
    originals = [painting.original_HWC for painting in paintings if painting.original_HWC is not None]
    if not originals or len(originals) != len(paintings):
        raise ValueError("tokenizer sheet: expected at least one painting, each with its original")
    before = np.stack(originals)
    stages = np.stack([painting.stages_SHWC for painting in paintings], axis=1)
    groups = [
        [("original", before), ("reconstruction", stages[-1]), ("error ×4", absolute_error(before, stages[-1]))],
        [(f"stage {stage} · {_tokens(stage)}", images) for stage, images in enumerate(stages)],
    ]
    margin, tile, between = 1.3, min(0.8, 8.4 / len(paintings)), 0.16
    num_rows = sum(len(group) for group in groups)
    figure = new_figure(margin + tile * len(paintings) + 0.05, tile * num_rows + between + 0.1)
    figure.patch.set_alpha(1.0)
    figure.patch.set_facecolor("white")
    top = 0.05
    for group in groups:
        for name, images_BHWC in group:
            row: list[ImageArray | None] = [enlarge(image, least=128) for image in to_rgb(images_BHWC)]
            axes = place(figure, margin, top, tile * len(paintings), 0.92 * tile)
            show(axes, mosaic([row]))
            axes.text(-0.01, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=8, color=LIGHT.ink)
            top += tile
        top += between
    return to_png(figure)


def _tokens(stage: int) -> str:
    return "1 token" if stage == 0 else f"{1 << stage} tokens"


def sample_grid(
    images_BHWC: ImageArray, labels_B: NDArray[np.integer], class_names: Sequence[str], *, per_class: int = 12
) -> Picture:
    """Samples, one row per class.

    Args:
        images_BHWC: uint8 images.
        labels_B: their classes.
        class_names: names in order of the labels; at most twelve rows are shown.
        per_class: most images in a row.

    Returns:
        The picture.

    Raises:
        ValueError: not such images.
    """
    check_images(images_BHWC, "samples")
    per_class = min(per_class, int(np.bincount(labels_B, minlength=1).max()))
    rows = _rows_by_class(images_BHWC, labels_B, len(class_names), per_class)
    names = [class_names[label] for label in rows]
    ground = mosaic(list(rows.values()))
    return _named_rows(ground, names, _name_margin(names))


def real_beside_generated(
    real_BHWC: ImageArray,
    real_labels_B: NDArray[np.integer],
    generated_BHWC: ImageArray,
    generated_labels_B: NDArray[np.integer],
    class_names: Sequence[str],
    *,
    per_class: int = 7,
) -> Picture:
    """Real images on the left, generated ones of the same class on the right.

    Args:
        real_BHWC: real images nobody was trained on.
        real_labels_B: their classes.
        generated_BHWC: samples.
        generated_labels_B: classes asked for.
        class_names: names in order of the labels; at most twelve rows are shown.
        per_class: images per row on each side.

    Returns:
        The picture.

    Raises:
        ValueError: not such images.
    """
    check_images(real_BHWC, "real images")
    check_images(generated_BHWC, "samples")
    real = _rows_by_class(real_BHWC, real_labels_B, len(class_names), per_class)
    generated = _rows_by_class(generated_BHWC, generated_labels_B, len(class_names), per_class)
    labels = [label for label in generated if label in real]
    sides = [mosaic([rows[label] for label in labels]) for rows in (real, generated)]
    names = [class_names[label] for label in labels]

    def draw(theme: Theme) -> Figure:
        margin, middle, top = _name_margin(names), 0.34, 0.34
        width = (7.6 - margin - middle) / 2
        height = width * sides[0].shape[0] / sides[0].shape[1]
        figure = new_figure(7.6, height + top + 0.05)
        for side, (title, ground) in enumerate(zip(("real, held out", "generated"), sides, strict=True)):
            axes = place(figure, margin + side * (width + middle), top, width, height)
            show(axes, ground)
            colour = theme.accent if side else theme.ink
            axes.set_title(title, color=colour, fontsize=9.5, loc="left", pad=6, fontweight="bold")
        _row_names(figure, names, margin, top, height, theme)
        return figure

    return both_themes(draw)


def painting_rows(paintings: Sequence[Painting]) -> Picture:
    """Images being painted: for each one a row of structure maps and under it the canvas after every stage.

    Args:
        paintings: of one grid size.

    Returns:
        The picture.

    Raises:
        ValueError: no painting, or grids of different sizes.
    """
    if not paintings or len({len(painting.stages_SHWC) for painting in paintings}) != 1:
        raise ValueError("paintings: expected at least one, all with the same number of stages")
    num_stages = len(paintings[0].stages_SHWC)
    with_original = all(painting.original_HWC is not None for painting in paintings)
    num_columns = num_stages + with_original

    def draw(theme: Theme) -> Figure:
        top, between, gap = 0.46, 0.2, 0.08
        width = 7.6 if num_columns < 8 else 9.6
        margin = 0.72
        tile = (width - margin - gap * (num_columns - 1)) / num_columns
        block = 2 * tile + gap
        height = top + len(paintings) * block + (len(paintings) - 1) * between + 0.05
        figure = new_figure(width, height)
        for stage in range(num_stages):
            x = margin + stage * (tile + gap) + tile / 2
            _text(figure, x, 0.16, f"stage {stage}", theme.ink, 8.5, "bold")
            _text(figure, x, 0.33, f"{1 << stage} token{'s' if stage else ''}", theme.accent, 8)
        if with_original:
            _text(figure, margin + num_stages * (tile + gap) + tile / 2, 0.16, "original", theme.faint, 8.5)
        for number, painting in enumerate(paintings):
            y = top + number * (block + between)
            for line, name in enumerate(("structure", "canvas")):
                _text(figure, 0.0, y + line * (tile + gap) + tile / 2, name, theme.faint, 8, align="left")
            for stage in range(num_stages):
                x = margin + stage * (tile + gap)
                colours = map_colours(painting.maps_Sss[stage], stage)
                show(place(figure, x, y, tile, tile), mosaic([[enlarge(colours, least=128)]]))
                canvas = to_rgb(painting.stages_SHWC[stage])
                show(place(figure, x, y + tile + gap, tile, tile), mosaic([[enlarge(canvas, least=128)]]))
            if painting.original_HWC is not None and with_original:
                original = to_rgb(painting.original_HWC)
                x = margin + num_stages * (tile + gap)
                show(place(figure, x, y + tile + gap, tile, tile), mosaic([[enlarge(original, least=128)]]))
        return figure

    return both_themes(draw)


def reconstruction_sheet(originals_BHWC: ImageArray, reconstructions_BHWC: ImageArray, *, count: int = 12) -> Picture:
    """Originals, their reconstructions, and the absolute error (white is a difference of 64 levels or more).

    Args:
        originals_BHWC: uint8 images.
        reconstructions_BHWC: what the tokenizer makes of them.
        count: columns.

    Returns:
        The picture.

    Raises:
        ValueError: shapes differ.
    """
    check_images(originals_BHWC, "originals")
    if originals_BHWC.shape != reconstructions_BHWC.shape:
        raise ValueError(f"reconstructions: found {reconstructions_BHWC.shape}, expected {originals_BHWC.shape}")
    rows = np.linspace(0, len(originals_BHWC) - 1, min(count, len(originals_BHWC))).astype(int)
    before, after = originals_BHWC[rows], reconstructions_BHWC[rows]
    ground = mosaic([list(to_rgb(images)) for images in (before, after, absolute_error(before, after))])
    names = ["original", "reconstruction", "error"]
    return _named_rows(ground, names, 1.12)


def nearest_sheet(
    samples_BHWC: ImageArray, nearest_BHWC: ImageArray, distance_B: NDArray[np.floating], *, count: int = 16
) -> Picture:
    """Samples, each with the training image nearest to it and their distance.

    Args:
        samples_BHWC: generated images.
        nearest_BHWC: the nearest training image of each.
        distance_B: distances in grey levels.
        count: how many pairs, taken from the front.

    Returns:
        The picture.

    Raises:
        ValueError: shapes differ.
    """
    if samples_BHWC.shape != nearest_BHWC.shape or len(distance_B) != len(samples_BHWC):
        raise ValueError(
            f"nearest images: found {nearest_BHWC.shape} and {len(distance_B)} distances, expected {samples_BHWC.shape}"
        )
    samples, nearest = to_rgb(samples_BHWC[:count]), to_rgb(nearest_BHWC[:count])
    columns = min(8, len(samples))
    blocks = [slice(start, start + columns) for start in range(0, len(samples), columns)]

    def draw(theme: Theme) -> Figure:
        margin, gap, below, between = 0.95, 0.1, 0.2, 0.14
        tile = (7.6 - margin - gap * (columns - 1)) / columns
        block = 2 * tile + gap + below
        figure = new_figure(7.6, len(blocks) * block + (len(blocks) - 1) * between + 0.1)
        for number, rows in enumerate(blocks):
            y = 0.05 + number * (block + between)
            _text(figure, 0.0, y + tile / 2, "generated", theme.accent, 8.5, "bold", align="left")
            _text(
                figure,
                0.0,
                y + tile + gap + tile / 2,
                "nearest in\ntraining set",
                theme.faint,
                8.5,
                align="left",
            )
            for column, pair in enumerate(zip(samples[rows], nearest[rows], distance_B[rows], strict=True)):
                x = margin + column * (tile + gap)
                show(place(figure, x, y, tile, tile), mosaic([[enlarge(pair[0], least=128)]]))
                show(place(figure, x, y + tile + gap, tile, tile), mosaic([[enlarge(pair[1], least=128)]]))
                _text(figure, x + tile / 2, y + 2 * tile + gap + below * 0.6, f"{pair[2]:.1f}", theme.faint, 7.5)
        return figure

    return both_themes(draw)


def _rows_by_class(
    images_BHWC: ImageArray, labels_B: NDArray[np.integer], num_classes: int, per_class: int
) -> dict[int, list[ImageArray | None]]:
    """The first images of up to twelve classes spread over all classes, padded with empty places."""
    shown = sorted({int(label) for label in np.linspace(0, num_classes - 1, min(num_classes, MOST_CLASSES_SHOWN))})
    rows: dict[int, list[ImageArray | None]] = {}
    for label in shown:
        tiles: list[ImageArray | None] = list(to_rgb(images_BHWC[labels_B == label][:per_class]))
        if tiles:
            rows[label] = tiles + [None] * (per_class - len(tiles))
    if not rows:
        raise UserError("picture: found no image with a label of the named classes")
    return rows


def _name_margin(names: Sequence[str]) -> float:
    return min(1.4, 0.14 + 0.075 * max(len(_short(name)) for name in names))


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


def _named_rows(ground: ImageArray, names: Sequence[str], margin: float) -> Picture:
    """A mosaic with the name of each row in a margin (inches) at its left, at most as wide as a page."""

    def draw(theme: Theme) -> Figure:
        aspect = ground.shape[0] / ground.shape[1]
        width = min(7.6 - margin, LARGEST_TILE * len(names) / aspect)
        height = width * aspect
        figure = new_figure(margin + width, height + 0.1)
        show(place(figure, margin, 0.05, width, height), ground)
        _row_names(figure, names, margin, 0.05, height, theme)
        return figure

    return both_themes(draw)


def _row_names(figure: Figure, names: Sequence[str], margin: float, top: float, height: float, theme: Theme) -> None:
    for number, name in enumerate(names):
        y = top + height * (number + 0.5) / len(names)
        _text(figure, margin - 0.1, y, _short(name), theme.ink, 8.5, align="right")


def _text(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    colour: str,
    size: float,
    weight: str = "normal",
    *,
    align: str = "center",
) -> None:
    """Write at a place given in inches from the upper left corner."""
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, text, color=colour, fontsize=size, fontweight=weight, ha=align, va="center")


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
