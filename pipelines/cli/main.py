"""The command line `nvg`. Heavy libraries are imported inside the commands, so that `nvg --help` is quick.

`nvg import-release` and `nvg export-release`: the authors' checkpoints in and out.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from pipelines.cli.evaluate import eval_app
from pipelines.cli.frame import (
    ConfigFile,
    DryRun,
    FixContentFrom,
    MaskForeground,
    Overrides,
    SamplingPreset,
    Stages,
    StructureFrom,
    StructureMask,
    control_overrides,
    resolve,
    run_app,
    show_plan,
)
from pipelines.cli.train import train_app

app = typer.Typer(
    name="nvg",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Next Visual Granularity Generation: images become granularity sequences, two generators learn "
    "them, new images come out with a score.\n\nStart with [bold]nvg demo[/bold]; "
    "[bold]nvg doctor[/bold] shows what the machine lacks.",
)


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
    from pipelines.release import ExportReleaseConfig, plan_export
    from pipelines.release import export_release as write

    config = ExportReleaseConfig(run=run, output=output, autoencoder_output=autoencoder_output)
    if dry_run:
        show_plan(config, plan_export(config))
        return
    write(config, typer.echo)


app.add_typer(train_app, name="train")
app.add_typer(eval_app, name="eval")
app.command("import-release")(import_release)
app.command("export-release")(export_release)


@app.command()
def demo(
    config: ConfigFile = None,
    overrides: Overrides = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FOLDER", help="Your own images: one folder per class.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """The whole chain on digits (or your images): train, sample, score, report.

    Stopped half-way and started again, it goes on where it was.

    Examples: [bold]nvg demo[/bold] · [bold]nvg demo --data ~/pictures[/bold] · [bold]nvg demo
    --dry-run[/bold]
    """
    from pipelines.demo import DemoConfig, plan_demo, run_demo

    given = [*(overrides or []), *([f"data={json.dumps(data)}"] if data else [])]
    resolved = resolve(DemoConfig, config, given, default="demo/digits.yaml")
    if dry_run:
        show_plan(resolved, plan_demo(resolved))
        return
    run_demo(resolved)


@app.command()
def precompute(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Turn images into records: encode, cluster, write an MDS data set, on Ray actors.

    Finished units are kept; the same command finishes a run that was stopped.

    Example: [bold]nvg precompute source.kind=folder source.path=/data/train tokenizer=runs/tok
    output=data/vgs[/bold]
    """
    from pipelines.precompute.config import PrecomputeConfig
    from pipelines.precompute.job import precompute as run

    resolved = resolve(PrecomputeConfig, config, overrides)
    if dry_run:
        source, num_actors = resolved.source, resolved.num_actors
        show_plan(
            resolved,
            [
                f"join or start Ray ({resolved.session.address})",
                f"open the {source.kind} source {source.path or ''}".rstrip(),
                f"encode {source.num_views} view(s) per image with {resolved.tokenizer} on {num_actors} "
                f"actor(s), {resolved.images_per_unit} images per unit, batches of {resolved.batch_size}",
                f"merge the parts and write the manifest in {resolved.output}",
            ],
        )
        return
    typer.echo(run(resolved))


@app.command()
def sample(
    config: ConfigFile = None,
    overrides: Overrides = None,
    sampling: SamplingPreset = None,
    structure_from: StructureFrom = None,
    structure_mask: StructureMask = None,
    fix_content_from: FixContentFrom = None,
    stages: Stages = None,
    mask_foreground: MaskForeground = None,
    dry_run: DryRun = False,
) -> None:
    """Draw images of chosen classes and write them as a grid and as files.

    They follow an image's structure, a drawn mask or an image's first contents where one is given; how well they do
    is measured, printed and written beside the pictures. Without --config and --sampling the settings are those the
    run was scored with.

    Example: [bold]nvg sample run=runs/demo classes='[3, 7]' num_per_class=8 --sampling release
    sampling.content_guidance=2[/bold] · [bold]nvg sample run=runs/demo classes='[8]' --structure-mask circle.png[/bold]
    """
    from pipelines.sample import SampleConfig, plan_sample, run_sampling, sample_images

    given = control_overrides(structure_from, structure_mask, fix_content_from, stages, mask_foreground)
    settings = [*given, *(overrides or [])]
    resolved = resolve(SampleConfig, config, settings, sampling=sampling)
    if config is None and sampling is None:
        resolved = resolve(SampleConfig, None, [*run_sampling(resolved.run), *settings])
    if dry_run:
        show_plan(resolved, plan_sample(resolved))
        return
    typer.echo(sample_images(resolved))


