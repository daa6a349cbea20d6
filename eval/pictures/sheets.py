"""Sheets of images: samples by class, paintings, reconstructions, nearest neighbours, what was given and its samples.

Every function takes arrays, draws for light and dark pages and returns a `Picture` (the tokenizer's sheet a PNG);
nothing is written to disk. Lengths are inches, places are counted from the upper left corner.
Shapes: images_BHWC uint8, labels_B int64, maps int64 (side, side).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eval.image_sets import ImageSet
from eval.pictures.drawing import (
    LIGHT,
    Picture,
    Theme,
    both_themes,
    mosaic,
    new_figure,
    place,
    show,
    to_png,
    white_figure,
)
from eval.pictures.paintings import Painting
from nvg.errors import UserError
from nvg.pixels import ImageArray, check_images
from nvg.tiles import enlarge, map_colours, to_rgb

_PAGE_WIDTH = 7.6
_LARGEST_TILE = 1.1
_TILE_PIXELS, _CONTROL_TILE_PIXELS = 128, 192
_ERROR_SCALE = 4  # white is a difference of 64 grey levels or more
_MOST_CLASSES = 12
_MOST_COLUMNS = 12


def _absolute_error(images_BHWC: ImageArray, copies_BHWC: ImageArray) -> ImageArray:
    """Absolute difference, mean over channels, four times as bright: uint8 (B, H, W, 1)."""
    error = np.abs(images_BHWC.astype(np.int16) - copies_BHWC).mean(axis=-1, keepdims=True)
    return (_ERROR_SCALE * error).clip(0, 255).astype(np.uint8)


def tokenizer_sheet(paintings: Sequence[Painting]) -> bytes:
    """One column per image: original, reconstruction, error, and the reconstruction after each stage.

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
        [("original", before), ("reconstruction", stages[-1]), ("error ×4", _absolute_error(before, stages[-1]))],
        [(f"stage {stage} · {_tokens(stage)}", images) for stage, images in enumerate(stages)],
    ]
    margin, tile, between = 1.3, min(0.8, 8.4 / len(paintings)), 0.16
    num_rows = sum(len(group) for group in groups)
    figure = white_figure(margin + tile * len(paintings) + 0.05, tile * num_rows + between + 0.1)
    top = 0.05
    for group in groups:
        for name, images_BHWC in group:
            row: list[ImageArray | None] = [enlarge(image, least=_TILE_PIXELS) for image in to_rgb(images_BHWC)]
            axes = place(figure, margin, top, tile * len(paintings), 0.92 * tile)
            show(axes, mosaic([row]))
            axes.text(-0.01, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=8, color=LIGHT.ink)
            top += tile
        top += between
    return to_png(figure)


def sample_grid(images: ImageSet, class_names: Sequence[str], *, per_class: int = 12) -> Picture:
    """Samples, one row per class; at most twelve rows, `per_class` images in each.

    Raises:
        ValueError: not such images.
    """
    check_images(images.images, "samples")
    per_class = min(per_class, int(np.bincount(images.labels, minlength=1).max()))
    rows = _rows_by_class(images, len(class_names), per_class)
    return _named_rows(mosaic(list(rows.values())), [class_names[label] for label in rows])


def real_beside_generated(
    real: ImageSet, generated: ImageSet, class_names: Sequence[str], *, per_class: int = 7
) -> Picture:
    """Real images on the left, generated ones of the same class on the right; at most twelve rows.

    Raises:
        ValueError: not such images.
    """
    check_images(real.images, "real images")
    check_images(generated.images, "samples")
    rows_of = [_rows_by_class(images, len(class_names), per_class) for images in (real, generated)]
    labels = [label for label in rows_of[1] if label in rows_of[0]]
    sides = [mosaic([rows[label] for label in labels]) for rows in rows_of]
    names = [class_names[label] for label in labels]

    def draw(theme: Theme) -> Figure:
        margin, middle, top = _name_margin(names), 0.34, 0.34
        width = (_PAGE_WIDTH - margin - middle) / 2
        height = width * sides[0].shape[0] / sides[0].shape[1]
        figure = new_figure(_PAGE_WIDTH, height + top + 0.05)
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
        width = _PAGE_WIDTH if num_columns < 8 else 9.6
        margin = 0.72
        tile = (width - margin - gap * (num_columns - 1)) / num_columns
        block = 2 * tile + gap
        height = top + len(paintings) * block + (len(paintings) - 1) * between + 0.05
        figure = new_figure(width, height)
        for stage in range(num_stages):
            x = margin + stage * (tile + gap) + tile / 2
            _text(figure, x, 0.16, f"stage {stage}", theme.ink, weight="bold")
            _text(figure, x, 0.33, _tokens(stage), theme.accent, 8)
        if with_original:
            _text(figure, margin + num_stages * (tile + gap) + tile / 2, 0.16, "original", theme.faint)
        for number, painting in enumerate(paintings):
            y = top + number * (block + between)
            for line, name in enumerate(("structure", "canvas")):
                _text(figure, 0.0, y + line * (tile + gap) + tile / 2, name, theme.faint, 8, align="left")
            for stage in range(num_stages):
                x = margin + stage * (tile + gap)
                _tile(figure, x, y, tile, map_colours(painting.maps_Sss[stage], stage))
                _tile(figure, x, y + tile + gap, tile, to_rgb(painting.stages_SHWC[stage]))
            if painting.original_HWC is not None and with_original:
                x = margin + num_stages * (tile + gap)
                _tile(figure, x, y + tile + gap, tile, to_rgb(painting.original_HWC))
        return figure

    return both_themes(draw)


