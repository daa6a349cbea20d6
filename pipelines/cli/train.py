"""`nvg train …`: the three trainings, and both generators at the same time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from pipelines.cli.frame import ConfigFile, DryRun, Overrides, resolve, show_plan
from pipelines.train.plan import plan_training

if TYPE_CHECKING:
    pass

T = TypeVar("T")

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
    from pipelines.train.tokenizer import TokenizerRunConfig, train_tokenizer

    resolved = resolve(TokenizerRunConfig, config, overrides)
    if dry_run:
        source = f"{resolved.source.kind} {resolved.source.path or ''}".rstrip()
        show_plan(resolved, plan_training("the tokenizer", f"images of {source}", resolved))
        return
    _train(train_tokenizer, resolved)


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

    resolved = resolve(PairRunConfig, config, overrides)
    if dry_run:
        show_plan(resolved, plan_generators(resolved))
        return
    _train(train_generators, resolved)


def _generator(kind: str, config: str | None, overrides: list[str] | None, dry_run: bool) -> None:
    from pipelines.train.generator import GeneratorRunConfig, train_generator

    own_folder = [] if config else [f"run_folder=runs/{kind}"]
    resolved = resolve(GeneratorRunConfig, config, [*own_folder, f"kind={kind}", *(overrides or [])])
    if dry_run:
        from pipelines.train.plan import plan_costs

        steps = plan_training(f"the {kind} generator", f"records of {resolved.data.path}", resolved)
        show_plan(resolved, [*steps, *plan_costs(resolved, resolved.launch.num_workers)])
        return
    _train(train_generator, resolved)


def _train(run: Callable[[T], object], config: T) -> None:
    folders = run(config)
    for folder in folders if isinstance(folders, tuple) else (folders,):
        typer.echo(folder)
