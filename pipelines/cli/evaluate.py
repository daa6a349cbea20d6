"""`nvg eval …`: scores of generators and of tokenizers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipelines.entry import ConfigFile, DryRun, Overrides, SamplingPreset, execute

eval_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Score generators, a tokenizer or images made elsewhere on Ray actors. A stopped run goes on where it was.",
)

Model = Annotated[
    str | None, typer.Option("--model", metavar="RUN", help="Folder with tokenizer, content and structure below it.")
]


@eval_app.command()
def generator(
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Model = None,
    sampling: SamplingPreset = None,
    dry_run: DryRun = False,
) -> None:
    """Sample class-balanced images on Ray actors and score them: FID, sFID, IS, precision, recall.

    They are compared with a reference file by the protocol of published tables, or, where there is none, with the
    training images, beside real images and reconstructions. The same seed gives the same images with any number of
    actors; a stopped run goes on where it was.

    Examples: [bold]nvg eval generator --config eval/imagenet256.yaml --model runs/d16 extractor_path=INCEPTION.pth
    reference=VIRTUAL_imagenet256_labeled.npz output=runs/d16/eval[/bold] · [bold]nvg eval generator --config
    runs/demo/configs/evaluation.yaml --sampling paper pool.num_actors=2[/bold]
    """
    from pipelines.evaluate.config import EvaluateConfig
    from pipelines.evaluate.generator import plan_evaluate, run_evaluate

    settings = [networks_of(model), *(overrides or [])]
    sampling = sampling or (sampling_for(model) if config is None else None)
    execute(EvaluateConfig, plan_evaluate, run_evaluate, config, settings, dry_run, sampling=sampling)


@eval_app.command()
def images(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Score images made elsewhere, an npz file or a folder, against a reference file.

    Example: [bold]nvg eval images samples=samples.npz reference=VIRTUAL_imagenet256_labeled.npz
    extractor_kind=inception-v3-compat extractor_path=INCEPTION.pth output=runs/theirs[/bold]
    """
    from pipelines.evaluate.against import plan_against, run_evaluate_images
    from pipelines.evaluate.config import EvaluateImagesConfig

    execute(EvaluateImagesConfig, plan_against, run_evaluate_images, config, overrides, dry_run)


@eval_app.command()
def reference(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Statistics of an image set of any size, as a reference for the other commands and for ADM's evaluator.

    Example: [bold]nvg eval reference source.kind=folder source.path=/data/train source.split=all
    source.image_size=256 source.image_channels=3 extractor_kind=inception-v3-compat extractor_path=INCEPTION.pth
    output=runs/reference[/bold]
    """
    from rich.console import Console

    from pipelines.evaluate.reference import ReferenceRunConfig, plan_reference, run_reference

    run = partial(run_reference, console=Console())
    execute(ReferenceRunConfig, plan_reference, run, config, overrides, dry_run, quiet=True)


@eval_app.command()
def sweep(
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Model = None,
    sampling: SamplingPreset = None,
    dry_run: DryRun = False,
) -> None:
    """Try sampling settings on few samples: every combination of the values listed, FID plotted against IS.

    Example: [bold]nvg eval sweep --config eval/imagenet256.yaml --model runs/d16 pool.num_samples=5000
    content_guidance='[2, 3, 4]' top_p_last='[0.5, 1]' output=runs/d16/sweep[/bold]
    """
    from pipelines.evaluate.series import SweepConfig, plan_sweep, run_sweep

    settings = [networks_of(model), *(overrides or [])]
    sampling = sampling or (sampling_for(model) if config is None else None)
    execute(SweepConfig, plan_sweep, run_sweep, config, settings, dry_run, sampling=sampling)


@eval_app.command()
def follow(
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Model = None,
    sampling: SamplingPreset = None,
    dry_run: DryRun = False,
) -> None:
    """Score trainings while they run: the EMA weights of their newest checkpoints, every so many images.

    It watches the run folders from outside, on devices of its own; the trainings know nothing of it.

    Example: [bold]nvg eval follow --config eval/imagenet256.yaml --model runs/d16 eval_every_images=5000000
    pool.num_samples=10000 output=runs/d16/follow[/bold]
    """
    from pipelines.evaluate.series import FollowConfig, plan_follow, run_follow

    settings = [networks_of(model), *(overrides or [])]
    sampling = sampling or (sampling_for(model) if config is None else None)
    execute(FollowConfig, plan_follow, run_follow, config, settings, dry_run, sampling=sampling)


@eval_app.command()
def report(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Set results beside the paper's: generators beside Table 1, with plots of FID; tokenizers beside Table 3.

    Example: [bold]nvg eval report results='[runs/d16/eval, runs/d20/eval]' output=runs/report[/bold]
    """
    from pipelines.evaluate.table import ReportConfig, plan_report, run_report

    execute(ReportConfig, plan_report, run_report, config, overrides, dry_run)


@eval_app.command()
def tokenizer(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Reconstruct images on Ray actors and score them: rFID, LPIPS, PSNR, SSIM, codebook usage and perplexity.

    The scores are the same with any number of actors; a stopped run goes on where it was.

    Example: [bold]nvg eval tokenizer tokenizer=runs/demo/tokenizer source.kind=digits output=runs/tok-eval[/bold]
    """
    from pipelines.evaluate.tokenizer import EvaluateTokenizerConfig, plan_evaluate_tokenizer, run_evaluate_tokenizer

    execute(EvaluateTokenizerConfig, plan_evaluate_tokenizer, run_evaluate_tokenizer, config, overrides, dry_run)


def networks_of(model: str | None) -> dict[str, str]:
    """The settings that `--model` stands for: the folder of a demo, of imported weights, or of one's own trainings."""
    if model is None:
        return {}
    folders = {name: str(Path(model) / name) for name in ("tokenizer", "content", "structure")}
    # Spatial structure is given by the positions: such a run has no generator for it.
    return folders if Path(folders["structure"]).is_dir() else {**folders, "structure": ""}


def sampling_for(run: str | None) -> str | None:
    """The preset by which weights of the authors' release are sampled where nothing else is asked for."""
    return "release" if run is not None and (Path(run) / "content" / "release.json").is_file() else None
