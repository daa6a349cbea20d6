"""Plots: loss curves, bars and scatters, each drawn for light and dark pages, and the picture of an ablation study."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from eval.pictures.drawing import LIGHT, Picture, Theme, both_themes, new_figure, place, to_png, white_figure

_PARTS = ("l1", "quantizer", "mse", "cross_entropy")
_STAGE_KEY = re.compile(r"(cross_entropy|velocity)_(\d+)")
_PANELS = (("cross_entropy", "token cross-entropy, nats ↓"), ("fid", "FID ↓"), ("class_accuracy", "read as asked ↑"))


def loss_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """One panel per run: the loss over the images seen, raw and smoothed, and its parts.

    Args:
        runs: name to rows of `metrics.jsonl` with `images` and `loss`.

    Raises:
        ValueError: no run, or a row without images or loss.
    """
    if not runs:
        raise ValueError("loss curves: found no run, expected at least one")
    for name, rows in runs.items():
        if not rows or any("images" not in row or "loss" not in row for row in rows):
            raise ValueError(f"loss curves of {name}: expected rows with 'images' and 'loss'")

    def draw(theme: Theme) -> Figure:
        columns = min(len(runs), 3)
        lines = -(-len(runs) // columns)
        width, gap, panel = 9.6 if columns == 3 else 7.6, 0.98, 2.15
        each = (width - 0.5 - (columns - 1) * gap - 0.6) / columns
        figure = new_figure(width, lines * (panel + 0.85))
        for number, (name, rows) in enumerate(runs.items()):
            left = 0.5 + (number % columns) * (each + gap)
            axes = place(figure, left, 0.34 + (number // columns) * (panel + 0.85), each, panel)
            _panel(axes, name, rows, theme)
        return figure

    return both_themes(draw)


def usage_bars(usage: Sequence[float]) -> Picture:
    """Share (0 to 1) of the codebook in use at every stage.

    Raises:
        ValueError: no share, or one outside 0..1.
    """
    if not len(usage) or min(usage) < 0 or max(usage) > 1:
        raise ValueError(f"codebook usage: found {list(usage)}, expected shares from 0 to 1, one per stage")

    def draw(theme: Theme) -> Figure:
        figure = new_figure(7.6, 2.3)
        axes = place(figure, 0.45, 0.3, 7.05, 1.5)
        stages = np.arange(len(usage))
        axes.bar(stages, np.ones(len(usage)), width=0.62, color=theme.faint, alpha=0.16, linewidth=0)
        axes.bar(stages, usage, width=0.62, color=theme.accent, linewidth=0)
        for stage, share in enumerate(usage):
            axes.text(stage, 1.04, f"{share:.0%}", color=theme.ink, fontsize=8.5, ha="center", va="bottom")
        axes.set_ylim(0, 1.0)
        axes.set_xticks(stages, [f"stage {s}\n{1 << s} token{'s' if s else ''}" for s in stages])
        axes.set_yticks([])
        _plain_axes(axes, theme, grid=False)
        axes.spines["bottom"].set_visible(False)
        return figure

    return both_themes(draw)


def _panel(axes: Axes, name: str, rows: Sequence[Mapping[str, Any]], theme: Theme) -> None:
    images = _column(rows, "images")
    total = _column(rows, "loss")
    axes.plot(images, total, color=theme.accent, alpha=0.22, linewidth=0.8)
    axes.plot(images, smooth(total), color=theme.accent, linewidth=1.9, zorder=5)
    ends = [(float(smooth(total)[-1]), "loss", theme.accent)]
    shown = [total[len(total) // 20 :]]
    parts = _parts(rows)
    for number, (key, label) in enumerate(parts):
        values = smooth(_column(rows, key))
        strength = 0.45 + 0.5 * number / max(len(parts) - 1, 1)
        axes.plot(images, values, color=theme.faint, alpha=strength, linewidth=1.0)
        ends.append((float(values[-1]), label, theme.faint))
        shown.append(values[len(values) // 20 :])
    axes.set_title(name, color=theme.ink, fontsize=9.5, loc="left", fontweight="bold", pad=8)
    axes.set_xlabel("images seen", color=theme.faint, fontsize=8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    finite = np.concatenate(shown)
    finite = finite[np.isfinite(finite)]
    if len(finite) and finite.max() > finite.min():
        margin = 0.06 * (finite.max() - finite.min())
        axes.set_ylim(finite.min() - margin, finite.max() + margin)
    _label_ends(axes, ends)
    _plain_axes(axes, theme, grid=True)


def _parts(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Keys and labels of the lines beside the loss: one per stage where a loss is known by stage."""
    keys = sorted({key for row in rows for key in row})
    by_stage = [match for key in keys if (match := _STAGE_KEY.fullmatch(key))]
    if by_stage:
        by_stage.sort(key=lambda match: int(match[2]))
        return [(match[0], f"stage {match[2]}") for match in by_stage]
    return [(key, key.replace("_", " ")) for key in keys if key in _PARTS]


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """One number per row; NaN where a row has none."""
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=float)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name every line at its right end, moved apart where they would touch."""
    low, high = axes.get_ylim()
    least = 0.07 * (high - low)
    previous = -np.inf
    for value, label, colour in sorted(end for end in ends if np.isfinite(end[0])):
        y = max(min(value, high), previous + least)
        previous = y
        axes.annotate(
            label,
            (1.02, y),
            xycoords=("axes fraction", "data"),
            color=colour,
            fontsize=7,
            va="center",
            fontweight="bold" if label == "loss" else "normal",
            annotation_clip=False,
        )


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponential mean whose reach is a fiftieth of the curve, corrected at its start; as many values as given."""
    decay = 1 - min(1.0, 50 / max(len(values), 1)) if len(values) > 50 else 0.0
    mean, weight, result = 0.0, 0.0, np.empty_like(values)
    for number, value in enumerate(values):
        if np.isfinite(value):
            mean = decay * mean + (1 - decay) * value
            weight = decay * weight + (1 - decay)
        result[number] = mean / weight if weight else np.nan
    return result


