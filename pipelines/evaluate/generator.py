"""`nvg eval generator`: open the images and the checkpoints, evaluate, write `results.json` and `report.html`."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.manifest import read_manifest
from cluster.session import cluster_session
from eval.evaluation import evaluate
from eval.evaluation_config import EvaluationData
from eval.pages.page import score_rows, time_text
from eval.pages.report import ReportContent, write_report
from eval.results import RESULTS_FILE
from nvg.checkpoints import weights_hash
from nvg.errors import UserError
from pipelines.evaluate.against import plan_against, run_against
from pipelines.evaluate.config import REPORT_FILE, EvaluateConfig, resolve_paths
from pipelines.evaluate.images import load_data
from pipelines.run_folder import read_metrics


def plan_evaluate(config: EvaluateConfig) -> list[str]:
    """The steps of an evaluation, for a dry run.

    Args:
        config: the evaluation.

    Returns:
        One line per step.
    """
    if config.reference:
        return plan_against(config)
    pool = config.pool
    return [
        f"open the {config.source.kind} source {config.source.path or ''}".rstrip() + ": train, judge, test",
        f"features: {config.extractor_kind} "
        + (f"from {config.extractor_path}" if config.extractor_path else "trained on the training images"),
        f"join or start Ray ({config.session.address}) and draw {pool.num_samples} samples on "
        f"{pool.num_actors} worker(s), {pool.chunk_size} per chunk"
        + (", and again at guidance 1" if config.guidance_one else ""),
        "score samples, real held-out images and their reconstructions",
        f"write {RESULTS_FILE} and {REPORT_FILE} in {config.output}",
    ]


def run_evaluate(config: EvaluateConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Evaluate and write results and report; prints the score table and where the report is.

    Args:
        config: the evaluation.
        console: where progress and the table are shown.

    Returns:
        The results, as in `results.json`.

    Raises:
        UserError: images, checkpoints or records are missing or do not belong together.
    """
    console = console or Console()
    resolved = resolve_paths(config)
    output = Path(resolved.output)
    if config.reference:
        output.mkdir(parents=True, exist_ok=True)
        return run_against(resolved, console=console)
    usage = codebook_usage(resolved)
    data = load_data(resolved.source)
    with cluster_session(resolved.session):
        evaluation = evaluate(resolved, data, console=console)
    scores = evaluation.results["scores"]
    times = [(name, seconds, "") for name, seconds in config.times.items()]
    times += [(f"evaluation: {name}", seconds, "") for name, seconds in evaluation.results["seconds"].items()]
    report = write_report(
        output / REPORT_FILE,
        ReportContent(
            title=config.title,
            summary=f"Two generators learned from {len(data.train_images):,} real images of "
            f"{len(data.class_names)} classes. This page shows what they draw, and how near it comes to real "
            f"images nobody trained on, in {scores['generated']['num_images']:,} samples.",
            results=evaluation.results,
            material=evaluation.material,
            curves={name: rows for name, folder in config.curves.items() if (rows := read_metrics(Path(folder)))},
            codebook_usage=usage,
            times=times,
            facts=_facts(resolved, data),
        ),
    )
    print_scores(evaluation.results, console)
    console.print(f"results  {output / RESULTS_FILE}", highlight=False, soft_wrap=True)
    console.print(f"report   {report}", highlight=False, soft_wrap=True)
    return evaluation.results


def codebook_usage(config: EvaluateConfig) -> list[float]:
    """Codebook usage of the records, after making sure that they were made with this tokenizer.

    Args:
        config: the evaluation, its paths resolved.

    Returns:
        Share of the codebook in use per stage; empty without records.

    Raises:
        UserError: the records were made with another tokenizer.
    """
    if not config.records:
        return []
    manifest = read_manifest(Path(config.records))
    found = weights_hash(config.tokenizer, config.tokenizer_weights)
    if manifest["tokenizer_hash"] != found:
        raise UserError(
            f"tokenizer: {config.tokenizer} ({config.tokenizer_weights}) has the hash {found[:12]}…, the "
            f"records in {config.records} were made with {manifest['tokenizer_hash'][:12]}…; give the "
            "tokenizer the records were made with"
        )
    return list(manifest["codebook_usage"])


def print_scores(results: dict[str, Any], console: Console) -> None:
    """Print the score table.

    Args:
        results: what the evaluation returned.
        console: where to.
    """
    head, rows = score_rows(results)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left")
    for number, row in enumerate(rows):
        table.add_row(*row, style="bold" if number == 0 else None)
    console.print()
    console.print(table)
    console.print(f"\nevaluated in {time_text(sum(results['seconds'].values()))}", highlight=False)


def _facts(config: EvaluateConfig, data: EvaluationData) -> dict[str, str]:
    side, _, channels = data.train_images.shape[1:]
    return {
        "images": f"{config.source.kind} {config.source.path or ''}".strip(),
        "size": f"{side}×{side}, {'grey' if channels == 1 else 'colour'}",
        "train / judge / held out": f"{len(data.train_images)} / "
        f"{0 if data.judge_images is None else len(data.judge_images)} / {len(data.held_out_images)}",
        "classes": ", ".join(data.class_names[:20]) + (" …" if len(data.class_names) > 20 else ""),
        "tokenizer": config.tokenizer,
        "content generator": config.content,
        "structure generator": config.structure or "none: spatial structure",
    }