def reconstruction_sheet(originals_BHWC: ImageArray, reconstructions_BHWC: ImageArray, *, count: int = 12) -> Picture:
    """Originals, their reconstructions, and the absolute error (white is a difference of 64 levels or more).

    Args:
        originals_BHWC: uint8 images, of which `count` are shown.
        reconstructions_BHWC: what the tokenizer makes of them.
        count: columns.

    Raises:
        ValueError: shapes differ.
    """
    check_images(originals_BHWC, "originals")
    if originals_BHWC.shape != reconstructions_BHWC.shape:
        raise ValueError(f"reconstructions: found {reconstructions_BHWC.shape}, expected {originals_BHWC.shape}")
    rows = np.linspace(0, len(originals_BHWC) - 1, min(count, len(originals_BHWC))).astype(int)
    before, after = originals_BHWC[rows], reconstructions_BHWC[rows]
    ground = mosaic([list(to_rgb(images)) for images in (before, after, _absolute_error(before, after))])
    return _named_rows(ground, ["original", "reconstruction", "error"], margin=1.12)


def nearest_sheet(
    samples_BHWC: ImageArray, nearest_BHWC: ImageArray, distance_B: NDArray[np.floating], *, count: int = 16
) -> Picture:
    """The first `count` samples, each with the training image nearest to it and their distance in grey levels.

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
        tile = (_PAGE_WIDTH - margin - gap * (columns - 1)) / columns
        block = 2 * tile + gap + below
        figure = new_figure(_PAGE_WIDTH, len(blocks) * block + (len(blocks) - 1) * between + 0.1)
        for number, rows in enumerate(blocks):
            y = 0.05 + number * (block + between)
            _text(figure, 0.0, y + tile / 2, "generated", theme.accent, weight="bold", align="left")
            _text(figure, 0.0, y + tile + gap + tile / 2, "nearest in\ntraining set", theme.faint, align="left")
            for column, pair in enumerate(zip(samples[rows], nearest[rows], distance_B[rows], strict=True)):
                x = margin + column * (tile + gap)
                _tile(figure, x, y, tile, pair[0])
                _tile(figure, x, y + tile + gap, tile, pair[1])
                _text(figure, x + tile / 2, y + 2 * tile + gap + below * 0.6, f"{pair[2]:.1f}", theme.faint, 7.5)
        return figure

    return both_themes(draw)


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

    Raises:
        ValueError: no row, or not such images.
    """
    if not rows:
        raise ValueError("rows: found none, expected at least one row of samples")
    for name, images_BHWC in rows:
        check_images(images_BHWC, name)
    shares = [f"{agreement:.0%}" for agreement in agreements or ()]
    shares += [""] * len(maps_Sss)
    heads = [] if source_HWC is None else [(source_name, "", to_rgb(source_HWC[None])[0])]
    heads += [
        (f"split {stage}", shares[stage - 1], map_colours(map_ss, stage))
        for stage, map_ss in enumerate(maps_Sss, start=1)
    ]
    columns = max(len(heads), min(_MOST_COLUMNS, max(len(images) for _, images in rows)), 6)
    margin, gap, head, line = 1.0, 0.1, 0.3, 0.2

    def draw(theme: Theme) -> Figure:
        tile = (_PAGE_WIDTH - margin - gap * (columns - 1)) / columns
        height = head + tile + line + len(rows) * (tile + gap) + gap
        figure = new_figure(_PAGE_WIDTH, height)
        _text(figure, 0.0, head + tile / 2, "given", theme.accent, weight="bold", align="left")
        for column, (above, below, picture) in enumerate(heads):
            x = margin + column * (tile + gap)
            _text(figure, x + tile / 2, head / 2, above, theme.ink)
            _tile(figure, x, head, tile, picture, _CONTROL_TILE_PIXELS)
            _text(figure, x + tile / 2, head + tile + line / 2, below, theme.faint)
        if agreements:
            _text(figure, 0.0, head + tile + line / 2, "agreement", theme.faint, align="left")
        for number, (name, images_BHWC) in enumerate(rows):
            y = head + tile + line + gap + number * (tile + gap)
            _text(figure, 0.0, y + tile / 2, name, theme.ink, align="left")
            for column, image in enumerate(to_rgb(images_BHWC[:columns])):
                _tile(figure, margin + column * (tile + gap), y, tile, image, _CONTROL_TILE_PIXELS)
        return figure

    return both_themes(draw)


