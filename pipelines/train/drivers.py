"""One training in a process of its own: started with its config file, ended with its starter, its failure in words.

Both generators at the same time: two driver processes on one Ray cluster.

Each driver is ``python -m pipelines.train.generator`` with its own placement group, run name, port and
log file; this process starts or joins the cluster, watches both and shows their progress side by side.

Trainings one after the other, a few at a time, each in a process of its own; finished ones are passed over.
"""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import Popen
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.process import stop_process
from cluster.session import SessionConfig, cluster_session
from eval.pages.page import time_text
from nvg.errors import UserError
from pipelines.checkpoints import checkpoint_name, find_damage, resolve_checkpoint
from pipelines.configuration import dump_config
from pipelines.run_folder import read_metrics
from pipelines.train.config import LaunchConfig
from pipelines.train.generator import GeneratorRunConfig
from pipelines.train.interrupt import EXIT_STOPPED, TrainingStopped, on_stop_signals
from pipelines.train.launch import CODE_ROOT, worker_resources
from pipelines.train.loop import CHECKPOINTS_FOLDER
from pipelines.train.tokenizer import TokenizerRunConfig

LOG_FILE = "driver.log"
DRIVER_CONFIG_FILE = "driver.yaml"
STOP_TIMEOUT_S = 120.0  # enough for a checkpoint
NUM_LOG_LINES = 20
POLL_S = 0.5
LINE_EVERY_POLLS = 40
LINE_EVERY_S = 30.0

Training = GeneratorRunConfig | TokenizerRunConfig


def process_environment(**variables: str) -> dict[str, str]:
    """This process's environment, in which the project's packages can be imported.

    Args:
        variables: set besides.

    Returns:
        For `subprocess.Popen`.
    """
    environment = {**os.environ, **variables}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CODE_ROOT), os.environ.get("PYTHONPATH", "")]))
    return environment


@contextmanager
def training_process(
    module: str, config: object, run_folder: str, environment: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """One training in its own process, ended when the block is left (Ray then frees its workers).

    Args:
        module: with a command line that takes ``--config FILE``, such as "pipelines.train.generator".
        config: its configuration; written beside the log in the run folder.
        run_folder: the training's.
        environment: from :func:`process_environment`.
    """
    folder = Path(run_folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / DRIVER_CONFIG_FILE
    config_file.write_text(dump_config(config))
    command = [sys.executable, "-m", module, "--config", str(config_file)]
    with open(folder / LOG_FILE, "ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        stop_process(process, STOP_TIMEOUT_S)


def failure_text(what: str, run_folder: str, code: int) -> str:
    """The end of a failed training's log as a message.

    Args:
        what: is trained, such as "the content generator".
        run_folder: the training's.
        code: exit code of its process.

    Returns:
        The message; the caller adds what to do.
    """
    log = Path(run_folder).resolve() / LOG_FILE
    lines = log.read_text(errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    end = lines[starts[-1] :] if starts else lines[-NUM_LOG_LINES:]
    return f"training {what} failed (exit code {code}):\n  " + "\n  ".join(end) + f"\nits whole log is {log}"


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


def is_finished(run: Training) -> bool:
    """Whether a run folder holds the last checkpoint of exactly this training."""
    folder = Path(run.run_folder)
    config_file = folder / DRIVER_CONFIG_FILE
    last = folder / CHECKPOINTS_FOLDER / checkpoint_name(run.optimizer.num_steps)
    return config_file.is_file() and config_file.read_text() == dump_config(run) and find_damage(last) is None


def train_queue(runs: Mapping[str, Training], *, num_parallel: int, console: Console) -> None:
    """Train what is not finished; started again, a stopped training goes on from its newest checkpoint.

    Args:
        runs: name to training, in the order of work.
        num_parallel: trainings at the same time.
        console: where the bar is drawn; a line now and then where it is no terminal.

    Raises:
        UserError: one failed; the message holds the end of its log. The others are stopped and go on later.
    """
    waiting = [name for name, run in runs.items() if not is_finished(run)]
    threads = max(run.loop.threads_per_rank or 1 for run in runs.values())
    environment = process_environment(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    running: dict[str, Popen[bytes]] = {}
    with ExitStack() as stack, _QueueProgress(runs, waiting, num_parallel, console) as progress:
        while waiting or running:
            while waiting and len(running) < num_parallel:
                name = waiting.pop(0)
                run = runs[name]
                running[name] = stack.enter_context(training_process(_module(run), run, run.run_folder, environment))
            time.sleep(POLL_S)
            for name, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[name]
                if code != 0:
                    raise UserError(
                        failure_text(name, runs[name].run_folder, code)
                        + "; start the same command again to go on once the cause is gone"
                    )
                progress.finished(name)
            progress.update(list(running))


def _module(run: Training) -> str:
    return "pipelines.train.generator" if isinstance(run, GeneratorRunConfig) else "pipelines.train.tokenizer"


def _kind(run: Training) -> str:
    return run.kind if isinstance(run, GeneratorRunConfig) else "tokenizer"


class _QueueProgress:
    """Steps of all trainings as one bar, and how long the rest takes at the speed of each kind."""

    def __init__(self, runs: Mapping[str, Training], waiting: list[str], num_parallel: int, console: Console) -> None:
        self.runs, self.num_parallel = runs, num_parallel
        self.steps = {name: 0 if name in waiting else run.optimizer.num_steps for name, run in runs.items()}
        self.step_s: dict[str, float] = {}
        for name in runs:
            self._read(name)
        self.bars = Progress(
            TextColumn("trainings"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
        )
        total = sum(run.optimizer.num_steps for run in runs.values())
        self.task = self.bars.add_task("trainings", total=total, completed=sum(self.steps.values()), status="")
        self.last_line = -LINE_EVERY_S

    def __enter__(self) -> "_QueueProgress":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def finished(self, name: str) -> None:
        """A training has ended well."""
        self._read(name)
        self.steps[name] = self.runs[name].optimizer.num_steps
        if self.bars.disable:
            self._say(f"{name} finished")

    def update(self, running: list[str]) -> None:
        """Read how far the running ones are and show it."""
        for name in running:
            self._read(name)
        status = f"{self._remaining()}  {', '.join(running)}"
        self.bars.update(self.task, completed=sum(self.steps.values()), status=status)
        if self.bars.disable and running and time.monotonic() - self.last_line > LINE_EVERY_S:
            self.last_line = time.monotonic()
            total = sum(run.optimizer.num_steps for run in self.runs.values())
            self._say(f"trainings: step {sum(self.steps.values())}/{total}, {status}")

    def _read(self, name: str) -> None:
        rows = read_metrics(Path(self.runs[name].run_folder))
        if rows:
            self.steps[name] = max(self.steps[name], int(rows[-1]["step"]))
            self.step_s[_kind(self.runs[name])] = float(rows[-1]["step_s"])

    def _remaining(self) -> str:
        left: dict[str, int] = {}
        for name, run in self.runs.items():
            left[_kind(run)] = left.get(_kind(run), 0) + run.optimizer.num_steps - self.steps[name]
        if any(kind not in self.step_s for kind, steps in left.items() if steps):
            return "time left not known yet"
        seconds = sum(steps * self.step_s[kind] for kind, steps in left.items() if steps) / self.num_parallel
        return f"about {time_text(seconds)} left"

    def _say(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
