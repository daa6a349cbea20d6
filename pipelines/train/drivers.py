"""Trainings in processes of their own, a few at a time: started with their config files, ended with their starter.

The ablation's queue trains what is not finished yet, two or more at a time. Both generators at once are a queue of two
that train side by side on one Ray cluster: each is `python -m pipelines.train.generator` with its own placement group,
run name, port and log file. One supervisor starts, watches and ends them and shows how far they are.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.files import write_atomically
from cluster.process import stop_process
from cluster.progress import ProgressBars
from cluster.session import SessionConfig, cluster_session
from eval.pages.page import time_text
from nvg.checkpoints.runs import checkpoint_name, find_damage, resolve_checkpoint
from nvg.errors import UserError
from pipelines.configuration import dump_config, load_config
from pipelines.entry import EXIT_STOPPED, TrainingStopped
from pipelines.run_folder import CHECKPOINTS_FOLDER, CONFIG_FILE, read_metrics
from pipelines.train.config import LaunchConfig, RunConfig
from pipelines.train.generator import ContentRun, GeneratorRunConfig, StructureRun
from pipelines.train.interrupt import on_stop_signals
from pipelines.train.launch import python_path, worker_resources

_LOG_FILE = "driver.log"
DRIVER_CONFIG_FILE = "driver.yaml"
STOP_TIMEOUT_S = 120.0  # enough for a checkpoint
_NUM_LOG_LINES = 20
POLL_S = 0.5
_ALL = "trainings"


@dataclass(frozen=True, kw_only=True)
class PairRunConfig:
    """Two generator trainings at once.

    Attributes:
        content, structure: the two runs, each with its own run folder; no structure for records of spatial structure.
        cluster: Ray cluster to start or join; a started one has at least the CPUs that both ask for.
    """

    content: ContentRun = field(default_factory=lambda: ContentRun(launch=LaunchConfig(launcher="ray")))
    structure: StructureRun | None = field(default_factory=lambda: StructureRun(launch=LaunchConfig(launcher="ray")))
    cluster: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        if len({Path(run.run_folder).resolve() for run in self.runs}) < len(self.runs):
            raise UserError(
                f"content.run_folder and structure.run_folder are both {self.content.run_folder}; give each its own"
            )

    @property
    def runs(self) -> tuple[GeneratorRunConfig, ...]:
        """Content, and structure where there is one."""
        return (self.content,) if self.structure is None else (self.content, self.structure)


def train_generators(config: PairRunConfig) -> tuple[Path, ...]:
    """Train both; start again with the same folders to go on where they stopped.

    Returns:
        Newest checkpoint folders of content and structure.

    Raises:
        UserError: one of them failed; the message holds the end of its log. The other is stopped and
            resumes later.
        TrainingStopped: a signal, or the file `stop` in a run folder, asked for the end.

    DEVIATION: the two generators share no weight and train as two jobs, each clipped apart; the release clips their
    joint norm.
    """
    with ExitStack() as stack:
        address: dict[str, str] = {}
        if any(run.launch.launcher == "ray" for run in config.runs):
            session = stack.enter_context(cluster_session(_sized(config)))
            address = {"RAY_ADDRESS": session.address}
        runs = {f"{run.kind} generator": run for run in config.runs}
        _train_all(runs, num_parallel=2, console=Console(stderr=True), variables=address)
    return tuple(resolve_checkpoint(run.run_folder) for run in config.runs)


def _sized(config: PairRunConfig) -> SessionConfig:
    """The session, with enough logical CPUs for both trainings at once when it is started here."""
    if config.cluster.num_cpus is not None:
        return config.cluster
    launches = [run.launch for run in config.runs if run.launch.launcher == "ray"]
    needed = sum(launch.num_workers * launch.cpus_per_worker for launch in launches)
    return replace(config.cluster, num_cpus=max(math.ceil(needed), os.cpu_count() or 1))


def train_queue(runs: Mapping[str, RunConfig], *, num_parallel: int, console: Console) -> None:
    """Train what is not finished; started again, a stopped training goes on from its newest checkpoint.

    Args:
        runs: name to training, in the order of work.
        num_parallel: trainings at the same time.
        console: where the bars are drawn; lines where it is no terminal.

    Raises:
        UserError: one failed; the message holds the end of its log. The others are stopped and go on later.
        TrainingStopped: a signal, or the file `stop` in a run folder, asked for the end.
    """
    threads = str(max(run.loop.threads_per_rank or 1 for run in runs.values()))
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    _train_all(runs, num_parallel=num_parallel, console=console, variables=variables)


def _train_all(
    runs: Mapping[str, RunConfig], *, num_parallel: int, console: Console, variables: dict[str, str]
) -> None:
    """The supervisor of pair and queue; `variables` are set in the environment of every training."""
    waiting = [name for name, run in runs.items() if not is_finished(run)]
    running: dict[str, subprocess.Popen[bytes]] = {}
    stopped: list[str] = []
    signalled = threading.Event()
    environment = {**os.environ, **variables, "PYTHONPATH": python_path()}
    with ExitStack() as stack, _Display(runs, waiting, num_parallel, console) as display:
        stack.enter_context(on_stop_signals(lambda *_: signalled.set()))
        while waiting or running:
            while waiting and len(running) < num_parallel:
                name = waiting.pop(0)
                running[name] = stack.enter_context(training_process(runs[name], environment))
            if signalled.wait(POLL_S):
                signalled.clear()
                stopped += waiting
                waiting.clear()
                for process in running.values():
                    process.terminate()
            for name, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[name]
                if code in (EXIT_STOPPED, -signal.SIGTERM):
                    stopped.append(name)
                elif code != 0:
                    raise UserError(_failure_text(name, runs[name], code))
                else:
                    display.finished(name)
            display.update(list(running))
    if stopped:
        raise TrainingStopped(f"stopped as asked: {', '.join(stopped)}. Start the same command again to go on")


@contextmanager
def training_process(run: RunConfig, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """One training in its own process, ended when the block is left (Ray then frees its workers).

    Its configuration is written beside the log in the run folder.
    """
    folder = Path(run.run_folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / DRIVER_CONFIG_FILE
    write_atomically(config_file, dump_config(run).encode())
    module = "pipelines.train.generator" if isinstance(run, GeneratorRunConfig) else "pipelines.train.tokenizer"
    command = [sys.executable, "-m", module, "--config", str(config_file)]
    with open(folder / _LOG_FILE, "ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        stop_process(process, STOP_TIMEOUT_S)


def is_finished(run: RunConfig) -> bool:
    """Whether a run folder holds the last checkpoint of exactly this training.

    The configuration is that of the last start that was accepted, not the one that a refused start was given.
    """
    folder = Path(run.run_folder)
    config_file = folder / CONFIG_FILE
    last = folder / CHECKPOINTS_FOLDER / checkpoint_name(run.optimizer.num_steps)
    return config_file.is_file() and last.is_dir() and _is_of(config_file, run) and find_damage(last) is None


def _is_of(config_file: Path, run: RunConfig) -> bool:
    try:
        return load_config(type(run), config_file) == run
    except UserError:
        return False


def _failure_text(name: str, run: RunConfig, code: int) -> str:
    """What to say about a failed training: the end of its log, and what to do."""
    log = Path(run.run_folder).resolve() / _LOG_FILE
    lines = log.read_text(errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    end = lines[starts[-1] :] if starts else lines[-_NUM_LOG_LINES:]
    return (
        f"training {name} failed (exit code {code}):\n  " + "\n  ".join(end) + f"\nits whole log is {log}; the others "
        "were stopped too. Once the cause is gone, start the same command again to go on from the newest checkpoints"
    )


def last_row(run: RunConfig) -> dict[str, Any] | None:
    """The newest row of a training's metrics; its loss and speeds are numbers, also where the row has none."""
    rows = read_metrics(Path(run.run_folder))
    if not rows:
        return None
    unknown = {"step_s": 0.0, "loss": math.nan, "images_per_s": math.nan}  # where a row lacks one, or holds null
    return unknown | {name: value for name, value in rows[-1].items() if value is not None}


