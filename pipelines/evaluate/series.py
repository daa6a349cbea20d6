"""`nvg eval sweep`: the same generators under many sampling settings, on few samples, scored on one pool of actors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.files import write_atomically
from cluster.session import cluster_session
from eval.pages import page
from eval.pictures.plots import scatter
from nvg.sampling import SamplingConfig
from pipelines.evaluate.against import draw_against, open_against
from pipelines.evaluate.generator import EvaluateConfig, resolve_paths

SWEEP_FILE, PAGE_FILE = "sweep.json", "sweep.html"
SCORES = {"fid": "FID ↓", "inception_score": "IS ↑", "precision": "precision ↑", "recall": "recall ↑"}


@dataclass(frozen=True, kw_only=True)
class SweepConfig(EvaluateConfig):
    """An evaluation against a reference, once for every combination of the values listed.

    Attributes:
        content_guidance, structure_guidance, top_p_last, num_flow_steps: values tried in place of those of `sampling`;
            an empty list tries its value alone.
    """

    content_guidance: list[float] = field(default_factory=list)
    structure_guidance: list[float] = field(default_factory=list)
    top_p_last: list[float] = field(default_factory=list)
    num_flow_steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reference:
            raise ValueError("reference: found nothing, expected an npz file; a sweep compares with a reference")
        if self.samples_file or self.samples_folder:
            raise ValueError("samples_file, samples_folder: a sweep keeps no images; leave them empty")

    def combinations(self) -> list[dict[str, float]]:
        """The settings that change, one dictionary a combination; those listed last change fastest."""
        lists = {name: getattr(self, name) for name in SWEPT if getattr(self, name)}
        return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


SWEPT = ("content_guidance", "structure_guidance", "top_p_last", "num_flow_steps")


def plan_sweep(config: SweepConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    combinations = config.combinations()
    return [
        f"read the reference {config.reference}",
        *(f"draw and score {config.pool.num_samples} samples: {describe(changed)}" for changed in combinations),
        f"write {SWEEP_FILE} and {PAGE_FILE} in {config.output}",
    ]


def run_sweep(config: SweepConfig, *, console: Console | None = None) -> Path:
    """Score every combination; started again, it goes on where it was.

    Args:
        config: the sweep.
        console: where progress is shown.

    Returns:
        The page with the plot of FID against the Inception score.

    Raises:
        UserError: weights or reference are missing or do not belong together, or a value is impossible.
    """
    console = console or Console()
    resolved = resolve_paths(config)
    assert isinstance(resolved, SweepConfig)
    output = Path(resolved.output)
    output.mkdir(parents=True, exist_ok=True)
    tries = [SamplingConfig(**{**asdict(config.sampling), **changed}) for changed in config.combinations()]
    opened = open_against(resolved)
    rows: list[dict[str, Any]] = []
    with cluster_session(config.session):
        for changed, sampling in zip(config.combinations(), tries, strict=True):
            one = replace(resolved, sampling=sampling)
            spec = replace(opened.spec, sampling=sampling)
            _, results = draw_against(one, replace(opened, spec=spec), console=console, title=describe(changed))
            rows.append({"changed": changed, "sampling": asdict(sampling), **results})
            scores = results["scores"]["generated"]
            line = "  ".join(f"{title} {scores[name]:.3f}" for name, title in SCORES.items())
            console.print(f"{describe(changed)}: {line}", highlight=False, soft_wrap=True)
            text = json.dumps(rows, indent=2, allow_nan=False)
            write_atomically(output / SWEEP_FILE, f"{text}\n".encode())
    write_atomically(output / PAGE_FILE, sweep_page(rows).encode())
    return output / PAGE_FILE


def describe(changed: Mapping[str, float]) -> str:
    """A combination in words: `content_guidance 3.5, num_flow_steps 10`."""
    return ", ".join(f"{name} {value:g}" for name, value in changed.items()) or "as configured"


def sweep_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """FID against the Inception score, and the table, as one HTML page.

    Args:
        rows: what `run_sweep` noted, at least one.
    """
    scores = [row["scores"]["generated"] for row in rows]
    best = min(range(len(rows)), key=lambda number: scores[number]["fid"])
    points = [
        (score["inception_score"], score["fid"], describe(row["changed"]), number == best)
        for number, (row, score) in enumerate(zip(rows, scores, strict=True))
    ]
    table = [
        [describe(row["changed"]), *(f"{score[name]:.3f}" for name in SCORES)]
        for row, score in zip(rows, scores, strict=True)
    ]
    remarks = "; ".join(rows[0]["not_comparable_because"])
    return page.page(
        "Sampling settings",
        "\n".join(
            [
                '<header>\n<p class="eyebrow">Next Visual Granularity</p>\n<h1>Sampling settings</h1>\n</header>',
                page.section(
                    "FID against the Inception score",
                    "Each point is one setting. Guidance and a smaller nucleus trade variety for legibility: the score "
                    "rises, and beyond some point FID rises with it.",
                    page.figure(
                        scatter(points, "Inception score", "FID"),
                        "FID against the Inception score of every setting",
                        f"{scores[0]['num_images']:,} samples a setting; the lowest FID in colour. {remarks}",
                    ),
                    page.table(["setting", *SCORES.values()], table, first=best),
                ),
            ]
        ),
    )
