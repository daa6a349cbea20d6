"""The one training loop: when to step, log, validate, draw, save and stop.

It is the same for the tokenizer and both generators, for one process or many ranks, whoever started them. The position
in the data is the number of images seen; everything else a step depends on (weights, optimizer, moving average) is in
the checkpoint, hence a resumed run equals the straight one bit for bit at the same number of ranks on a CPU.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from cluster.process import keep_freed_memory
from cluster.ranks import Ranks
from nvg.precision import settle_precision
from pipelines.batches.order import BatchSource
from pipelines.entry import TrainingStopped
from pipelines.run_folder import CHECKPOINTS_FOLDER, run_lock, write_provenance
from pipelines.train.config import RunConfig
from pipelines.train.costs import Speed
from pipelines.train.engine import advice_on_devices
from pipelines.train.interrupt import STOP_FILE, StopRequest, Watchdog, on_stop_signals, stopped_text, watchdog
from pipelines.train.report import DATA, TrainingClock, averages, open_report
from pipelines.train.saving import NoSpaceError, find_resumable, load_checkpoint, save_checkpoint
from pipelines.train.state import TrainerState, flatten
from pipelines.train.step import Step, StepNumbers
from pipelines.train.task import TrainingTask

_FIRST_STEP = 1 << 30  # noise of held-out batches is never that of a training step
logger = logging.getLogger(__name__)


@torch.no_grad()
def _held_out_loss(step: Step, source: BatchSource, max_images: int) -> float:
    """Mean loss over whole global batches, the same images and noise at every call (all ranks, in evaluation mode).

    Args:
        step: its engine computes the losses.
        source: held-out images.
        max_images: used of them, at least one global batch.
    """
    wanted = min(max_images, source.num_images)
    stream = source.batches(start_step=0, global_batch=step.global_batch, seed=0, ranks=step.ranks)
    losses: list[Tensor] = []
    for index in range(max(1, wanted // step.global_batch)):
        given = step.feed.prepared(next(stream), seed=0, step=_FIRST_STEP + index)
        for batch, noise in step.feed.on_device(given):
            losses.append(step.main.engine.forward(batch, noise)[0])
    return float(step.ranks.mean(torch.stack(losses).double().mean()))


def train(task: TrainingTask, config: RunConfig, ranks: Ranks, *, left_over: int | None = None) -> Path:
    """Train to the end, or go on where an earlier call stopped.

    Args:
        task: objective and data, built alike on every rank.
        config: the run; its folder is shared by all ranks.
        ranks: this rank.
        left_over: see `StopRequest`.

    Returns:
        The newest checkpoint's folder.

    Raises:
        NotFiniteError: the loss of a step is not finite; the last checkpoint is untouched.
        TrainingStopped: a signal or the file `stop` asked for the end; the newest checkpoint is of that step.
        UserError: the run cannot go on with this configuration, these data or this disk.
    """
    config.check_ranks(ranks.world_size)
    run_folder = Path(config.run_folder).resolve()
    if config.loop.threads_per_rank is not None:
        torch.set_num_threads(config.loop.threads_per_rank)
    if torch.device(ranks.device).type == "cpu":
        keep_freed_memory()
    settle_precision(config.loop.precision, ranks.device, key="loop.precision")
    if ranks.world_size > 1 or config.loop.engine == "deepspeed":
        ranks.join()
    stop = StopRequest(run_folder / STOP_FILE, ranks, left_over=left_over)
    with ExitStack() as stack:
        stack.enter_context(run_lock(run_folder, ranks))
        stack.enter_context(on_stop_signals(stop.signalled))
        stack.enter_context(advice_on_devices(task.kind, run_folder / CHECKPOINTS_FOLDER))
        session = _Session(task, config, run_folder, ranks)
        # Its file only now: while a rank of a refused start waits here, another training may write to the folder.
        dog = stack.enter_context(watchdog(run_folder, ranks.rank, config.loop.hang_timeout_s))
        return session.run(stop, dog)


class _Session:
    """State of one call of `train`; made where the run folder may be gone on with."""

    def __init__(self, task: TrainingTask, config: RunConfig, run_folder: Path, ranks: Ranks) -> None:
        self.task, self.config, self.run_folder, self.ranks = task, config, run_folder, ranks
        self.checkpoints = run_folder / CHECKPOINTS_FOLDER
        self.accepted: list[str] = []
        self.init_from: dict[str, str] | None = task.init_from
        self.failed_checkpoints = 0
        self.found = find_resumable(
            self.checkpoints, expected=self._state(0, 0), accept_changed=config.loop.accept_changed, ranks=ranks
        )
        universal = self.found is not None and self.found.converted is not None
        self.step = Step(task, config, ranks, universal=universal)
        self.speed = Speed(task, ranks)
        self.window: list[dict[str, Tensor]] = []  # metrics of the steps since the last row

    def run(self, stop: StopRequest, dog: Watchdog) -> Path:
        """Resume, train, save; returns the newest checkpoint."""
        newest = self._resume()
        if self.ranks.is_main:  # the start is accepted: only now does the folder say that it is this run's
            write_provenance(self.run_folder, self.config, self.task.batches.fingerprint)
        stop.forget_left_over()
        if newest is None or self.step.done < self.config.last_step:
            newest = self._run_to(self.config.last_step, stop, dog)
        stop.done()
        if self.step.done < self.config.last_step:
            num_steps = self.config.optimizer.num_steps
            raise TrainingStopped(stopped_text(self.task.kind, self.step.done, num_steps, newest))
        return newest

    def _run_to(self, last_step: int, stop: StopRequest, dog: Watchdog) -> Path:
        loop, step = self.config.loop, self.step
        step.set_training(True)
        settings = self.task.settings(self.config)
        with (
            open_report(self.run_folder, self.task.kind, self.config, settings, step.done, self.ranks) as self.report,
            step.feed.made_ahead(
                self.task.batches, seed=loop.seed, first_step=step.done, last_step=last_step
            ) as inputs,
        ):
            self.clock = TrainingClock(self.ranks.device)
            stopping = False
            newest = None
            while step.done < last_step and not stopping:
                dog.alive()
                number = step.done + 1
                at_validation = loop.validate_every_steps is not None and number % loop.validate_every_steps == 0
                at_log = number == last_step or at_validation or number % loop.log_every_steps == 0
                with self.clock.span(DATA):
                    given = next(inputs)
                numbers = step(given, want_grad_norm=at_log)
                self.window.append(numbers.metrics)
                stopping = stop.asked()
                if at_log or stopping:
                    self._log(numbers, self._validate() if at_validation else {})
                else:
                    self.report.advance(number)
                if self.task.samples is not None and number % self.task.samples.every_steps == 0:
                    self._draw_samples()
                dog.alive()
                ending = number == last_step or stopping
                if ending or number % loop.checkpoint_every_steps == 0:
                    newest = self._save(needed=ending)
        assert newest is not None  # the last one was needed
        return newest

    def _log(self, numbers: StepNumbers, extra: dict[str, float]) -> None:
        """A row of metrics: the window's means over steps and ranks, and what else is known."""
        self.step.require_finite()
        num_steps = len(self.window)
        means, self.window = averages(self.window, self.ranks), []
        if self.task.window_numbers is not None:
            extra = {**self.task.window_numbers(), **extra}
        times = self.clock.close(num_steps)
        if self.ranks.is_main:
            self.report.row(
                {
                    "step": self.step.done,
                    "images": self.step.images,
                    **means,
                    **extra,
                    "lr": numbers.lr,
                    "grad_norm": numbers.grad_norm,
                    "skipped_steps": self.step.total_skipped,
                    "failed_checkpoints": self.failed_checkpoints,
                    **self.speed.numbers(self.step.global_batch / times["step_s"]),
                    **times,
                    "time": time.time(),
                }
            )

    def _draw_samples(self) -> None:
        if not self.ranks.is_main:  # the others wait for it in the next step
            return
        assert self.task.samples is not None
        with self.clock.span("samples"):
            # Parameters are the average's; buffers are whole on every rank, under ZeRO-3 too.
            png = self.task.samples.draw(self.step.ema.weights(self.task.objective.network), self.ranks.device)
            if png is not None:
                self.report.picture("samples", png, self.step.done)

    def _validate(self) -> dict[str, float]:
        if self.task.validation is None:
            return {}
        with self.clock.span("validation"):
            self.step.set_training(False)
            loss = _held_out_loss(self.step, self.task.validation, self.config.loop.max_validation_images)
            self.step.set_training(True)
        return {"validation_loss": loss}

    def _state(self, done: int, ema_images: int) -> TrainerState:
        images = done * self.config.optimizer.global_batch
        epoch, images_in_epoch = divmod(images, self.task.batches.num_images)
        return TrainerState(
            step=done,
            images=images,
            epoch=epoch,
            images_in_epoch=images_in_epoch,
            ema_images=ema_images,
            world_size=self.ranks.world_size,
            engine=self.config.engine_name,
            seeds={"training": self.config.loop.seed},
            config=self.task.settings(self.config),
            data=flatten(self.task.batches.fingerprint),
            accepted=self.accepted,
            init_from=self.init_from,
        )

    def _save(self, *, needed: bool) -> Path | None:
        """The checkpoint of this step; None where the disk is full and it is not `needed` yet: the next may fit."""
        self.step.require_finite()
        try:
            with self.clock.span("checkpoint"):
                state = self._state(self.step.done, self.step.ema.images_seen)
                return save_checkpoint(self.checkpoints, state, self.step)
        except NoSpaceError as error:
            if needed:
                raise
            self.failed_checkpoints += 1
            logger.warning("%s", error)
            return None

    def _resume(self) -> Path | None:
        if self.found is None:
            return None
        load_checkpoint(self.found, self.step)
        state = self.found.state
        self.step.done, self.accepted, self.init_from = state.step, state.accepted, state.init_from
        return self.found.folder
