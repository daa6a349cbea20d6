"""The command line `nvg`. Heavy libraries are imported inside the commands, so that `nvg --help` is quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.evaluate import eval_app, sampling_for
from pipelines.cli.train import train_app
from pipelines.entry import ConfigFile, DryRun, Overrides, SamplingPreset, execute, guard

if TYPE_CHECKING:
    from pipelines.configuration import Setting

app = typer.Typer(
    name="nvg",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Next Visual Granularity Generation: images become granularity sequences, two generators learn "
    "them, new images come out with a score.\n\nStart with [bold]nvg demo[/bold]; "
    "[bold]nvg doctor[/bold] shows what the machine lacks.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from cluster.versions import commit, library_versions

        versions, code = library_versions(), commit()
        typer.echo(f"nvg {versions['nvg']}{f', commit {code}' if code else ''}, torch {versions['torch']}")
        raise typer.Exit


@app.callback()
def nvg(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Versions, and the commit.")
    ] = False,
) -> None:
    """Options of the program itself; its help stands above."""


app.add_typer(train_app, name="train")
app.add_typer(eval_app, name="eval")


@app.command("import-release")
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
    from pipelines.release import ImportReleaseConfig, import_release, plan_import

    options = {"autoencoder": autoencoder, "generator": generator, "ema": ema, "output": output}
    execute(ImportReleaseConfig, plan_import, import_release, None, [options], dry_run, quiet=True)


@app.command("export-release")
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
    from pipelines.release import ExportReleaseConfig, export_release, plan_export

    options = {"run": run, "output": output, "autoencoder_output": autoencoder_output}
    execute(ExportReleaseConfig, plan_export, export_release, None, [options], dry_run)


Anew = Annotated[
    str | None,
    typer.Option("--from", metavar="STEP", help="Do this step and all after it anew; what is there is moved aside."),
]
Only = Annotated[str | None, typer.Option("--only", metavar="STEP", help="Do this step alone.")]
Status = Annotated[bool, typer.Option("--status", help="Print how far it is, also while it runs; touch nothing.")]


@app.command()
def run(
    experiment: Annotated[
        str,
        typer.Argument(metavar="FILE", help="YAML file of steps, or a name below configs/ such as demo/digits.yaml."),
    ],
    overrides: Overrides = None,
    anew: Anew = None,
    only: Only = None,
    status: Status = False,
    dry_run: DryRun = False,
) -> None:
    """Do the steps of an experiment's file that are not done yet: tokenizer, precompute, generators, evaluation.

    A finished step whose settings and inputs are the same is passed over; stopped half-way and started again, it goes
    on where it was. What has changed is named, and nothing is overwritten.

    Examples: [bold]nvg run demo/digits.yaml folder=runs/mine[/bold] · [bold]nvg run mine.yaml --dry-run[/bold] ·
    [bold]nvg run mine.yaml --from generators[/bold] · [bold]nvg run mine.yaml --status[/bold]
    """
    _run_experiment(experiment, overrides or [], None, anew, only, status, dry_run)


@app.command()
def demo(
    config: ConfigFile = None,
    overrides: Overrides = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FOLDER", help="Your own images: one folder per class.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", metavar="32|64", help="Side of your images in pixels; 32 by default.")
    ] = None,
    anew: Anew = None,
    only: Only = None,
    status: Status = False,
    dry_run: DryRun = False,
) -> None:
    """The whole chain on digits (or your images): train, sample, score, report. It is `nvg run demo/digits.yaml`.

    Stopped half-way and started again, it goes on where it was. For images of your own, colour, views, codebook and
    lengths are chosen to fit them; all of it and the minutes are told first, and what you set wins.

    Examples: [bold]nvg demo[/bold] · [bold]nvg demo --data ~/pictures --size 64[/bold] · [bold]nvg demo
    --dry-run[/bold]
    """
    _run_experiment(config, [*(overrides or []), _given(data=data)], size, anew, only, status, dry_run)


def _run_experiment(
    file: str | None,
    settings: Sequence[Setting],
    size: int | None,
    anew: str | None,
    only: str | None,
    status: bool,
    dry_run: bool,
) -> None:
    from pipelines.experiment.own_images import choose
    from pipelines.experiment.run import plan_experiment, run_experiment
    from pipelines.experiment.status import read_status
    from pipelines.experiment.steps import ExperimentConfig

    choice = choose(file, settings, size)

    def plan(config: ExperimentConfig) -> list[str]:
        return [*choice.describe(config), *plan_experiment(config, anew=anew, only=only)]

    def run(config: ExperimentConfig) -> Path | None:
        if status:
            typer.echo("\n".join(read_status(Path(config.folder).expanduser().absolute())))
            return None
        for line in choice.describe(config):
            typer.echo(line)
        return run_experiment(config, anew=anew, only=only)

    execute(ExperimentConfig, plan, run, choice.file, choice.settings, dry_run, quiet=True)


@app.command()
def plan(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE... [KEY=VALUE...]", help="An experiment, or files of its steps, planned together."
        ),
    ],
    device: Annotated[str, typer.Option("--device", metavar="KEY", help="A row of configs/devices.yaml.")] = "h100",
    devices: Annotated[int, typer.Option("--devices", metavar="N", help="How many of them.")] = 8,
    device_file: Annotated[
        str | None, typer.Option("--device-file", metavar="FILE", help="Devices of your own, in the same form.")
    ] = None,
    images: Annotated[
        int | None, typer.Option("--images", metavar="N", help="Training images, where they are not here yet.")
    ] = None,
    price: Annotated[float | None, typer.Option("--price", metavar="P", help="Of one device for an hour.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also DeepSpeed's own estimates of memory.")] = False,
    header: Annotated[bool, typer.Option("--header", help="Print what a preset's header says of its work.")] = False,
) -> None:
    """What an experiment takes before you pay for it: memory, micro batch, hours, communication, storage.

    Each step is planned on all devices. Speeds are measured ones where the table of devices has them, else predicted;
    each line says which. The formulas are in docs/scaling.md.

    Examples: [bold]nvg plan content/d16.yaml --device h100 --devices 64[/bold] · [bold]nvg plan tokenizer/f16.yaml
    precompute/imagenet.yaml content/d16.yaml structure/d16.yaml --images 1281167 --price 2.5[/bold] · [bold]nvg plan
    demo/digits.yaml --devices 1 --json[/bold]
    """
    import json

    from nvg.bounds import refuse
    from pipelines.experiment import forecast_page
    from pipelines.experiment.forecast import forecast, load_steps
    from pipelines.train.devices import find_device

    if price is not None and price <= 0:
        raise refuse("--price", price, "above 0, of one device for an hour")
    if images is not None and images < 1:
        raise refuse("--images", images, "1 or more")
    steps = load_steps([text for text in files if "=" not in text], [text for text in files if "=" in text])
    row = find_device(device, device_file)
    if header:
        typer.echo("\n".join(line for lines in forecast_page.headers(steps, images).values() for line in lines))
        return
    planned = forecast(steps, row, devices, images)
    if as_json:
        typer.echo(json.dumps(forecast_page.as_json(planned, row, devices, price), indent=1))
        return
    forecast_page.show(planned, row, devices, price)
    if verbose:
        typer.echo("\n".join(["", *forecast_page.estimators(planned, row)]))


@app.command()
def precompute(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Turn images into records: encode, cluster, write an MDS data set, on Ray actors.

    Finished units are kept; the same command finishes a run that was stopped.

    Example: [bold]nvg precompute source.kind=folder source.path=/data/train tokenizer=runs/tok
    output=data/vgs[/bold]
    """
    from pipelines.precompute.config import PrecomputeConfig
    from pipelines.precompute.job import plan_precompute
    from pipelines.precompute.job import precompute as run

    execute(PrecomputeConfig, plan_precompute, run, config, overrides, dry_run)


