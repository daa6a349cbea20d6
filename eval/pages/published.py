"""Results beside published ones: one table, and FID over parameters and over steps."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.pages import page
from eval.pages.page import caveat_notes
from eval.pictures.drawing import Picture
from eval.pictures.plots import scatter

OURS = "here"


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One line of the table.

    Attributes:
        type: kind of model; `here` marks results of this project.
        model: its name.
        fid, inception_score, precision, recall: scores; None where nobody published them.
        sfid: likewise; Table 1 of the paper has none.
        parameters: in millions.
        steps: as the paper counts them.
        num_images: samples behind the scores.
        remarks: what keeps the line from being compared.
    """

    type: str
    model: str
    fid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    sfid: float | None = None
    parameters: float | None = None
    steps: int | None = None
    num_images: int = 50_000
    remarks: tuple[str, ...] = ()


def row_of_results(name: str, results: Mapping[str, Any]) -> ScoreRow:
    """A line from the content of a `results.json`, of an evaluation against a reference or against training images."""
    scores, model = results["scores"]["generated"], results["protocol"].get("model", {})
    parameters = sum(model.get("parameters", {}).values())
    remarks = list(
        results.get("not_comparable_because", ["compared with training images in a feature space of its own"])
    )
    own = {"caveats": [found for found in results.get("caveats", ()) if "generated" in found["sets"]]}
    remarks += [note.removeprefix("† ") for note in caveat_notes({**own, "scores": {"generated": scores}})]
    return ScoreRow(
        type=OURS,
        model=name,
        **{key: scores.get(key) for key in ("fid", "inception_score", "precision", "recall", "sfid")},
        parameters=parameters / 1e6 if parameters else None,
        steps=model.get("stages"),
        num_images=scores["num_images"],
        remarks=tuple(remarks),
    )


def score_table(rows: Sequence[ScoreRow]) -> tuple[list[str], list[list[str]]]:
    """The table as text: head and rows."""
    head = ["model", "type", "FID ↓", "sFID ↓", "IS ↑", "precision ↑", "recall ↑", "parameters", "steps", "samples"]
    return head, [
        [
            row.model + (" *" if row.remarks else ""),
            row.type,
            _number(row.fid, 2),
            _number(row.sfid, 2),
            _number(row.inception_score, 1),
            _number(row.precision, 2),
            _number(row.recall, 2),
            "" if row.parameters is None else f"{row.parameters:,.{0 if row.parameters >= 10 else 2}f} M",
            "" if row.steps is None else str(row.steps),
            f"{row.num_images:,}",
        ]
        for row in rows
    ]


def markdown_table(rows: Sequence[ScoreRow]) -> str:
    """The table and its remarks as Markdown."""
    head, body = score_table(rows)
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)]
    remarks = [f"\\* {row.model}: {'; '.join(row.remarks)}." for row in rows if row.remarks]
    return "\n".join([*lines, "", *remarks]) + "\n"


def report_page(rows: Sequence[ScoreRow]) -> str:
    """The whole report as one HTML page that needs no other file."""
    head, body = score_table(rows)
    remarks = "".join(
        f'<p class="note">* {html.escape(row.model)}: {html.escape("; ".join(row.remarks))}.</p>'
        for row in rows
        if row.remarks
    )
    plots = [
        page.figure(fid_plot(rows, key), f"FID over {key}", f"FID over {key}, both axes logarithmic; lower is better.")
        for key in ("parameters", "steps")
        if any(row.fid is not None and getattr(row, key) is not None for row in rows)
    ]
    title = "Beside published results"
    return page.page(
        title,
        page.header(title, "Class-conditional ImageNet 256×256, Table 1 of the paper, and what was measured here."),
        page.section(
            "Scores",
            "Published rows are the paper's. A star marks rows whose protocol differs; the reasons stand below.",
            page.table(head, body, first=next((n for n, row in enumerate(rows) if row.type == OURS), None)),
            remarks,
        ),
        page.section("Where they stand", "Down and to the left is better.", *plots),
    )


def fid_plot(rows: Sequence[ScoreRow], key: str) -> Picture:
    """FID over the `parameters` or the `steps` of all rows that have both."""
    names = {"parameters": "parameters, millions", "steps": "steps"}
    shown = [row for row in rows if row.fid is not None and getattr(row, key) is not None]
    points = [(float(getattr(row, key)), float(row.fid or 0.0), row.model, row.type in (OURS, "NVG")) for row in shown]
    return scatter(points, names[key], "FID", logarithmic=True)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
