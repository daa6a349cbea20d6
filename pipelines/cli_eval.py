"""`nvg eval …`: scores of generators and of tokenizers."""

from __future__ import annotations

import typer

from pipelines.cli_frame import ConfigFile, DryRun, Overrides, SamplingPreset, resolve, show_plan

eval_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Score generators or a tokenizer on Ray actors. A stopped run goes on where it was.",
)


@eval_app.command()
def generator(
    config: ConfigFile = None,
    overrides: Overrides = None,
    sampling: SamplingPreset = None,
    dry_run: DryRun = False,
) -> None:
    """Sample class-balanced images on Ray actors and score them: FID, IS, precision, recall, class accuracy.

    The same seed gives the same images with any number of actors; a stopped run goes on where it was.

    Example: [bold]nvg eval generator --config runs/demo/configs/evaluation.yaml --sampling paper
    pool.num_actors=2[/bold]
    """
    from pipelines.evaluate import EvaluateConfig, plan_evaluate, run_evaluate

    resolved = resolve(EvaluateConfig, config, overrides, sampling=sampling)
    if dry_run:
        show_plan(resolved, plan_evaluate(resolved))
        return
    run_evaluate(resolved)


@eval_app.command()
def tokenizer(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Reconstruct images on Ray actors and score them: rFID, LPIPS, PSNR, SSIM, codebook usage and perplexity.

    The scores are the same with any number of actors; a stopped run goes on where it was.

    Example: [bold]nvg eval tokenizer tokenizer=runs/demo/tokenizer source.kind=digits output=runs/tok-eval[/bold]
    """
    from pipelines.evaluate_tokenizer import EvaluateTokenizerConfig, plan_evaluate_tokenizer, run_evaluate_tokenizer

    resolved = resolve(EvaluateTokenizerConfig, config, overrides)
    if dry_run:
        show_plan(resolved, plan_evaluate_tokenizer(resolved))
        return
    run_evaluate_tokenizer(resolved)
