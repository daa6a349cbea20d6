"""`report.html`: everything an evaluation found, on one page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from cluster.files import write_atomically
from eval.evaluation import EvaluationMaterial
from eval.pages import page
from eval.pages.page import ROW_NAMES, caveat_notes, dagger, distance_name, score_rows, time_text
from eval.pictures.plots import loss_curves, usage_bars
from eval.pictures.sheets import nearest_sheet, painting_rows, real_beside_generated, reconstruction_sheet, sample_grid


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """What a report is made of.

    Attributes:
        title: headline of the page.
        summary: one or two sentences under it.
        results: what `evaluate` returned.
        material: images to show.
        curves: name of a training run to its metrics rows; may be empty.
        codebook_usage: share of the codebook in use per stage; may be empty.
        times: (step, seconds, remark) of everything that was run; may be empty.
        facts: name to value, shown in the protocol (data, models, machine).
    """

    title: str
    summary: str
    results: Mapping[str, Any]
    material: EvaluationMaterial
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    codebook_usage: Sequence[float] = ()
    times: Sequence[tuple[str, float, str]] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_report(path: Path, content: ReportContent) -> Path:
    """Draw all pictures and write the page under a temporary name, which is then renamed.

    Raises:
        ValueError: images or rows that cannot be drawn.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render_report(content).encode())
    return path


def render_report(content: ReportContent) -> str:
    """The page as HTML, without any reference to another file or host."""
    parts = [
        _header(content),
        _score_section(content),
        _painting_section(content),
        _comparison_section(content),
        _nearest_section(content),
        _tokenizer_section(content),
    ]
    if content.curves:
        parts.append(_curve_section(content))
    if content.times:
        parts.append(_time_section(content))
    parts += [_protocol_section(content), "<footer>Made by the evaluation of nvg.</footer>"]
    return page.page(content.title, *parts)


def _header(content: ReportContent) -> str:
    row = content.results["scores"]["generated"]
    numbers = [
        (f"{row[score]:{form}}{dagger(content.results, 'generated', score)}", meaning)
        for score, form, meaning in (
            ("class_accuracy", ".1%", "of generated images read as the asked class"),
            ("fid", ".2f", "FID, lower is nearer to real"),
            ("fd", ".2f", f"{distance_name(content.results)}, lower is nearer to real"),
            ("precision", ".2f", "precision: they look real"),
            ("recall", ".2f", "recall: they show all of it"),
        )
        if score in row
    ]
    if any(number.endswith("†") for number, _ in numbers):
        numbers.append(("†", "not to be trusted: the reason is below the scores"))
    return page.header(content.title, content.summary, page.headline(numbers))


def _score_section(content: ReportContent) -> str:
    head, rows = score_rows(content.results)
    name = distance_name(content.results)
    note = (
        f"{name}, precision and recall compare with the training images in the feature space named in the protocol, so "
        "the numbers compare with each other and not with those of other data. Sets of different size are not quite on "
        f"a par: fewer images make {name} larger."
    )
    reasons = content.results.get("not_comparable_because", ())
    beside = [f"Not to be set beside published scores: {'; '.join(reasons)}."] if reasons else []
    return page.section(
        "Scores",
        "A score says little alone. Real images nobody trained on show what can be reached, reconstructions what the "
        "tokenizer loses, and samples at guidance 1 what the generators learned by themselves.",
        page.table(head, rows, first=0),
        *(f'<p class="note">{escape(text)}</p>' for text in [*caveat_notes(content.results), *beside, note]),
    )


def _painting_section(content: ReportContent) -> str:
    material = content.material
    stages = len(material.paintings[0].stages_SHWC)
    least = 460 if stages < 8 else 860
    return page.section(
        "Painted from coarse to fine",
        "An image is a sequence of stages. Each one divides every region of the one before in two equal halves and "
        "paints one token per region over the canvas.",
        page.figure(
            painting_rows(material.paintings),
            "Generated images, stage by stage, structure maps above the canvases",
            "Generated images, from one colour for the whole image to one token per position. Above, the structure "
            "map: positions of one colour share a token, and the two children of a region keep shades of its colour. "
            "Below, the canvas decoded after that stage. First the generators decide what, then where, then how.",
            least_width=least,
        ),
        page.figure(
            painting_rows(material.real_paintings),
            "Real images taken apart by the tokenizer, stage by stage",
            "The same for real held-out images: what the tokenizer makes of them, and what the generators learn from.",
            least_width=least,
        ),
    )


