"""Trainings one after the other, a few at a time, each in a process of its own; finished ones are passed over."""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from eval.pages.page import time_text
from nvg.errors import UserError
from pipelines.checkpoints import checkpoint_name, find_damage
from pipelines.configuration import dump_config
from pipelines.run_folder import read_metrics
from pipelines.train.drivers import DRIVER_CONFIG_FILE, failure_text, process_environment, training_process
from pipelines.train.generator import GeneratorRunConfig
from pipelines.train.loop import CHECKPOINTS_FOLDER
from pipelines.train.tokenizer import TokenizerRunConfig

POLL_S = 0.5
LINE_EVERY_S = 30.0

Training = GeneratorRunConfig | TokenizerRunConfig


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