def _plain_axes(axes: Axes, theme: Theme, *, grid: bool) -> None:
    """Axes as every plot of a report has them: a base line, faint numbers, faint lines across where asked for."""
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.faint)
        spine.set_alpha(0.6)
    axes.tick_params(colors=theme.faint, labelsize=8, length=0)
    if grid:
        axes.grid(axis="y", color=theme.faint, alpha=0.18, linewidth=0.7)
        axes.set_axisbelow(True)


def _count(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if abs(value) >= 1e3 else f"{value:g}"


def scatter(
    points: Sequence[tuple[float, float, str, bool]],
    x_name: str,
    y_name: str,
    *,
    logarithmic: bool = False,
    lines: Sequence[Sequence[int]] = (),
) -> Picture:
    """Named points, the important ones in colour.

    Args:
        points: (x, y, name, important).
        x_name, y_name: of the axes.
        logarithmic: both axes.
        lines: rows of points that are joined by a line.

    Raises:
        ValueError: no point.
    """
    if not points:
        raise ValueError("scatter: found no point, expected at least one")

    def draw(theme: Theme) -> Figure:
        figure = new_figure(7.6, 4.4)
        axes = place(figure, 0.6, 0.2, 6.7, 3.6)
        for line in lines:
            axes.plot([points[n][0] for n in line], [points[n][1] for n in line], color=theme.faint, linewidth=1)
        for x, y, name, important in points:
            colour = theme.accent if important else theme.faint
            axes.scatter([x], [y], color=colour, s=26 if important else 14, zorder=5 if important else 3)
            axes.annotate(name, (x, y), (4, 3), textcoords="offset points", color=colour, fontsize=6.5)
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlabel(x_name, color=theme.faint, fontsize=8)
        axes.set_ylabel(y_name, color=theme.faint, fontsize=8)
        _plain_axes(axes, theme, grid=True)
        axes.tick_params(which="minor", length=0, labelsize=7, colors=theme.faint)
        return figure

    return both_themes(draw)


def ablation_picture(cells: Sequence[Mapping[str, Any]]) -> bytes:
    """Token cross-entropy, FID and class accuracy of an ablation study: a dot per seed, and the mean of each variant.

    Args:
        cells: `variant`, `seed` and `scores` of every variant and seed; the first one's mean is a line through each
            panel.

    Returns:
        PNG bytes on a white ground.

    Raises:
        ValueError: no cell.
    """
    if not cells:
        raise ValueError("ablation picture: found no result, expected at least one")
    variants = list(dict.fromkeys(cell["variant"] for cell in cells))
    height = 0.3 * len(variants) + 0.2
    figure = white_figure(9.6, height + 0.75)
    for number, (key, title) in enumerate(_PANELS):
        axes = place(figure, 2.1 + number * 2.5, 0.35, 2.25, height)
        _ablation_panel(axes, key, title, variants, cells)
        axes.set_yticks(range(len(variants)), variants if number == 0 else [""] * len(variants), fontsize=8.5)
    return to_png(figure)


def _ablation_panel(axes: Axes, key: str, title: str, variants: list[str], cells: Sequence[Mapping[str, Any]]) -> None:
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
