"""Results beside published ones: one table of generators or of tokenizers, and FID over parameters and over steps."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from eval.features.inception import INCEPTION
from eval.pages import page
from eval.pages.page import caveat_notes, distance_name
from eval.pictures.drawing import Picture
from eval.pictures.plots import scatter

OURS = "here"
_NUM_VALIDATION_IMAGES = 50_000


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

    head: ClassVar = [
        "model", "type", "FID ↓", "sFID ↓", "IS ↑", "precision ↑", "recall ↑", "parameters", "steps", "samples"
    ]  # fmt: skip
    subject: ClassVar = "Class-conditional ImageNet 256×256, Table 1 of the paper"

    def cells(self) -> list[str]:
        """The line as text."""
        return [
            self.model + (" *" if self.remarks else ""),
            self.type,
            _number(self.fid, 2),
            _number(self.sfid, 2),
            _number(self.inception_score, 1),
            _number(self.precision, 2),
            _number(self.recall, 2),
            "" if self.parameters is None else f"{self.parameters:,.{0 if self.parameters >= 10 else 2}f} M",
            "" if self.steps is None else str(self.steps),
            f"{self.num_images:,}",
        ]


@dataclass(frozen=True, kw_only=True)
class TokenizerRow:
    """One line of the table of tokenizers.

    Attributes:
        type: kind of tokenizer; `here` marks results of this project.
        model: its name.
        tokens: unique tokens of an image.
        ratio: pixels of a side for each position of the latent grid.
        codebook: entries.
        rfid, lpips: scores of reconstructions, LPIPS with VGG; None where nobody published them.
        usage, usage_of_stage_0: share of the codebook that is drawn, in all and at the stage of one token.
        num_images: behind the scores.
        remarks: what keeps the line from being compared.
    """

    type: str
    model: str
    tokens: int
    ratio: float
    codebook: int
    rfid: float | None = None
    lpips: float | None = None
    usage: float | None = None
    usage_of_stage_0: float | None = None
    num_images: int = _NUM_VALIDATION_IMAGES
    remarks: tuple[str, ...] = ()

    head: ClassVar = [
        "tokenizer", "type", "tokens", "ratio", "codebook", "rFID ↓", "LPIPS ↓", "usage ↑", "of stage 0 ↑", "images"
    ]  # fmt: skip
    subject: ClassVar = "Reconstruction of ImageNet 256×256, Table 3 of the paper"

    def cells(self) -> list[str]:
        """The line as text."""
        return [
            self.model + (" *" if self.remarks else ""),
            self.type,
            f"{self.tokens:,}",
            f"{self.ratio:g}",
            f"{self.codebook:,}",
            _number(self.rfid, 2),
            _number(self.lpips, 4),
            "" if self.usage is None else f"{self.usage:.0%}",
            "" if self.usage_of_stage_0 is None else f"{self.usage_of_stage_0:.2%}",
            f"{self.num_images:,}",
        ]


Rows = Sequence[ScoreRow] | Sequence[TokenizerRow]


def tokenizer_row_of_results(name: str, results: Mapping[str, Any]) -> TokenizerRow:
    """A line from the content of a `results.json` of a tokenizer's evaluation."""
    scores, protocol = results["scores"], results["protocol"]
    codebook, images = scores["codebook"], protocol["reference"]
    stages = codebook["stages"]
    view, size = images["view"], images["image_size"]
    remarks = [
        text
        for text, found in (
            (f"features of {protocol['extractor']['kind']}; published rFID are Inception's",
             protocol["extractor"]["kind"] != INCEPTION),
            (f"r{distance_name(results)} {scores.get('rfd', 0):.2f} in place of rFID", "rfd" in scores),
            (f"{scores['num_images']:,} images; published are the {_NUM_VALIDATION_IMAGES:,} of the validation set",
             scores["num_images"] != _NUM_VALIDATION_IMAGES),
            (f"images of {size} pixels cut as view {view}; published: 256, the centre of the shorter side at 288 "
             "(source.view_policy=crop)", (size, view) != (256, "0 (crop)")),
            ("no LPIPS with VGG", "lpips_vgg" not in scores),
        )
        if found
    ]  # fmt: skip
    remarks += caveat_notes(results, marked=False)
    return TokenizerRow(
        type=OURS,
        model=name,
        tokens=sum(stage["tokens_per_image"] for stage in stages),
        ratio=size / math.sqrt(stages[-1]["tokens_per_image"]),
        codebook=codebook["size"],
        rfid=scores.get("rfid"),
        lpips=scores.get("lpips_vgg"),
        usage=codebook["usage"],
        usage_of_stage_0=stages[0]["usage"],
        num_images=scores["num_images"],
        remarks=tuple(remarks),
    )


