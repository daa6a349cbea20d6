"""`nvg eval generator`: open the images and the checkpoints, evaluate, write `results.json` and `report.html`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.manifest import read_manifest
from cluster.session import SessionConfig, cluster_session
from eval.evaluation import evaluate
from eval.evaluation_config import EvaluationConfig, EvaluationData
from eval.pages.page import score_rows, time_text
from eval.pages.report import ReportContent, write_report
from eval.reference import ScoreConfig
from eval.results import RESULTS_FILE
from nvg.checkpoints import weights_hash
from nvg.errors import UserError
from pipelines.checkpoints import weights_folder
from pipelines.evaluate.against import plan_against, run_against
from pipelines.run_folder import read_metrics
from pipelines.sources import SourceConfig, load_images, open_source

REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluationConfig):
    """What is evaluated, on which images, and what the report shows besides.

    Attributes:
        source: the images; its parts `train`, `judge` and `test` are read, view 0 of each image, and for the search
            for copies every view of `train` that its `num_views` names. Not opened where there is a reference.
        reference: npz file of ADM's or of `nvg eval reference`: samples are scored against it alone, by the protocol
            of published tables. Empty compares with the images of the source.
        score: what is computed against a reference beside the scores.
        samples_file: npz file for the samples drawn against a reference, as ADM's evaluator takes it; may be empty.
        samples_folder: folder for them as PNG files; may be empty.
        records: record data set the generators were trained on; compared with the tokenizer, and its codebook
            usage is shown. Empty leaves both out.
        curves: name to run folder of the trainings whose loss curves are shown.
        times: name to seconds of the steps that went before, shown in the report.
        title: headline of the report.
        session: the Ray cluster to start or join.
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    reference: str = ""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    samples_file: str = ""
    samples_folder: str = ""
    records: str = ""
    curves: dict[str, str] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    title: str = "Images, painted from coarse to fine"
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tokenizer", "content", "output"):
            if not getattr(self, name):
                raise ValueError(f"{name}: found nothing, expected a folder")
        if not self.reference and (self.samples_file or self.samples_folder):
            raise ValueError("samples_file, samples_folder: found them without a reference, expected them with one")


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


def resolve_paths(config: EvaluateConfig) -> EvaluateConfig:
    """The evaluation with absolute paths, runs replaced by their newest valid checkpoints.

    Args:
        config: as given.

    Raises:
        UserError: weights are missing.
    """
    return replace(
        config,
        output=str(Path(config.output).expanduser().absolute()),
        tokenizer=str(weights_folder("tokenizer", config.tokenizer)),
        content=str(weights_folder("content", config.content)),
        structure=config.structure and str(weights_folder("structure", config.structure)),
    )


def load_data(source: SourceConfig) -> EvaluationData:
    """Read the three parts of a source into memory: view 0 of each image, and all views of the training images.

    Args:
        source: the images; its split is ignored.

    Returns:
        Training, judge and held-out images.

    Raises:
        UserError: a part is missing or empty, or has too many bad images.
    """
    opened = {name: open_source(replace(source, split=name)) for name in ("train", "judge", "test")}
    loaded = {name: load_images(part) for name, part in opened.items()}
    views = range(source.num_views)
    return EvaluationData(
        class_names=list(opened["train"].class_names),
        train_images=loaded["train"].images,
        train_labels=loaded["train"].labels,
        judge_images=loaded["judge"].images,
        judge_labels=loaded["judge"].labels,
        held_out_images=loaded["test"].images,
        held_out_labels=loaded["test"].labels,
        train_views=load_images(opened["train"], views).images if len(views) > 1 else None,
        fingerprints={name: part.fingerprint for name, part in opened.items()},
    )


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
