"""The result of an ablation study: means and spreads over seeds, and which of the paper's orderings show."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cluster.files import write_atomically
from eval.pictures.plots import ablation_picture

_MARKDOWN_FILE = "ablation.md"
_JSON_FILE = "ablation.json"
_PICTURE_FILE = "ablation.png"
SCHEMA_VERSION = 1

# FID of Table 2 (NVG-d12 on ImageNet); the other variants have no number of their own in the paper.
_PAPER_FID = {
    "base": 37.59,
    "structure_pure_noise": 37.89,
    "no_structure_rope": 39.03,
    "content_noised_pure_noise": 38.94,
}

_EXPLANATION = (
    "Mean ± standard deviation over seeds. Token CE: cross-entropy of held-out tokens in nats, stages weigh equally; "
    "that of `spatial` is on tokens of its own tokenizer and compares with no other. Velocity error: of the channels "
    "not yet known, with the same noise for all. FID: of samples against the training images. Read as asked: share of "
    "samples that an independent classifier reads as the class asked for."
)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Scores of real held-out images, and of their reconstructions by each tokenizer."""

    held_out: dict[str, float]
    reconstructions: dict[str, dict[str, float]]


class _Ordering(NamedTuple):
    """One comparison of the paper: what it says, the two variants, and the number compared here (smaller is better)."""

    claim: str
    worse: str
    better: str
    metric: str


_ORDERINGS = (
    _Ordering(
        "partial noise is better than pure noise (FID 37.59 against 37.89)", "structure_pure_noise", "base", "fid"
    ),
    _Ordering("structure-aware RoPE helps (FID 37.59 against 39.03)", "no_structure_rope", "base", "fid"),
    _Ordering(
        "canvas x is better than x + tε, both with pure noise (FID 37.89 against 38.94)",
        "content_noised_pure_noise",
        "structure_pure_noise",
        "fid",
    ),
    _Ordering(
        "(1-t)x + tε predicts tokens significantly worse (training stopped)", "content_mixed", "base", "cross_entropy"
    ),
    _Ordering(
        "next content overfits, the final canvas does not (training stopped)", "next_content", "base", "validation_rise"
    ),
    _Ordering(
        "granularity is better than a spatial pyramid (Table 1: NVG-d16 FID 3.03, VAR-d16 3.30)",
        "spatial",
        "base",
        "fid",
    ),
)