def _comparison_section(content: ReportContent) -> str:
    material = content.material
    return page.section(
        "Real and generated",
        "Rows are classes. Look for variety within a row, not only for legibility.",
        page.figure(
            real_beside_generated(material.held_out, material.generated, material.class_names),
            "Real images on the left, generated ones on the right, one row per class",
            "The first images of each class, not chosen. Neither tokenizer nor generators have seen the real ones.",
        ),
        page.figure(
            sample_grid(material.generated, material.class_names, per_class=20),
            "More generated images, one row per class",
            "More samples, also in the order in which they were drawn.",
            least_width=520,
        ),
    )


def _nearest_section(content: ReportContent) -> str:
    material = content.material
    found = content.results["scores"]["generated"]["distance_to_training"]
    share = found["share_nearer_than_95_percent_of_held_out"]
    mark = dagger(content.results, "generated", "distance_to_training")
    looked = found.get("in_features")
    in_features = (
        f" In the features of {looked['of']}, against the training images unshifted, "
        f"{looked['share_nearer_than_95_percent_of_held_out']:.1%}{mark} do."
        if looked
        else ""
    )
    return page.section(
        "Not copied",
        "If the generators had only learned the training images by heart, every sample would have a twin among them.",
        page.figure(
            nearest_sheet(material.generated.images, material.nearest, material.nearest_distance),
            "Generated images, each above the training image nearest to it",
            "The first 16 samples above the nearest view of a training image, with their distance in grey levels "
            f"(root mean square over pixels). {share:.1%}{mark} of all samples lie nearer to one than 95% of real "
            f"held-out images do ({found['threshold_grey_levels']:.1f} levels); a model that draws like nature would "
            f"have 5%. The median is {found['median_grey_levels']:.1f} for samples and "
            f"{found['held_out_median_grey_levels']:.1f} for held-out images.{in_features}",
        ),
    )


def _tokenizer_section(content: ReportContent) -> str:
    material = content.material
    quality = content.results["scores"]["reconstructions"]
    figures = [
        page.figure(
            reconstruction_sheet(material.held_out.images, material.reconstructions),
            "Held-out images, their reconstructions and the error",
            f"Held-out images through the tokenizer and back: {quality['psnr_db']:.1f} dB on average. In the error row "
            "black is no difference and white is 64 grey levels or more. What is lost here no generator can bring "
            "back.",
        )
    ]
    if len(content.codebook_usage):
        figures.append(
            page.figure(
                usage_bars(content.codebook_usage),
                "Share of the codebook used at every stage",
                "Share of the codebook that the training images use at each stage. One codebook serves all stages; "
                "early ones have few tokens per image and need few entries.",
            )
        )
    return page.section(
        "The tokenizer", "Generators see tokens only, so its reconstructions bound every sample.", *figures
    )


def _curve_section(content: ReportContent) -> str:
    return page.section(
        "Learning",
        "One panel per training run, all on the images it has seen so far.",
        page.figure(
            loss_curves(content.curves),
            "Loss curves of the training runs",
            "The logged loss, faint, and its running mean. Grey lines are its parts, by stage where it is "
            "known by stage.",
            least_width=620 if len(content.curves) > 2 else 0,
        ),
    )


def _time_section(content: ReportContent) -> str:
    rows = [[name, time_text(seconds), remark] for name, seconds, remark in content.times]
    total = sum(seconds for _, seconds, _ in content.times)
    rows.append(["Sum of the steps", time_text(total), ""])
    return page.section("Time", "What each step took on this machine.", page.table(["step", "time", ""], rows))


def _protocol_section(content: ReportContent) -> str:
    groups: dict[str, list[list[str]]] = {"Facts": [[key, value] for key, value in content.facts.items()]}
    for key, value in content.results["protocol"].items():
        if key == "pools":
            for pool, identity in value.items():
                groups[f"Pool: {ROW_NAMES.get(pool, pool)}"] = _flat(identity)
        else:
            groups.setdefault("Scores", []).extend(_flat({key: value}))
    blocks = [
        f"<details><summary>{escape(name)}</summary>{page.table([], rows, wrap=True)}</details>"
        for name, rows in groups.items()
        if rows
    ]
    return page.section(
        "Protocol",
        "Everything that decides these numbers. The same weights, settings and kind of machine give the same images, "
        "bit for bit, with any number of workers.",
        *blocks,
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Nested settings as rows of dotted name and text."""
    rows = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name} · ")
        else:
            rows.append([name, "" if value is None else str(value)])
    return rows
