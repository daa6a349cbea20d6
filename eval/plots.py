"""Curves and bars of a report, each drawn for light and dark pages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from eval.canvas import Picture, Theme, both_themes, new_figure, place
from nvg.errors import UserError

NOT_LOSSES = {"step", "images", "lr", "grad_norm", "images_per_s", "step_s", "time", "epoch", "skipped_steps"}
MOST_PARTS = 4


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a run's `metrics.jsonl`; a last line cut off by a kill is left out.

    Args:
        path: the file.

    Returns:
        Its rows; of rows with the same step (a resumed run) the last.

    Raises:
        UserError: the file is missing, holds no row, or a line before the last is no JSON object.
    """
    if not path.is_file():
        raise UserError(f"loss curves: found no file {path}, expected the metrics.jsonl of a training run")
    lines = path.read_text(encoding="utf-8").splitlines()
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number}: found {line[:60]!r}, expected a JSON object with a step"
            ) from error
    if not rows:
        raise UserError(f"{path}: found no complete row, expected at least one")
    return [rows[step] for step in sorted(rows)]


def loss_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """One panel per run: the loss over the images seen, raw and smoothed, and its named parts.

    Args:
        runs: name to rows of `metrics.jsonl` with `images` and `loss`.

    Returns:
        The picture.

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
        width, gap, panel = 9.6 if columns == 3 else 7.6, 0.62, 2.15
        each = (width - 0.5 - (columns - 1) * gap - 0.1) / columns
        figure = new_figure(width, lines * (panel + 0.85))
        for number, (name, rows) in enumerate(runs.items()):
            left = 0.5 + (number % columns) * (each + gap)
            axes = place(figure, left, 0.34 + (number // columns) * (panel + 0.85), each, panel)
            _panel(axes, name, rows, theme)
        return figure

    return both_themes(draw)


def usage_bars(usage: Sequence[float]) -> Picture:
    """Share of the codebook in use at every stage.

    Args:
        usage: one share (0..1) per stage.

    Returns:
        The picture.

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
        _plain(axes, theme, grid=False)
        axes.spines["bottom"].set_visible(False)
        return figure

    return both_themes(draw)


def _panel(axes: Axes, name: str, rows: Sequence[Mapping[str, Any]], theme: Theme) -> None:
    images = np.array([row["images"] for row in rows], dtype=float)
    total = np.array([row["loss"] for row in rows], dtype=float)
    parts = [
        key
        for key in rows[-1]
        if key != "loss"
        and key not in NOT_LOSSES
        and isinstance(rows[-1][key], (int, float))
        and "loss" in key
    ][:MOST_PARTS]
    axes.plot(images, total, color=theme.accent, alpha=0.25, linewidth=0.8)
    axes.plot(images, smooth(total), color=theme.accent, linewidth=1.8, label="loss")
    for style, key in zip(("--", ":", "-.", (0, (5, 1))), parts, strict=False):
        values = np.array([row.get(key, np.nan) for row in rows], dtype=float)
        axes.plot(
            images,
            smooth(values),
            color=theme.faint,
            linewidth=1.1,
            linestyle=style,
            label=key.replace("_", " "),
        )
    axes.set_title(name, color=theme.ink, fontsize=9.5, loc="left", fontweight="bold", pad=8)
    axes.set_xlabel("images seen", color=theme.faint, fontsize=8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if parts:
        axes.legend(frameon=False, fontsize=7, labelcolor=theme.ink, loc="upper right")
    tail = total[len(total) // 20 :]
    everything = [tail, *(np.array([row.get(key, np.nan) for row in rows], dtype=float) for key in parts)]
    low, high = min(np.nanmin(v) for v in everything), float(np.nanmax(tail))
    if high > low:
        axes.set_ylim(low - 0.06 * (high - low), high + 0.12 * (high - low))
    _plain(axes, theme, grid=True)


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponential mean whose reach is a fiftieth of the curve, corrected at its start.

    Args:
        values: one per row.

    Returns:
        As many values.
    """
    decay = 1 - min(1.0, 50 / max(len(values), 1)) if len(values) > 50 else 0.0
    mean, weight, result = 0.0, 0.0, np.empty_like(values)
    for number, value in enumerate(values):
        if np.isfinite(value):
            mean = decay * mean + (1 - decay) * value
            weight = decay * weight + (1 - decay)
        result[number] = mean / weight if weight else np.nan
    return result


def _plain(axes: Axes, theme: Theme, *, grid: bool) -> None:
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