def stagewise_sheet(
    reference_SHWC: ImageArray, groups: Sequence[tuple[str, ImageArray]], class_names: Sequence[str]
) -> Picture:
    """A reference painted stage by stage, and under each stage i samples of which stages i to K were generated.

    Args:
        reference_SHWC: uint8.
        groups: what was kept of the stages below, in words, and uint8 samples (S, B, H, W, C).
        class_names: asked for, one a sample.

    Raises:
        ValueError: not such images.

    Paper: Fig. 7
    """
    check_images(reference_SHWC, "reference")
    last, num_columns = len(reference_SHWC) - 1, len(reference_SHWC)
    margin, gap, head, line, between = _name_margin([*class_names, "reference"]), 0.06, 0.3, 0.42, 0.12

    def draw(theme: Theme) -> Figure:
        width = _PAGE_WIDTH if num_columns < 8 else 9.6
        tile = (width - margin - gap * (num_columns - 1)) / num_columns
        block = line + len(class_names) * (tile + gap)
        figure = new_figure(width, head + tile + len(groups) * (between + block) + 0.05)

        def row(y: float, name: str, images_SHWC: ImageArray) -> None:
            _text(figure, 0.0, y + tile / 2, _short(name), theme.ink, 8, align="left")
            for column, image in enumerate(to_rgb(images_SHWC)):
                _tile(figure, margin + column * (tile + gap), y, tile, image)

        for stage in range(num_columns):
            _text(
                figure, margin + stage * (tile + gap) + tile / 2, head / 2, f"stage {stage}", theme.ink, weight="bold"
            )
        row(head, "reference", reference_SHWC)
        y = head + tile + between
        for kept, images_SBHWC in groups:
            _text(figure, 0.0, y + 0.1, kept, theme.accent, 8.5, align="left")
            for stage in range(num_columns):
                x = margin + stage * (tile + gap) + tile / 2
                _text(figure, x, y + 0.32, f"{stage}–{last}", theme.faint, 8)
            for number, name in enumerate(class_names):
                row(y + line + number * (tile + gap), name, images_SBHWC[:, number])
            y += block + between
        return figure

    return both_themes(draw)


def _tokens(stage: int) -> str:
    return f"{1 << stage} token{'s' if stage else ''}"


def _tile(figure: Figure, x: float, y: float, side: float, image_HW3: ImageArray, least: int = _TILE_PIXELS) -> None:
    """One image with softly rounded corners, enlarged to at least so many pixels."""
    show(place(figure, x, y, side, side), mosaic([[enlarge(image_HW3, least=least)]]))


def _rows_by_class(images: ImageSet, num_classes: int, per_class: int) -> dict[int, list[ImageArray | None]]:
    """The first images of up to twelve classes spread over all classes, padded with empty places."""
    shown = sorted({int(label) for label in np.linspace(0, num_classes - 1, min(num_classes, _MOST_CLASSES))})
    rows: dict[int, list[ImageArray | None]] = {}
    for label in shown:
        tiles: list[ImageArray | None] = list(to_rgb(images.images[images.labels == label][:per_class]))
        if tiles:
            rows[label] = tiles + [None] * (per_class - len(tiles))
    if not rows:
        raise UserError("picture: found no image with a label of the named classes")
    return rows


def _name_margin(names: Sequence[str]) -> float:
    return min(1.4, 0.14 + 0.075 * max(len(_short(name)) for name in names))


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


def _named_rows(ground: ImageArray, names: Sequence[str], margin: float | None = None) -> Picture:
    """A mosaic with the name of each row in a margin at its left, at most as wide as a page."""
    margin = _name_margin(names) if margin is None else margin

    def draw(theme: Theme) -> Figure:
        aspect = ground.shape[0] / ground.shape[1]
        width = min(_PAGE_WIDTH - margin, _LARGEST_TILE * len(names) / aspect)
        height = width * aspect
        figure = new_figure(margin + width, height + 0.1)
        show(place(figure, margin, 0.05, width, height), ground)
        _row_names(figure, names, margin, 0.05, height, theme)
        return figure

    return both_themes(draw)


def _row_names(figure: Figure, names: Sequence[str], margin: float, top: float, height: float, theme: Theme) -> None:
    for number, name in enumerate(names):
        y = top + height * (number + 0.5) / len(names)
        _text(figure, margin - 0.1, y, _short(name), theme.ink, align="right")


def _text(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    colour: str,
    size: float = 8.5,
    *,
    weight: str = "normal",
    align: str = "center",
) -> None:
    width, height = figure.get_size_inches()
    look = {"color": colour, "fontsize": size, "fontweight": weight, "ha": align, "va": "center"}
    figure.text(x / width, 1 - y / height, text, parse_math=False, **look)  # a class may be called "$"
