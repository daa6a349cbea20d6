"""`nvg eval generator`: open the images and the checkpoints, evaluate, write `results.json` and `report.html`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cluster.session import cluster_session
from eval.evaluation import Evaluation, EvaluationData, evaluate
from eval.pages.page import caveat_notes, score_rows
from eval.pages.report import ReportContent, write_report
from eval.results import RESULTS_FILE
from nvg.checkpoints.runs import require_tokenizer, training_keys
from nvg.records import read_manifest
from pipelines.evaluate.against import plan_against, run_against
from pipelines.evaluate.config import REPORT_FILE, EvaluateConfig
from pipelines.evaluate.images import TOKENIZER_TRAINED_ON, describe_features, describe_source, load_data
from pipelines.evaluate.table import print_file, print_not_comparable, print_table, print_time
from pipelines.precompute.plan import read_sources
from pipelines.run_folder import read_metrics
from pipelines.sources.keys import hash_names


def plan_evaluate(config: EvaluateConfig) -> list[str]:
    """The steps of an evaluation, for a dry run: one line each."""
    if config.reference:
        return plan_against(config)
    pool = config.pool
    return [
        describe_source(config.source, "train, judge, test"),
        describe_features(config, "the training images"),
        f"join or start Ray ({config.session.address}) and draw {pool.num_samples} samples on "
        f"{pool.num_actors} worker(s), {pool.chunk_size} per chunk"
        + (", and again at guidance 1" if config.guidance_one else ""),
        "score samples, real held-out images and their reconstructions",
        f"write {RESULTS_FILE} and {REPORT_FILE} in {config.output}",
    ]


def run_evaluate(config: EvaluateConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Evaluate against the reference, or where there is none with the images of the source; print scores and files.

    Returns:
        The results, as in `results.json`.

    Raises:
        UserError: images, checkpoints, records or reference are missing or do not belong together.
    """
    console = console or Console()
    config = config.resolved()
    Path(config.output).mkdir(parents=True, exist_ok=True)
    return (run_against if config.reference else _run_with_source)(config, console=console)


def _run_with_source(config: EvaluateConfig, *, console: Console) -> dict[str, Any]:
    usage = codebook_usage(config)
    data = load_data(config.source, _trained_on(config))
    spec = config.generator_spec(len(data.class_names))
    with cluster_session(config.session):
        evaluation = evaluate(
            spec,
            data,
            config,
            pool=config.pool,
            judge=config.judge,
            guidance_one=config.guidance_one,
            manifold_images=config.images_of_a_side,
            console=console,
        )
    report = write_report(Path(config.output) / REPORT_FILE, _report(config, data, evaluation, usage))
    head, rows = score_rows(evaluation.results)
    print_table(console, head, rows, first="bold", notes=caveat_notes(evaluation.results))
    print_not_comparable(console, evaluation.results)
    console.print()
    print_time(console, evaluation.results)
    print_file(console, "results", Path(config.output) / RESULTS_FILE)
    print_file(console, "report ", report)
    return evaluation.results


def codebook_usage(config: EvaluateConfig) -> list[float]:
    """Share of the codebook that the records use by stage, after making sure that they were made with this tokenizer.

    Args:
        config: its paths resolved; without records there is no usage.

    Raises:
        UserError: the records were made with another tokenizer.
    """
    if not config.records:
        return []
    manifest = read_manifest(Path(config.records))
    made_with = {f"the records in {config.records}": manifest["tokenizer_hash"]}
    require_tokenizer("tokenizer", config.tokenizer, config.tokenizer_weights, made_with)
    return list(manifest["codebook_usage"])


def _trained_on(config: EvaluateConfig) -> dict[str, np.ndarray | None]:
    """Names of the images that tokenizer and generators were trained on, hashed; None where nothing says so."""
    trained = {TOKENIZER_TRAINED_ON: training_keys(config.tokenizer)}
    if config.records:
        names = read_sources(Path(config.records))
        trained["the records were made of"] = None if names is None else hash_names(names)
    return trained


def _report(config: EvaluateConfig, data: EvaluationData, evaluation: Evaluation, usage: list[float]) -> ReportContent:
    times = [(name, seconds, "") for name, seconds in config.times.items()]
    times += [(f"evaluation: {name}", seconds, "") for name, seconds in evaluation.results["seconds"].items()]
    return ReportContent(
        title=config.title,
        summary=f"Two generators learned from {len(data.train):,} real images of {len(data.class_names)} classes. This "
        "page shows what they draw, and how near it comes to real images nobody trained on, in "
        f"{len(evaluation.material.generated):,} samples.",
        results=evaluation.results,
        material=evaluation.material,
        curves={name: rows for name, folder in config.curves.items() if (rows := _curve(Path(folder)))},
        codebook_usage=usage,
        times=times,
        facts=_facts(config, data),
    )


def _curve(run_folder: Path) -> list[dict[str, Any]]:
    """Rows of a training that a loss curve can show."""
    rows = read_metrics(run_folder)
    return [row for row in rows if row.get("images") is not None and row.get("loss") is not None]


def _facts(config: EvaluateConfig, data: EvaluationData) -> dict[str, str]:
    side, _, channels = data.train.images.shape[1:]
    return {
        "images": f"{config.source.kind} {config.source.path or ''}".strip(),
        "size": f"{side}×{side}, {'grey' if channels == 1 else 'colour'}",
        "train / judge / held out": f"{len(data.train)} / {0 if data.judge is None else len(data.judge)} / "
        f"{len(data.held_out)}",
        "classes": ", ".join(data.class_names[:20]) + (" …" if len(data.class_names) > 20 else ""),
        "tokenizer": config.tokenizer,
        "content generator": config.content,
        "structure generator": config.structure or "none: spatial structure",
    }