@app.command()
def sample(
    config: ConfigFile = None,
    overrides: Overrides = None,
    sampling: SamplingPreset = None,
    structure_from: Annotated[
        str | None,
        typer.Option("--structure-from", metavar="IMAGE", help="Give this image's maps (or a .npy finest map)."),
    ] = None,
    structure_mask: Annotated[
        str | None,
        typer.Option("--structure-mask", metavar="MASK.png", help="Give a drawn mask, white on black, as first split."),
    ] = None,
    fix_content_from: Annotated[
        str | None,
        typer.Option("--fix-content-from", metavar="IMAGE", help="Give this image's first contents, and their maps."),
    ] = None,
    structure_labels: Annotated[
        str | None,
        typer.Option("--structure-labels", metavar="LABELS.png", help="Give a segmentation, values are labels."),
    ] = None,
    stagewise_from: Annotated[
        str | None,
        typer.Option("--stagewise-from", metavar="IMAGE", help="Draw the figure of stage-wise control: i..K, every i."),
    ] = None,
    edit_from: Annotated[
        str | None, typer.Option("--from", metavar="IMAGE", help="Keep a region of this image, which --keep says.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option("--keep", metavar="MASK", help="What is kept of --from: white (PNG or .npy); black is generated."),
    ] = None,
    stages: Annotated[
        int | None, typer.Option("--stages", metavar="M", help="How many splits, or stages of contents, are given.")
    ] = None,
    mask_foreground: Annotated[
        int | None,
        typer.Option("--mask-foreground", metavar="0|1", help="Child that the mask's foreground becomes; usually 1."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Draw images of chosen classes and write them as a grid and as files.

    They follow an image's structure, a drawn mask, a segmentation or an image's first contents where one is given; how
    well they do is measured, printed and written beside the pictures. With --from and --keep a region of an image stays
    and the rest is drawn. Without --config and --sampling the settings are
    those the run was scored with; imported weights are sampled as by --sampling release.

    Example: [bold]nvg sample run=runs/demo classes='[3, 7]' num_per_class=8 --sampling release
    sampling.content_guidance=2[/bold] · [bold]nvg sample run=runs/demo classes='[8]' --structure-mask circle.png[/bold]
    · [bold]nvg sample run=runs/demo classes='[8]' --from digit.png --keep left.png[/bold]
    """
    from pipelines.configuration import load_config
    from pipelines.sample import SampleConfig, plan_sample, run_sampling, sample_images

    control = _given(
        structure_from=structure_from,
        structure_mask=structure_mask,
        structure_labels=structure_labels,
        fix_content_from=fix_content_from,
        stagewise_from=stagewise_from,
        edit_from=edit_from,
        keep=keep,
        stages=stages,
        mask_foreground=mask_foreground,
    )
    settings = [{"control": control}, *(overrides or [])]
    if config is None and sampling is None:
        run = load_config(SampleConfig, None, settings).run
        settings, sampling = [run_sampling(run), *settings], sampling_for(run)
    execute(SampleConfig, plan_sample, sample_images, config, settings, dry_run, sampling=sampling)


@app.command()
def gallery(
    config: ConfigFile = None, overrides: Overrides = None, sampling: SamplingPreset = None, dry_run: DryRun = False
) -> None:
    """The paper's figures from your own model on one page: stages, drawn masks, pictures followed, stage-wise control.

    A word without "=" is the run's folder. Settings of sampling as in `nvg sample`.

    Example: [bold]nvg gallery runs/demo[/bold] · [bold]nvg gallery runs/demo masks='[heart.png]'
    pictures='[me.jpg]'[/bold]
    """
    from pipelines.configuration import load_config
    from pipelines.gallery import GalleryConfig, draw_gallery, plan_gallery
    from pipelines.sample import run_sampling

    settings = [text if "=" in text else {"run": text} for text in overrides or []]
    if config is None and sampling is None:
        run = load_config(GalleryConfig, None, settings).run
        settings, sampling = [run_sampling(run), *settings], sampling_for(run)
    execute(GalleryConfig, plan_gallery, draw_gallery, config, settings, dry_run, sampling=sampling)


@app.command("app")
def serve_page(
    config: ConfigFile = None,
    overrides: Overrides = None,
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets other machines in. 127.0.0.1."),
    ] = None,
    port: Annotated[int | None, typer.Option("--port", help="Which port; the first free one from 7860 on.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser of this machine.")] = False,
    dry_run: DryRun = False,
) -> None:
    """A page to draw a layout on, which the model paints stage by stage.

    It needs Gradio: `make demo` has installed it, else `pip install "nvg[app]"`. A word without "=" is the folder of a
    run or of an exported model, or owner/name on the hub. The page is for this machine alone unless --host says more.

    Examples: [bold]nvg app runs/demo --open[/bold] · [bold]nvg app runs/demo --host 0.0.0.0 max_upload_mb=2[/bold]
    """
    from pipelines.app import enter_own_environment

    if not dry_run:
        enter_own_environment()
    from pipelines.app.page import plan_app, run_app
    from pipelines.app.settings import AppConfig

    settings = [text if "=" in text else {"run": text} for text in overrides or []]
    options = _given(host=host, port=port, open=open_page or None)
    execute(AppConfig, plan_app, run_app, config, [*settings, options], dry_run)


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

    def plan(study: AblateConfig) -> list[str]:
        return describe_plan(study, make_plan(study))

    execute(AblateConfig, plan, run_ablate, config or f"ablate/{preset}.yaml", overrides, dry_run)


@app.command("inspect")
def inspect(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Draw one image, its structure map and its reconstruction at every stage; or stored records, decoded.

    A word without "=" is a record data set: its records are drawn.

    Examples: [bold]nvg inspect tokenizer=runs/demo/tokenizer index=12 output=digit.png[/bold] · [bold]nvg inspect
    runs/demo/records count=4 output=records.png[/bold]
    """
    from pipelines.inspect import InspectConfig, inspect, plan_inspect

    settings = [text if "=" in text else {"records": text} for text in overrides or []]
    execute(InspectConfig, plan_inspect, inspect, config, settings, dry_run)


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
        list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="Environment variable; repeatable.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Run any nvg command as a Ray job, follow its log and return its exit code.

    Without --working-dir the job runs in the current folder (same machine or shared file system).

    Example: [bold]nvg submit -- nvg precompute --config runs/demo/configs/precompute.yaml[/bold]
    """
    from cluster.submit import JobConfig, job_entrypoint
    from cluster.submit import submit as run
    from nvg.bounds import refuse

    def plan(job: JobConfig) -> list[str]:
        where = job.address or "a cluster started here"
        return [f"send to {where}: {job_entrypoint(command, folder=None)}", "follow its log"]

    for text in env or []:
        if "=" not in text:
            raise refuse("--env", text, "NAME=VALUE")
    options = _given(address=address, working_dir=working_dir, submission_id=submission_id)
    options["env_vars"] = dict(text.split("=", 1) for text in env or [])
    execute(JobConfig, plan, lambda job: run(command, job), config, [options], dry_run)


@app.command()
def doctor() -> None:
    """Show versions, compiler, devices, /dev/shm, disk, cores and memory; exit 1 when something is missing.

    Example: [bold]nvg doctor[/bold]
    """
    from pipelines.doctor import run_doctor

    raise typer.Exit(run_doctor())


def _given(**options: Any) -> dict[str, Any]:
    """Those of a command's options that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


def main() -> None:
    """Entry point of the console script."""
    sys.exit(guard(partial(app, prog_name="nvg")))  # completion asks by this name


if __name__ == "__main__":
    main()
