"""`nvg train …`: the three trainings, and both generators at the same time."""

from __future__ import annotations

import typer

from pipelines.entry import ConfigFile, DryRun, Overrides, execute

train_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train the tokenizer or the generators. A stopped run continues from its newest valid checkpoint.",
)


@train_app.command()
def tokenizer(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Train the autoencoder with its multi-granularity quantiser.

    Example: [bold]nvg train tokenizer run_folder=runs/tok source.kind=folder source.path=/data/train[/bold]
    """
    from pipelines.train.plan import plan_training
    from pipelines.train.tokenizer import TokenizerRunConfig, check_start, train_tokenizer

    def plan(run: TokenizerRunConfig) -> list[str]:
        check_start(run)
        return plan_training("the tokenizer", f"images of {run.source.kind} {run.source.path or ''}".rstrip(), run)

    execute(TokenizerRunConfig, plan, train_tokenizer, config, overrides, dry_run)


@train_app.command()
def content(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Train the content generator on precomputed records.

    Example: [bold]nvg train content data.path=data/vgs run_folder=runs/content content.depth=6[/bold]
    """
    _generator("content", config, overrides, dry_run)


@train_app.command()
def structure(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Train the structure generator on precomputed records.

    Example: [bold]nvg train structure data.path=data/vgs run_folder=runs/structure structure.depth=6[/bold]
    """
    _generator("structure", config, overrides, dry_run)


@train_app.command()
def generators(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Train both generators at the same time: two driver processes on one Ray cluster.

    Example: [bold]nvg train generators --config runs/demo/configs/generators.yaml[/bold]
    """
    from pipelines.train.drivers import PairRunConfig, train_generators
    from pipelines.train.plan import plan_generators

    execute(PairRunConfig, plan_generators, train_generators, config, overrides, dry_run)


def _generator(kind: str, config: str | None, overrides: list[str] | None, dry_run: bool) -> None:
    from pipelines.train.generator import ContentRun, GeneratorRunConfig, StructureRun, check_start, train_generator
    from pipelines.train.plan import plan_alignment, plan_costs, plan_training

    def plan(run: GeneratorRunConfig) -> list[str]:
        check_start(run)
        steps = plan_training(f"the {kind} generator", f"records of {run.data.path}", run)
        return [*steps, *plan_alignment(run), *plan_costs(run, run.launch.num_workers)]

    schema = {"content": ContentRun, "structure": StructureRun}[kind]
    execute(schema, plan, train_generator, config, overrides, dry_run)
