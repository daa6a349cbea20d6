"""The score table and times as text, for the report and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROW_NAMES = {
    "generated": "Generated",
    "generated_guidance_1": "Generated, guidance 1",
    "reconstructions": "Reconstructions",
    "held_out": "Real, held out",
}


def score_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The score table as text, for the page and for the terminal.

    Args:
        results: what `evaluate` returned.

    Returns:
        Head and rows; the first row is the generated images.
    """
    scores = results["scores"]
    judged = any("class_accuracy" in row for row in scores.values())
    head = [
        "",
        *(["read as asked ↑"] if judged else []),
        "FID ↓",
        "IS ↑",
        "precision ↑",
        "recall ↑",
        "images",
    ]
    rows = []
    for name, title in ROW_NAMES.items():
        if name not in scores:
            continue
        row = scores[name]
        cells = [title]
        if judged:
            cells.append(f"{row['class_accuracy']:.1%}" if "class_accuracy" in row else "")
        cells += [f"{row['fid']:.2f}", f"{row['inception_score']:.2f}"]
        cells += [f"{row['precision']:.3f}", f"{row['recall']:.3f}", f"{row['num_images']:,}"]
        rows.append(cells)
    return head, rows


def time_text(seconds: float) -> str:
    """Seconds as a person would say them: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
