"""`nvg sample` with something given: samples that follow it, free ones beside them, and how well they follow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cluster.files import write_atomically
from eval.controlled import Comparison, ControlledSamples, compare
from eval.pictures.paintings import paint_sequences
from eval.pictures.sheets import control_sheet, painting_rows
from eval.pool.samplers import GeneratorSampler
from nvg.granularity import StageLayout, stage_map
from nvg.sampling import Given
from pipelines.structure_control import Control, ControlConfig, load_control

CONTROL_FILE = "control.png"
ADHERENCE_FILE = "adherence.json"
STAGES_FILE = "stages.png"
PAINTINGS = 4


def sample_controlled(
    sampler: GeneratorSampler,
    config: ControlConfig,
    labels_B: np.ndarray,
    indices_B: np.ndarray,
    output: Path,
    *,
    console: Console | None = None,
) -> np.ndarray:
    """Draw, measure, print and write.

    Args:
        sampler: the networks.
        config: what is given.
        labels_B: int64 classes asked for.
        indices_B: int64 sample indices.
        output: existing folder for pictures and `adherence.json`.
        console: where the figures are printed.

    Returns:
        uint8 images (B, H, W, C).

    Raises:
        UserError: what is given cannot be used; the message says why.
    """
    console = console or Console()
    control = load_control(config, sampler.tokenizer, spatial=sampler.structure is None)
    labels, indices = torch.from_numpy(labels_B), torch.from_numpy(indices_B)
    samples, free, comparison = compare(
        sampler,
        labels,
        indices,
        _for_all(control.given, len(labels)),
        num_candidates=config.num_candidates,
        images_BHWC=None if control.image_HWC is None else np.repeat(control.image_HWC[None], len(labels), axis=0),
    )
    facts = {
        "given": control.name,
        "splits_given": control.given.num_splits,
        "stages_of_contents_given": control.given.num_contents,
        "mask_bend": control.bend,
        "samples": len(labels),
        "candidates": config.num_candidates,
        "agreement": None if comparison is None else comparison.as_json(),
    }
    write_atomically(output / ADHERENCE_FILE, f"{json.dumps(facts, indent=2)}\n".encode())
    _draw_pictures(sampler, control, samples, free, comparison, labels, output)
    _print_figures(console, control, comparison, facts)
    return samples.images_BHWC


def _for_all(given: Given, count: int) -> Given:
    def repeated(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values.expand(count, -1)

    return replace(given, structure_BL=repeated(given.structure_BL), content_ids_BT=repeated(given.content_ids_BT))


def _draw_pictures(
    sampler: GeneratorSampler,
    control: Control,
    samples: ControlledSamples,
    free: ControlledSamples,
    comparison: Comparison | None,
    labels_B: torch.Tensor,
    output: Path,
) -> None:
    structure_BL = control.given.structure_BL
    assert structure_BL is not None
    layout = StageLayout(structure_BL.shape[1])
    maps = [
        stage_map(structure_BL, stage, layout.last_stage).view(layout.side, layout.side).numpy()
        for stage in range(1, control.given.num_splits + 1)
    ]
    sheet = control_sheet(
        control.source_HWC,
        maps,
        [("as given", samples.images_BHWC), ("free", free.images_BHWC)],
        source_name="mask" if control.bend is not None else "image",
        agreements=None if comparison is None else comparison.samples.splits,
    )
    write_atomically(output / CONTROL_FILE, sheet.light)
    paintings = paint_sequences(sampler.tokenizer, samples.sequences, labels_B, sampler.spec.rounding, count=PAINTINGS)
    write_atomically(output / STAGES_FILE, painting_rows(paintings).light)


def _print_figures(console: Console, control: Control, comparison: Comparison | None, facts: dict[str, Any]) -> None:
    console.print(
        f"given    {control.name}: {facts['splits_given']} split(s), {facts['stages_of_contents_given']} stage(s) of "
        "contents",
        highlight=False,
    )
    if control.bend is not None:
        console.print(f"bent     {control.bend:.1%} of the positions changed side to balance the mask", highlight=False)
    if comparison is None:
        console.print("agreement is not measured: no split was given that images could differ in", highlight=False)
        return
    rows = {
        "samples": comparison.samples,
        "free samples": comparison.free,
        "best free draws": comparison.free_best,
        "reconstruction": comparison.reconstruction,
    }
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("agreement")
    for name in ["mean", *(f"split {number}" for number in range(1, len(comparison.samples.splits) + 1))]:
        table.add_column(name, justify="right")
    table.add_column("explained / own", justify="right")
    for name, adherence in rows.items():
        if adherence is not None:
            cells = [adherence.mean, *adherence.splits, sum(adherence.explained) / sum(adherence.own_explained)]
            table.add_row(name, *(f"{cell:.3f}" for cell in cells))
    console.print(table)
