"""The one training loop: tokenizer and both generators, one process or many ranks, whoever started them.

A step draws the noise of the whole global batch from (seed, step) on the CPU and takes this rank's rows,
as the data does; so the same images meet the same noise for any number of ranks. The position in the data
is the number of images seen. Everything else a step depends on (weights, optimizer, moving average) is in
the checkpoint, hence a resumed run equals the straight one bit for bit at the same number of ranks on a CPU.

Loss of held-out images with fixed noise: the same images and noise at every call.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from cluster.ranks import Ranks, round_to_tf32
from nvg.errors import NotFiniteError
from nvg.training import Ema
from pipelines.batches.order import Batch, BatchSource
from pipelines.run_folder import run_lock
from pipelines.train.config import TrainingConfig
from pipelines.train.costs import Speed
from pipelines.train.engine import TrainingEngine, advice_on_memory
from pipelines.train.interrupt import (
    STOP_FILE,
    StopRequest,
    TrainingStopped,
    Watchdog,
    on_stop_signals,
    stopped_text,
    watchdog,
)
from pipelines.train.report import DATA, TrainingClock, open_report
from pipelines.train.saving import NoSpaceError, find_resumable, load_checkpoint, save_checkpoint
from pipelines.train.state import TrainerState, flatten
from pipelines.train.step import Feed, LossWindow, NonFiniteLossError, Players, not_finite
from pipelines.train.task import TrainingTask

FIRST_STEP = 1 << 30  # noise of held-out batches is never that of a training step
logger = logging.getLogger(__name__)
CHECKPOINTS_FOLDER = "checkpoints"


@torch.no_grad()
def held_out_loss(engine: TrainingEngine, feed: Feed, source: BatchSource, max_images: int) -> float:
    """Mean loss over whole global batches, all ranks together (all ranks call, in evaluation mode).

    Args:
        engine: of the trained objective.
        feed: cuts the batches.
        source: held-out images.
        max_images: used of them, at least one global batch.
    """
    wanted = min(max_images, source.num_images)
    stream = source.batches(start_step=0, global_batch=feed.global_batch, seed=0, ranks=feed.ranks)
    losses: list[Tensor] = []
    for index in range(max(1, wanted // feed.global_batch)):
        for batch, noise in feed.micro_batches(next(stream), seed=0, step=FIRST_STEP + index):
            losses.append(engine.forward(batch, noise)[0])
    return float(feed.ranks.mean(torch.stack(losses).double().mean()))


def train(task: TrainingTask, config: TrainingConfig, run_folder: Path) -> Path:
    """Train to the end, or go on where an earlier call stopped.

    Args:
        task: objective and data, built alike on every rank.
        config: optimizer, loop and engine.
        run_folder: outputs; shared by all ranks.

    Returns:
        The newest checkpoint's folder.

    Raises:
        NonFiniteLossError: the loss of a step is not finite; the last checkpoint is untouched.
        TrainingStopped: a signal or the file ``stop`` asked for the end; the newest checkpoint is of that step.
        UserError: the run cannot go on with this configuration, these data or this disk.
    """
    ranks = Ranks.read()
    if config.loop.threads_per_rank is not None:
        torch.set_num_threads(config.loop.threads_per_rank)
    round_to_tf32(config.loop.precision == "tf32")
    if ranks.world_size > 1 or config.loop.engine == "deepspeed":
        ranks.join()
    stop = StopRequest(run_folder / STOP_FILE, ranks)
    with ExitStack() as stack:
        stack.enter_context(run_lock(run_folder, ranks))
        stack.enter_context(on_stop_signals(stop.signalled))
        dog = stack.enter_context(watchdog(run_folder, ranks.rank, config.loop.hang_timeout_s))
        stack.enter_context(advice_on_memory(task.name))
        return _Session(task, config, run_folder, ranks).run(stop, dog)


class _Session:
    """State of one call of :func:`train`."""

    def __init__(self, task: TrainingTask, config: TrainingConfig, run_folder: Path, ranks: Ranks) -> None:
        self.task, self.config, self.ranks = task, config, ranks
        self.run_folder = run_folder
        self.batch_size = config.optimizer.global_batch
        self.feed = Feed(
            task.objective,
            global_batch=self.batch_size,
            num_micro=config.optimizer.accumulation_steps(ranks.world_size),
            ranks=ranks,
        )
        task.objective.to(ranks.device)
        # Made before ZeRO-3 can partition the parameters; only the main rank's is updated and saved.
        self.ema = Ema(task.objective.network, half_life_images=config.optimizer.ema_half_life_images)
        self.step = 0
        self.accepted: list[str] = []
        self.failed_checkpoints = 0
        self.speed = Speed(task, ranks)
        self.found = find_resumable(
            run_folder / CHECKPOINTS_FOLDER,
            expected=self._trainer_state(),
            accept_changed=config.loop.accept_changed,
            ranks=ranks,
        )
        universal = self.found is not None and self.found.converted is not None
        self.players = Players(task, config, ranks, universal=universal)
        self.window = LossWindow(task.name, ranks)

    def run(self, stop: StopRequest, dog: Watchdog) -> Path:
        """Resume, train, save; returns the newest checkpoint."""
        newest = self._resume()
        num_steps = self.config.optimizer.num_steps
        last_step = min(num_steps, self.config.loop.stop_after_steps or num_steps)
        if newest is None or self.step < last_step:
            newest = self._run_to(last_step, stop, dog)
        stop.done()
        if self.step < last_step:
            raise TrainingStopped(stopped_text(self.task.name, self.step, num_steps, newest))
        return newest

    def _run_to(self, last_step: int, stop: StopRequest, dog: Watchdog) -> Path:
        loop = self.config.loop
        self.players.set_training(True)
        with open_report(
            self.run_folder, self.task.name, self.config, self.task.settings(self.config), self.step, self.ranks
        ) as self.report:
            stream = self.task.batches.batches(
                start_step=self.step, global_batch=self.batch_size, seed=loop.seed, ranks=self.ranks
            )
            self.clock = TrainingClock(self.ranks.device)
            stopping = False
            newest = None
            while self.step < last_step and not stopping:
                dog.alive()
                step = self.step + 1
                at_validation = loop.validate_every_steps is not None and step % loop.validate_every_steps == 0
                at_log = step == last_step or at_validation or step % loop.log_every_steps == 0
                with self.clock.span(DATA):
                    batch = next(stream)
                grad_norm, lr = self._train_step(batch, want_grad_norm=at_log)
                stopping = stop.asked()
                if at_log or stopping:
                    self._log(grad_norm, lr, self._validate() if at_validation else {})
                else:
                    self.report.advance(step)
                self._draw_samples()
                dog.alive()
                ending = step == last_step or stopping
                if ending or step % loop.checkpoint_every_steps == 0:
                    newest = self._save(needed=ending)
        assert newest is not None  # the last one was needed
        return newest

    def _train_step(self, batch: Batch, *, want_grad_norm: bool) -> tuple[float | None, float]:
        lr = self.players.set_learning_rate(self.step * self.batch_size)
        parts: dict[str, list[Tensor]] = {}
        grad_norm = None

        def check(player: str, loss: Tensor) -> None:
            self.window.check(player, self.step + 1, batch.sample_ids, loss)

        feed = self.feed.micro_batches(batch, seed=self.config.loop.seed, step=self.step)
        for index, (micro_batch, micro_noise) in enumerate(feed):
            last = index == self.feed.num_micro - 1
            try:
                loss, metrics, grad_norm = self.players.turn(
                    micro_batch, micro_noise, last=last, want_grad_norm=want_grad_norm, check=check
                )
            except NotFiniteError as error:
                raise not_finite(self.task.name, batch.sample_ids, f"step {self.step + 1}: {error}") from error
            for name, value in {**metrics, "loss": loss}.items():
                parts.setdefault(name, []).append(value)
        self.step += 1
        means = {name: torch.stack(values).mean() for name, values in parts.items()}
        self.window.add(self.step, batch.sample_ids, means.pop("loss"), means)
        self._after_update()
        return grad_norm, lr

    def _after_update(self) -> None:
        if self.task.after_update is not None:
            self.task.after_update(self.players.main.engine, self.step - 1)
        if self.players.main.num_skipped == 0:
            # Under ZeRO-3 gathering is a collective: every rank takes part, the main rank alone averages.
            with self.players.main.engine.whole_parameters():
                if self.ranks.is_main:
                    self.ema.update(self.task.objective.network, num_images=self.batch_size)
        num_skipped = self.players.num_skipped
        if num_skipped > self.config.loop.max_skipped_steps:
            raise NonFiniteLossError(
                f"{self.task.name}: {num_skipped} optimizer steps in a row were skipped because "
                f"gradients were not finite, up to step {self.step}, sample ids "
                f"{self.window.last_sample_ids}"
            )

    # Numbers
    def _log(self, grad_norm: float | None, lr: float, extra: dict[str, float]) -> None:
        """Average the window's losses over steps and ranks."""
        means, num_steps = self.window.close()
        if self.task.window_numbers is not None:
            extra = {**self.task.window_numbers(), **extra}
        times = self.clock.close(num_steps)
        if self.ranks.is_main:
            self.report.row(
                {
                    "step": self.step,
                    "images": self.step * self.batch_size,
                    **means,
                    **extra,
                    "lr": lr,
                    "grad_norm": grad_norm,
                    "skipped_steps": self.players.total_skipped,
                    "failed_checkpoints": self.failed_checkpoints,
                    **self.speed.numbers(self.batch_size / times["step_s"]),
                    **times,
                    "time": time.time(),
                }
            )

    def _draw_samples(self) -> None:
        samples = self.task.samples
        if samples is None or self.step % samples.every_steps:
            return
        if not self.ranks.is_main:  # the others wait for it in the next step
            return
        with self.clock.span("samples"):
            # Parameters are the average's; buffers are whole on every rank, under ZeRO-3 too.
            png = samples.draw(self.ema.weights(self.task.objective.network), self.ranks.device)
            if png is not None:
                self.report.picture("samples", png, self.step)

    def _validate(self) -> dict[str, float]:
        if self.task.validation is None:
            return {}
        with self.clock.span("validation"):
            self.players.set_training(False)
            loss = held_out_loss(
                self.players.main.engine, self.feed, self.task.validation, self.config.loop.max_validation_images
            )
            self.players.set_training(True)
        return {"validation_loss": loss}

    # Checkpoints
    def _trainer_state(self) -> TrainerState:
        images = self.step * self.batch_size
        epoch, images_in_epoch = divmod(images, self.task.batches.num_images)
        return TrainerState(
            step=self.step,
            images=images,
            epoch=epoch,
            images_in_epoch=images_in_epoch,
            ema_images=self.ema.images_seen,
            world_size=self.ranks.world_size,
            engine=self.config.engine_name,
            seeds={"training": self.config.loop.seed},
            config=self.task.settings(self.config),
            data=flatten(self.task.batches.fingerprint),
            accepted=self.accepted,
        )

    def _save(self, *, needed: bool) -> Path | None:
        """The checkpoint of this step; None where the disk is full and it is not `needed` yet: the next may fit."""
        self.window.require_finite()
        try:
            with self.clock.span("checkpoint"):
                return save_checkpoint(
                    self.run_folder / CHECKPOINTS_FOLDER,
                    state=self._trainer_state(),
                    task=self.task,
                    ema=self.ema,
                    engines=self.players.engines,
                    ranks=self.ranks,
                    loop=self.config.loop,
                )
        except NoSpaceError as error:
            if needed:
                raise
            self.failed_checkpoints += 1
            logger.warning("%s", error)
            return None

    def _resume(self) -> Path | None:
        if self.found is None:
            return None
        load_checkpoint(
            self.found,
            kind=self.task.kind,
            ema=self.ema,
            engines=self.players.engines,
            ranks=self.ranks,
        )
        self.step, self.accepted = self.found.state.step, self.found.state.accepted
        return self.found.folder
