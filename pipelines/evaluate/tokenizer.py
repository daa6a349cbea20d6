"""`nvg eval tokenizer`: reconstruct one split of a source, write `results.json` and the picture sheet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cluster.session import SessionConfig, cluster_session
from eval.features.extractors import ExtractorSpec, given_extractor, trained_extractor
from eval.pages.page import time_text
from eval.results import RESULTS_FILE
from eval.tokenizer_evaluation import (
    SHEET_FILE,
    ReferenceSet,
    TokenizerEvaluationConfig,
    evaluate_tokenizer,
)
from nvg.errors import UserError
from pipelines.checkpoints import weights_folder
from pipelines.evaluate.images import SourceImages
from pipelines.sources import (
    SkippedInput,
    SourceConfig,
    check_bad_inputs,
    load_images,
    open_source,
)


@dataclass(frozen=True, kw_only=True)
class EvaluateTokenizerConfig(TokenizerEvaluationConfig):
    """What is evaluated, and on which images.

    Attributes:
        source: the images; view 0 of each image of its split is reconstructed, and scores compare with these images.
            Where a feature network has to be trained, it learns from the `train` split.
        session: the Ray cluster to start or join.
    """

    source: SourceConfig = field(default_factory=lambda: SourceConfig(split="test"))
    session: SessionConfig = field(default_factory=SessionConfig)


def plan_evaluate_tokenizer(config: EvaluateTokenizerConfig) -> list[str]:
    """The steps of an evaluation, for a dry run.

    Args:
        config: the evaluation.

    Returns:
        One line per step.
    """
    pool, source = config.pool, config.source
    return [
        f"open the {source.kind} source {source.path or ''}".rstrip() + f": {source.split}",
        f"features: {config.extractor_kind} "
        + (f"from {config.extractor_path}" if config.extractor_path else "trained on the training images"),
        "LPIPS: " + (", ".join(config.lpips) or "left out, neither vgg_weights nor alex_weights names a file"),
        f"join or start Ray ({config.session.address}) and reconstruct on {pool.num_actors} worker(s), "
        f"{pool.chunk_size} per chunk",
        f"write {RESULTS_FILE} and {SHEET_FILE} in {config.output}",
    ]


def run_evaluate_tokenizer(config: EvaluateTokenizerConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Evaluate; print the scores and where the files are.

    Args:
        config: the evaluation.
        console: where progress and the table are shown.

    Returns:
        The results, as in `results.json`.

    Raises:
        UserError: images or weights are missing or do not belong together.
    """
    console = console or Console()
    output = Path(config.output).expanduser().absolute()
    resolved = replace(config, output=str(output), tokenizer=str(weights_folder("tokenizer", config.tokenizer)))
    source = open_source(resolved.source)
    if not len(source):
        raise UserError(f"source.split: found no image in {resolved.source.split!r}, expected at least two")

    def check_unreadable(indices: NDArray[np.int64]) -> None:
        unreadable = [SkippedInput(source.keys[index], "no readable image") for index in indices.tolist()]
        check_bad_inputs([*source.skipped, *unreadable], source)

    def extractor() -> ExtractorSpec:
        if given := given_extractor(resolved):
            return given
        train = open_source(replace(resolved.source, split="train"))
        loaded = load_images(train)
        return trained_extractor(resolved, loaded.images, loaded.labels, len(train.class_names))

    reference = ReferenceSet(images=SourceImages(source), labels=source.labels, check_unreadable=check_unreadable)
    with cluster_session(resolved.session):
        results = evaluate_tokenizer(resolved, reference, extractor, console=console)
    print_tokenizer_scores(results, console)
    console.print(f"results   {output / RESULTS_FILE}", highlight=False, soft_wrap=True)
    console.print(f"pictures  {output / SHEET_FILE}", highlight=False, soft_wrap=True)
    return results


def print_tokenizer_scores(results: dict[str, Any], console: Console) -> None:
    """Print scores, codebook use by stage, what the reference is and what was left out.

    Args:
        results: what the evaluation returned.
        console: where to.
    """
    scores, reference = results["scores"], results["protocol"]["reference"]
    rows = [("rFID ↓", f"{scores['rfid']:.3f}")]
    rows += [
        (f"LPIPS ({trunk}) ↓", f"{scores[name]:.4f}")
        for trunk in ("vgg", "alex")
        if (name := f"lpips_{trunk}") in scores
    ]
    rows += [("PSNR ↑", f"{scores['psnr_db']:.2f} dB"), ("SSIM ↑", f"{scores['ssim']:.4f}")]
    console.print()
    console.print(_table(["", ""], rows))
    codebook = scores["codebook"]
    stages = [
        (str(number), str(stage["tokens_per_image"]), f"{stage['usage']:.1%}", f"{stage['perplexity']:.1f}")
        for number, stage in enumerate(codebook["stages"])
    ]
    tokens = sum(stage["tokens_per_image"] for stage in codebook["stages"])
    stages.append(("all", str(tokens), f"{codebook['usage']:.1%}", f"{codebook['perplexity']:.1f}"))
    console.print()
    console.print(_table(["stage", "tokens", f"usage of {codebook['size']}", "perplexity"], stages))
    console.print(
        f"\nreference: {reference['num_images']:,} images, {reference['kind']} {reference['split']} "
        f"({reference['fingerprint'][:12]}…), features of {results['protocol']['extractor']['kind']}",
        highlight=False,
        soft_wrap=True,
    )
    for line in results["left_out"]:
        console.print(f"left out: {line}", highlight=False, soft_wrap=True)
    console.print(f"evaluated in {time_text(sum(results['seconds'].values()))}", highlight=False)


def _table(head: list[str], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=any(head))
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table