def summarise(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Mean and spread (standard deviation, None for one seed) over the seeds, by variant and score.

    Args:
        cells: `variant`, `seed` and `scores` of each variant and seed.
    """
    table: dict[str, dict[str, dict[str, float | None]]] = {}
    for variant in dict.fromkeys(cell["variant"] for cell in cells):
        scores = [cell["scores"] for cell in cells if cell["variant"] == variant]
        table[variant] = {
            name: {
                "mean": statistics.fmean(score[name] for score in scores),
                "spread": statistics.stdev(score[name] for score in scores) if len(scores) > 1 else None,
            }
            for name in scores[0]
        }
    return table


def judge_orderings(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare the pairs of the paper seed by seed.

    Returns:
        The orderings whose variants are there, each with the differences (worse minus better) and in words: "as in the
        paper" or "the other way round" where all seeds agree, else "undecided".
    """
    by_name = {(cell["variant"], cell["seed"]): cell["scores"] for cell in cells}
    seeds = sorted({seed for _, seed in by_name})
    found = []
    for ordering in _ORDERINGS:
        if any((name, seed) not in by_name for name in (ordering.worse, ordering.better) for seed in seeds):
            continue
        pairs = [(by_name[ordering.worse, seed], by_name[ordering.better, seed]) for seed in seeds]
        if any(ordering.metric not in scores for pair in pairs for scores in pair):
            continue
        differences = [worse[ordering.metric] - better[ordering.metric] for worse, better in pairs]
        verdict = "undecided"
        if min(differences) > 0 or max(differences) < 0:
            verdict = "as in the paper" if differences[0] > 0 else "the other way round"
        found.append({**ordering._asdict(), "differences": differences, "verdict": verdict})
    return found


def write_result(
    folder: Path, cells: Sequence[Mapping[str, Any]], reference: Reference, facts: Mapping[str, Any]
) -> Path:
    """Write all numbers as JSON, a picture, and the table as Markdown, which is returned.

    Args:
        folder: of the study.
        cells: `variant`, `seed` and `scores` of each variant and seed.
        reference: scores of real images.
        facts: budget and settings, JSON values.
    """
    summary, orderings = summarise(cells), judge_orderings(cells)
    result = {
        "schema_version": SCHEMA_VERSION,
        "facts": dict(facts),
        "cells": [dict(cell) for cell in cells],
        "summary": summary,
        "orderings": orderings,
        "paper_fid": _PAPER_FID,
        "reference": asdict(reference),
    }
    write_atomically(folder / _JSON_FILE, f"{json.dumps(result, indent=2, allow_nan=False)}\n".encode())
    write_atomically(folder / _PICTURE_FILE, ablation_picture(cells))
    write_atomically(folder / _MARKDOWN_FILE, _markdown(summary, orderings, reference, facts).encode())
    return folder / _MARKDOWN_FILE


def _markdown(
    summary: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    orderings: Sequence[Mapping[str, Any]],
    reference: Reference,
    facts: Mapping[str, Any],
) -> str:
    base = next(iter(summary.values()))
    stages = [name for name in base if name.startswith("cross_entropy_")]
    head = ["variant", "token CE", *(f"stage {name.rpartition('_')[2]}" for name in stages), "velocity error", "FID"]
    head += ["read as asked", "FID in the paper"]
    lines = ["# Ablations", "", *(f"* {name}: {value}" for name, value in facts.items()), ""]
    lines += [_row(head), _row(["---"] * len(head))]
    for variant, scores in summary.items():
        numbers = [_number(scores.get(name), 3) for name in ("cross_entropy", *stages, "velocity")]
        numbers += [_number(scores["fid"], 2), _number(scores["class_accuracy"], 1, percent=True)]
        lines.append(_row([variant, *numbers, f"{_PAPER_FID[variant]:.2f}" if variant in _PAPER_FID else "—"]))
    for name, scores in (("real, held out", reference.held_out), *_reconstruction_rows(reference)):
        empty = [""] * (len(stages) + 2)
        lines.append(_row([name, *empty, f"{scores['fid']:.2f}", f"{scores['class_accuracy']:.1%}", ""]))
    lines += [
        "",
        _EXPLANATION,
        "",
        f"![]({_PICTURE_FILE})",
        "",
        "## Orderings of the paper",
        "",
        _row(["the paper", "compared here", "difference by seed (above 0: as in the paper)", "found"]),
        _row(["---"] * 4),
    ]
    for ordering in orderings:
        differences = ", ".join(f"{value:+.3f}" for value in ordering["differences"])
        compared = f"{ordering['metric']} of {ordering['worse']} minus {ordering['better']}"
        lines.append(_row([ordering["claim"], compared, differences, ordering["verdict"]]))
    lines += ["", "`validation_rise`: by how much a training's validation loss ended above its lowest value.", ""]
    return "\n".join(lines)


def _reconstruction_rows(reference: Reference) -> list[tuple[str, dict[str, float]]]:
    return [(f"reconstructions, {kind}", scores) for kind, scores in reference.reconstructions.items()]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(score: Mapping[str, float | None] | None, digits: int, *, percent: bool = False) -> str:
    if score is None or (mean := score["mean"]) is None:
        return "—"
    factor, unit = (100, " %") if percent else (1, "")
    spread = score["spread"]
    around = "" if spread is None else f" ± {factor * spread:.{digits}f}"
    return f"{factor * mean:.{digits}f}{around}{unit}"
