"""`nvg import-release` and `nvg export-release`: the authors' checkpoints in and out."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.frame import DryRun, show_plan


def import_release(
    output: Annotated[str, typer.Option("--output", metavar="FOLDER", help="Run folder to write.")],
    autoencoder: Annotated[str | None, typer.Option("--autoencoder", metavar="FILE", help="ae.ckpt")] = None,
    generator: Annotated[
        str | None, typer.Option("--generator", metavar="FILE", help="d16.ckpt, d20.ckpt or d24.ckpt")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema/--no-ema", help="EMA or bare weights of the generator.")] = True,
    dry_run: DryRun = False,
) -> None:
    """Turn the authors' checkpoints into weights of this project; nothing in the files is executed.

    The authors' weights are under a non-commercial licence of their own.

    Example: [bold]nvg import-release --autoencoder ae.ckpt --generator d16.ckpt --output runs/d16[/bold]
    """
    from pipelines.release import ImportReleaseConfig, plan_import
    from pipelines.release import import_release as run

    config = ImportReleaseConfig(autoencoder=autoencoder, generator=generator, ema=ema, output=output)
    if dry_run:
        show_plan(config, plan_import(config))
        return
    run(config, typer.echo)


def export_release(
    run: Annotated[str, typer.Argument(metavar="FOLDER", help="Imported or trained run.")],
    output: Annotated[str | None, typer.Option("--output", metavar="FILE", help="Both generators.")] = None,
    autoencoder_output: Annotated[
        str | None, typer.Option("--autoencoder-output", metavar="FILE", help="The tokenizer.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Write weights of this project back in the layout of the authors' checkpoints.

    Example: [bold]nvg export-release runs/d16 --output d16.ckpt --autoencoder-output ae.ckpt[/bold]
    """
    from pipelines.export_release import ExportReleaseConfig, plan_export
    from pipelines.export_release import export_release as write

    config = ExportReleaseConfig(run=run, output=output, autoencoder_output=autoencoder_output)
    if dry_run:
        show_plan(config, plan_export(config))
        return
    write(config, typer.echo)