def row_of_results(name: str, results: Mapping[str, Any]) -> ScoreRow:
    """A line from the content of a `results.json`, of an evaluation against a reference or against training images."""
    scores, model = results["scores"]["generated"], results["protocol"].get("model", {})
    parameters = sum(model.get("parameters", {}).values())
    remarks = list(
        results.get("not_comparable_because", ["compared with training images in a feature space of its own"])
    )
    if scores.get("fd") is not None:
        remarks.append(f"{distance_name(results)} {scores['fd']:.2f} in place of FID")
    own = {"caveats": [found for found in results.get("caveats", ()) if "generated" in found["sets"]]}
    remarks += caveat_notes({**results, **own, "scores": {"generated": scores}}, marked=False)
    return ScoreRow(
        type=OURS,
        model=name,
        **{key: scores.get(key) for key in ("fid", "inception_score", "precision", "recall", "sfid")},
        parameters=parameters / 1e6 if parameters else None,
        steps=model.get("stages"),
        num_images=scores["num_images"],
        remarks=tuple(remarks),
    )


def score_table(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """The table as text: head and rows."""
    return list(rows[0].head), [row.cells() for row in rows]


def markdown_table(rows: Rows) -> str:
    """The table and its remarks as Markdown."""
    head, body = score_table(rows)
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)]
    remarks = [f"\\* {row.model}: {'; '.join(row.remarks)}." for row in rows if row.remarks]
    return "\n".join([*lines, "", *remarks]) + "\n"


def report_page(rows: Rows) -> str:
    """The whole report as one HTML page that needs no other file."""
    head, body = score_table(rows)
    remarks = "".join(
        f'<p class="note">* {html.escape(row.model)}: {html.escape("; ".join(row.remarks))}.</p>'
        for row in rows
        if row.remarks
    )
    generators = [row for row in rows if isinstance(row, ScoreRow)]
    plots = [
        page.figure(
            fid_plot(generators, key), f"FID over {key}", f"FID over {key}, both axes logarithmic; lower is better."
        )
        for key in ("parameters", "steps")
        if any(row.fid is not None and getattr(row, key) is not None for row in generators)
    ]
    title = "Beside published results"
    return page.page(
        title,
        page.header(title, f"{rows[0].subject}, and what was measured here."),
        page.section(
            "Scores",
            "Published rows are the paper's. A star marks rows whose protocol differs; the reasons stand below.",
            page.table(head, body, first=next((n for n, row in enumerate(rows) if row.type == OURS), None)),
            remarks,
        ),
        *([page.section("Where they stand", "Down and to the left is better.", *plots)] if plots else []),
    )


def fid_plot(rows: Sequence[ScoreRow], key: str) -> Picture:
    """FID over the `parameters` or the `steps` of all rows that have both."""
    names = {"parameters": "parameters, millions", "steps": "steps"}
    shown = [row for row in rows if row.fid is not None and getattr(row, key) is not None]
    points = [(float(getattr(row, key)), float(row.fid or 0.0), row.model, row.type in (OURS, "NVG")) for row in shown]
    return scatter(points, names[key], "FID", logarithmic=True)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