@app.command()
def ablate(
    config: ConfigFile = None,
    overrides: Overrides = None,
    preset: Annotated[
        str, typer.Option("--preset", metavar="NAME", help="A study of configs/ablate, where --config is not given.")
    ] = "digits",
    dry_run: DryRun = False,
) -> None:
    """The paper's ablations with one budget and several seeds: a table, and which of its orderings show.

    Stopped half-way and started again, it goes on where it was.

    Examples: [bold]nvg ablate --preset digits[/bold] · [bold]nvg ablate --dry-run seeds='[0]'[/bold]
    """
    from pipelines.ablate.plan import AblateConfig, describe_plan, make_plan
    from pipelines.ablate.study import run_ablate

    resolved = resolve(AblateConfig, config, overrides, default=f"ablate/{preset}.yaml")
    if dry_run:
        show_plan(resolved, describe_plan(resolved, make_plan(resolved)))
        return
    typer.echo(run_ablate(resolved))


@app.command("inspect")
def inspect_image(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Draw one image, its structure map and its reconstruction at every stage; or stored records, decoded.

    A word without "=" is a record data set: its records are drawn.

    Examples: [bold]nvg inspect tokenizer=runs/demo/tokenizer index=12 output=digit.png[/bold] · [bold]nvg inspect
    runs/demo/records count=4 output=records.png[/bold]
    """
    from pipelines.inspect import InspectConfig, plan_inspect

    given = [text if "=" in text else f"records={json.dumps(text)}" for text in overrides or []]
    resolved = resolve(InspectConfig, config, given)
    if dry_run:
        show_plan(resolved, plan_inspect(resolved))
        return
    if resolved.records:
        from pipelines.inspect import inspect_records as run
    else:
        from pipelines.inspect import inspect_image as run
    typer.echo(run(resolved))


@app.command()
def verify(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Folder written by `nvg precompute`.")],
) -> None:
    """Read every byte of a record data set and compare it with its index and manifest; exit 2 where it is damaged.

    Example: [bold]nvg verify runs/demo/records[/bold]
    """
    from pipelines.precompute.verify import verify_records

    found = verify_records(dataset)
    typer.echo(f"{found.num_records} records in {found.num_shards} shards of {found.num_bytes} bytes: nothing wrong")


@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run, after `--`.")],
    config: ConfigFile = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Job server (http://head:8265); without it a cluster is started here."),
    ] = None,
    working_dir: Annotated[
        str | None,
        typer.Option("--working-dir", help="Folder to upload; give outputs as absolute paths on shared storage."),
    ] = None,
    submission_id: Annotated[str | None, typer.Option("--submission-id", help="Name of the job.")] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=VALUE", help="Environment variable; repeatable."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Run any nvg command as a Ray job, follow its log and return its exit code.

    Without --working-dir the job runs in the current folder (same machine or shared file system).

    Example: [bold]nvg submit -- nvg precompute --config runs/demo/configs/precompute.yaml[/bold]
    """
    from cluster.submit import JobConfig, job_entrypoint
    from cluster.submit import submit as run
    from pipelines.configuration import ConfigError

    variables = {}
    for text in env or []:
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"--env {text!r} is not NAME=VALUE.")
        variables[name] = value
    options = {"address": address, "working_dir": working_dir, "submission_id": submission_id}
    given = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    resolved = resolve(JobConfig, config, given)
    resolved = dataclasses.replace(resolved, env_vars={**resolved.env_vars, **variables})
    if dry_run:
        where = resolved.address or "a cluster started here"
        show_plan(resolved, [f"send to {where}: {job_entrypoint(command, folder=None)}", "follow its log"])
        return
    raise typer.Exit(run(command, resolved))


@app.command()
def doctor() -> None:
    """Show versions, compiler, devices, /dev/shm, disk, cores and memory; exit 1 when something is missing.

    Example: [bold]nvg doctor[/bold]
    """
    from pipelines.doctor import run_doctor

    raise typer.Exit(run_doctor())


def main() -> None:
    """Entry point of the console script."""
    run_app(app)


if __name__ == "__main__":
    main()
