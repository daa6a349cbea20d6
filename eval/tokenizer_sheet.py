"""One picture of a tokenizer: originals, reconstructions, error, and the reconstruction after each stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.pictures.drawing import LIGHT, enlarge, mosaic, new_figure, place, show, to_png, to_rgb
from eval.pictures.paintings import Painting
from eval.pixels import ImageArray

ERROR_SCALE = 4  # white is a difference of 64 grey levels or more


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