def row_text(row: dict[str, Any]) -> str:
    """What is said of such a row beside its step."""
    return f"loss {row['loss']:.4f}  {row['images_per_s']:.0f} images/s"


class _Display:
    """A bar for each training where all run at once, else one for all of them; fed by the runs' metrics.jsonl."""

    def __init__(self, runs: Mapping[str, RunConfig], waiting: list[str], num_parallel: int, console: Console) -> None:
        self.runs, self.num_parallel, self.console = runs, num_parallel, console
        totals = {name: run.optimizer.num_steps for name, run in runs.items()}
        self.steps = {name: 0 if name in waiting else total for name, total in totals.items()}
        self.status = dict.fromkeys(runs, "")
        self.step_s: dict[str, float] = {}
        for name in runs:
            self._read(name)
        self.apart = len(runs) <= num_parallel
        done = self.steps if self.apart else {_ALL: sum(self.steps.values())}
        self.bars = ProgressBars(
            totals if self.apart else {_ALL: sum(totals.values())}, completed=done, unit="steps", console=console
        )

    def __enter__(self) -> _Display:
        self.bars.__enter__()
        return self

    def __exit__(self, *given: object) -> None:
        self.bars.__exit__(*given)

    def update(self, running: Iterable[str]) -> None:
        """Read how far the running ones are and show it."""
        for name in running:
            self._read(name)
            if self.apart:
                self.bars.update(name, self.steps[name], self.status[name])
        if not self.apart:
            self.bars.update(_ALL, sum(self.steps.values()), f"{self._remaining()}  {', '.join(running)}")

    def finished(self, name: str) -> None:
        """A training has ended well."""
        self.update([name])
        self.steps[name] = self.runs[name].optimizer.num_steps
        if not self.console.is_terminal:
            sys.stderr.write(f"{name} finished\n")

    def _read(self, name: str) -> None:
        run = self.runs[name]
        if row := last_row(run):
            self.steps[name] = max(self.steps[name], int(row["step"]))
            self.step_s[_kind(run)] = row["step_s"]
            self.status[name] = row_text(row)
        else:
            self.status[name] = _waits_for(run.launch)

    def _remaining(self) -> str:
        left: dict[str, int] = {}
        for name, run in self.runs.items():
            left[_kind(run)] = left.get(_kind(run), 0) + run.optimizer.num_steps - self.steps[name]
        if any(kind not in self.step_s for kind, steps in left.items() if steps):
            return "time left not known yet"
        seconds = sum(steps * self.step_s[kind] for kind, steps in left.items() if steps) / self.num_parallel
        return f"about {time_text(seconds)} left"


def _waits_for(launch: LaunchConfig) -> str:
    """Why a training has said nothing yet: the cluster's devices may still be the other's."""
    if launch.launcher != "ray":
        return "starting"
    import ray

    free: dict[str, Any] = ray.available_resources() if ray.is_initialized() else {}
    missing = [
        f"{amount * launch.num_workers:g} {name} ({free.get(name, 0.0):g} free)"
        for name, amount in worker_resources(launch).items()
        if amount * launch.num_workers > free.get(name, 0.0)
    ]
    return f"starting, or waiting for {', '.join(missing)}" if missing and free else "starting"


def _kind(run: RunConfig) -> str:
    return run.kind if isinstance(run, GeneratorRunConfig) else "tokenizer"
