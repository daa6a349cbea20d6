"""Both generators at the same time: two driver processes on one Ray cluster.

Each driver is ``python -m pipelines.train.generator`` with its own placement group, run name, port and
log file; this process starts or joins the cluster, watches both and shows their progress side by side.
"""

import math
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.session import SessionConfig, cluster_session
from nvg.errors import UserError
from pipelines.checkpoints import resolve_checkpoint
from pipelines.run_folder import read_metrics
from pipelines.train.config import LaunchConfig
from pipelines.train.drivers import failure_text, process_environment, training_process
from pipelines.train.generator import GeneratorRunConfig
from pipelines.train.interrupt import EXIT_STOPPED, TrainingStopped, on_stop_signals
from pipelines.train.plan import plan_costs
from pipelines.training_ray import worker_resources

POLL_S = 0.5
LINE_EVERY_POLLS = 40


def _ray_run(kind: str) -> GeneratorRunConfig:
    return GeneratorRunConfig(kind=kind, run_folder=f"runs/{kind}", launch=LaunchConfig(launcher="ray"))


@dataclass(frozen=True, kw_only=True)
class PairRunConfig:
    """Two generator trainings at once.

    Attributes:
        content, structure: the two runs, each with its own run folder.
        cluster: Ray cluster to start or join; a started one has at least the CPUs that both ask for.
    """

    content: GeneratorRunConfig = field(default_factory=lambda: _ray_run("content"))
    structure: GeneratorRunConfig = field(default_factory=lambda: _ray_run("structure"))
    cluster: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        kinds = (self.content.kind, self.structure.kind)
        if kinds != ("content", "structure"):
            raise ValueError(f"content.kind, structure.kind are {kinds}; they must be content and structure")
        if Path(self.content.run_folder).resolve() == Path(self.structure.run_folder).resolve():
            raise ValueError(
                f"content.run_folder and structure.run_folder are both {self.content.run_folder}; give each its own"
            )

    @property
    def runs(self) -> tuple[GeneratorRunConfig, GeneratorRunConfig]:
        """Content, structure."""
        return self.content, self.structure


def plan_generators(config: PairRunConfig) -> list[str]:
    """Steps of both trainings, for ``--dry-run``.

    Args:
        config: the pair.

    Returns:
        One line per step.
    """
    lines = [f"use the Ray cluster {config.cluster.address!r} for two driver processes"]
    for run in config.runs:
        lines.append(
            f"train the {run.kind} generator on {run.data.path} for {run.optimizer.num_steps} steps of "
            f"{run.optimizer.global_batch} images with {run.launch.num_workers} worker(s) in {run.run_folder}"
        )
        lines += [f"  {line}" for line in plan_costs(run, run.launch.num_workers)]
    return lines


def train_generators(config: PairRunConfig) -> tuple[Path, Path]:
    """Train both; start again with the same folders to go on where they stopped.

    Args:
        config: the pair.

    Returns:
        Newest checkpoint folders of content and structure.

    Raises:
        UserError: one of them failed; the message holds the end of its log. The other is stopped and
            resumes later.
        TrainingStopped: a signal, or the file ``stop`` in a run folder, asked for the end.

    DEVIATION: the two generators share no weight and train as two jobs, each clipped apart; the release clips their
    joint norm.
    """
    with ExitStack() as stack:
        address: dict[str, str] = {}
        if any(run.launch.launcher == "ray" for run in config.runs):
            session = stack.enter_context(cluster_session(_sized(config)))
            address = {"RAY_ADDRESS": session.address}
        environment = process_environment(**address)
        drivers = {
            run.kind: stack.enter_context(
                training_process("pipelines.train.generator", run, run.run_folder, environment)
            )
            for run in config.runs
        }
        stack.enter_context(on_stop_signals(lambda *_: [driver.terminate() for driver in drivers.values()]))
        _watch(config, drivers)
    content, structure = (resolve_checkpoint(run.run_folder) for run in config.runs)
    return content, structure


def _sized(config: PairRunConfig) -> SessionConfig:
    """The session, with enough logical CPUs for both trainings at once when it is started here."""
    if config.cluster.num_cpus is not None:
        return config.cluster
    launches = [run.launch for run in config.runs if run.launch.launcher == "ray"]
    needed = sum(launch.num_workers * launch.cpus_per_worker for launch in launches)
    return replace(config.cluster, num_cpus=max(math.ceil(needed), os.cpu_count() or 1))


def _watch(config: PairRunConfig, drivers: dict[str, "subprocess.Popen[bytes]"]) -> None:
    """Follow both until both have ended well.

    Raises:
        UserError: one has failed.
        TrainingStopped: one was asked to end early; the other has ended too.
    """
    stopped: list[str] = []
    with _PairProgress(config) as progress:
        running = dict(drivers)
        while running:
            for kind, process in list(running.items()):
                try:
                    code = process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    continue
                del running[kind]
                if code in (EXIT_STOPPED, -signal.SIGTERM):
                    stopped.append(kind)
                elif code != 0:
                    run = config.content if kind == "content" else config.structure
                    raise UserError(
                        failure_text(f"the {kind} generator", run.run_folder, code)
                        + "; the other training was stopped too. Start the same command again to go on from "
                        "the newest checkpoints"
                    )
            progress.update()
    if stopped:
        raise TrainingStopped(f"stopped as asked: {', '.join(stopped)}. Start the same command again to go on")


class _PairProgress:
    """Two bars, or a line now and then where there is no terminal; fed by the runs' metrics.jsonl."""

    def __init__(self, config: PairRunConfig) -> None:
        self.config = config
        console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks = {
            run.kind: self.bars.add_task(run.kind, total=run.optimizer.num_steps, status="starting")
            for run in config.runs
        }
        self.num_polls = 0

    def __enter__(self) -> "_PairProgress":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        self.bars.stop()

    def update(self) -> None:
        """Read how far both are and show it."""
        texts: list[str] = []
        for run in self.config.runs:
            rows = read_metrics(Path(run.run_folder))
            step, status = (rows[-1]["step"], _status(rows[-1])) if rows else (0, _waiting(run))
            self.bars.update(self.tasks[run.kind], completed=step, status=status)
            texts.append(f"{run.kind} {step}/{run.optimizer.num_steps} {status}")
        if self.bars.disable and texts and self.num_polls % LINE_EVERY_POLLS == 0:
            sys.stderr.write(" | ".join(texts) + "\n")
            sys.stderr.flush()
        self.num_polls += 1


def _waiting(run: GeneratorRunConfig) -> str:
    """Why a training has said nothing yet: the cluster's devices may still be the other's."""
    if run.launch.launcher != "ray":
        return "starting"
    import ray

    free = ray.available_resources()
    missing = [
        f"{amount * run.launch.num_workers:g} {name} ({free.get(name, 0.0):g} free)"
        for name, amount in worker_resources(run.launch).items()
        if amount * run.launch.num_workers > free.get(name, 0.0)
    ]
    return f"starting, or waiting for {', '.join(missing)}" if missing else "starting"


def _status(row: dict[str, Any]) -> str:
    return f"loss {row['loss']:.4f}  {row['images_per_s']:.0f} images/s"
