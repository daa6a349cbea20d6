"""One picture of an ablation study: a dot per seed and the mean, for token cross-entropy, FID and class accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from eval.pictures.drawing import LIGHT, new_figure, place, to_png

PANELS = (
    ("cross_entropy", "token cross-entropy, nats ↓"),
    ("fid", "FID ↓"),
    ("class_accuracy", "read as asked ↑"),
)


def ablation_picture(cells: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw all variants, the first one's mean as a line through each panel.

    Args:
        cells: `variant`, `seed` and `scores` of every variant and seed.

    Returns:
        PNG bytes on a white ground.

    Raises:
        ValueError: no cell.
    """
    if not cells:
        raise ValueError("ablation picture: found no result, expected at least one")
    variants = list(dict.fromkeys(cell["variant"] for cell in cells))
    height = 0.3 * len(variants) + 0.2
    figure = new_figure(9.6, height + 0.75)
    figure.patch.set_alpha(1.0)
    figure.patch.set_facecolor("white")
    for number, (key, title) in enumerate(PANELS):
        axes = place(figure, 2.1 + number * 2.5, 0.35, 2.25, height)
        _panel(axes, key, title, variants, cells)
        axes.set_yticks(range(len(variants)), variants if number == 0 else [""] * len(variants), fontsize=8.5)
    return to_png(figure)


def _panel(axes: Axes, key: str, title: str, variants: list[str], cells: Sequence[Mapping[str, Any]]) -> None:
    for row, variant in enumerate(variants):
        values = [cell["scores"][key] for cell in cells if cell["variant"] == variant]
        axes.plot(values, [row] * len(values), "o", color=LIGHT.faint, markersize=4, alpha=0.7, zorder=3)
        axes.plot(
            [float(np.mean(values))], [row], "|", color=LIGHT.accent, markersize=15, markeredgewidth=2.4, zorder=4
        )
        if row == 0:
            axes.axvline(float(np.mean(values)), color=LIGHT.accent, linewidth=0.8, alpha=0.4)
    axes.set_title(title, color=LIGHT.ink, fontsize=9, loc="left")
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.tick_params(colors=LIGHT.ink, labelsize=8, length=0)
    axes.grid(axis="x", color=LIGHT.faint, alpha=0.2, linewidth=0.7)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LIGHT.faint)
