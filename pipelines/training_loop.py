"""The one training loop: tokenizer and both generators, one process or many ranks, whoever started them.

A step draws the noise of the whole global batch from (seed, step) on the CPU and takes this rank's rows,
as the data does; so the same images meet the same noise for any number of ranks. The position in the data
is the number of images seen. Everything else a step depends on (weights, optimizer, moving average) is in
the checkpoint, hence a resumed run equals the straight one bit for bit at the same number of ranks on a
CPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from nvg.training import Ema
from pipelines.resume_state import TrainerState, flatten
from pipelines.training_batches import Batch
from pipelines.training_env import (
    RankEnvironment,
    ensure_process_group,
    local_device,
    normalise_rank_environment,
)
from pipelines.training_metrics import SilentReport, TrainingReport
from pipelines.training_player import Players
from pipelines.training_state import resume_checkpoint, run_lock, save_checkpoint
from pipelines.training_task import TrainingConfig, TrainingTask
from pipelines.training_window import LossWindow, NonFiniteLossError

CHECKPOINTS_FOLDER = "checkpoints"
VALIDATION_STEP = 1 << 30  # noise of held-out batches is never that of a training step


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
        UserError: the run cannot go on with this configuration, these data or this disk.
    """
    place = normalise_rank_environment()
    if config.loop.threads_per_rank is not None:
        torch.set_num_threads(config.loop.threads_per_rank)
    device = local_device(place)
    if place.world_size > 1 or config.loop.engine == "deepspeed":
        ensure_process_group(place, device)
    with run_lock(run_folder, place):
        return _Session(task, config, run_folder, place, device).run()


class _Session:
    """State of one call of :func:`train`."""

    def __init__(
        self,
        task: TrainingTask,
        config: TrainingConfig,
        run_folder: Path,
        place: RankEnvironment,
        device: torch.device,
    ) -> None:
        self.task, self.config, self.place, self.device = task, config, place, device
        self.run_folder = run_folder
        self.batch_size = config.optimizer.global_batch
        self.num_micro = config.optimizer.accumulation_steps(place.world_size)
        task.objective.to(device)
        # Made before ZeRO-3 can partition the parameters; only the main rank's is updated and saved.
        self.ema = Ema(task.objective.network, half_life_images=config.optimizer.ema_half_life_images)
        self.players = Players(task, config, place, device)
        self.step = 0
        self.window = LossWindow(task.name, place)

    def run(self) -> Path:
        """Resume, train, save; returns the newest checkpoint."""
        loop, num_steps = self.config.loop, self.config.optimizer.num_steps
        newest = self._resume()
        last_step = min(num_steps, loop.stop_after_steps or num_steps)
        if newest is not None and self.step >= last_step:
            return newest
        self.players.set_training(True)
        with self._open_report() as self.report:
            stream = self.task.batches.batches(
                start_step=self.step, global_batch=self.batch_size, seed=loop.seed, place=self.place
            )
            self.window_started = time.perf_counter()
            while self.step < last_step:
                step = self.step + 1
                at_end = step == last_step
                at_validation = loop.validate_every_steps is not None and step % loop.validate_every_steps == 0
                at_log = at_end or at_validation or step % loop.log_every_steps == 0
                grad_norm, lr = self._train_step(next(stream), want_grad_norm=at_log)
                if at_log:
                    self._log(grad_norm, lr, self._validate() if at_validation else {})
                else:
                    self.report.advance(step)
                if at_end or step % loop.checkpoint_every_steps == 0:
                    newest = self._save()
        assert newest is not None  # the last step has saved one
        return newest

    def _train_step(self, batch: Batch, *, want_grad_norm: bool) -> tuple[float | None, float]:
        lr = self.players.set_learning_rate(self.step * self.batch_size)
        noise = self._draw_noise(batch.global_rows, seed=self.config.loop.seed, step=self.step)
        parts: dict[str, list[Tensor]] = {}
        grad_norm = None

        def check(loss: Tensor) -> None:
            if self.device.type == "cpu":  # free here; on a GPU it would wait for the device at every step
                self.window.require_finite(loss, self.step + 1, batch.sample_ids)

        for index, (micro_batch, micro_noise) in enumerate(self._micro_batches(batch.tensors, noise)):
            loss, metrics, grad_norm = self.players.turn(
                micro_batch,
                micro_noise,
                last=index == self.num_micro - 1,
                want_grad_norm=want_grad_norm,
                check=check,
            )
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
                if self.place.is_main:
                    self.ema.update(self.task.objective.network, num_images=self.batch_size)
        num_skipped = self.players.num_skipped
        if num_skipped > self.config.loop.max_skipped_steps:
            raise NonFiniteLossError(
                f"{self.task.name}: {num_skipped} optimizer steps in a row were skipped because "
                f"gradients were not finite, up to step {self.step}, sample ids "
                f"{self.window.last_sample_ids}"
            )

    def _draw_noise(self, global_rows: slice, *, seed: int, step: int) -> dict[str, Tensor]:
        """These rows of the noise of a global batch."""
        whole = self.task.objective.draw_noise(seed=seed, step=step, global_batch=self.batch_size)
        return {name: value[global_rows] for name, value in whole.items()}

    def _micro_batches(
        self, batch: dict[str, Tensor], noise: dict[str, Tensor]
    ) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        size = self.batch_size // self.place.world_size // self.num_micro
        for index in range(self.num_micro):
            rows = slice(index * size, (index + 1) * size)
            yield (
                {name: value[rows].to(self.device, non_blocking=True) for name, value in batch.items()},
                {name: value[rows].to(self.device, non_blocking=True) for name, value in noise.items()},
            )

    # Numbers
    def _log(self, grad_norm: float | None, lr: float, extra: dict[str, float]) -> None:
        """Average the window's losses over steps and ranks: one transfer per window."""
        if self.device.type != "cpu":
            self.window.require_all_finite()
        means, num_steps = self.window.close()
        if self.task.window_numbers is not None:
            extra = {**self.task.window_numbers(), **extra}
        now = time.perf_counter()
        seconds, self.window_started = (now - self.window_started) / num_steps, now
        if self.place.is_main:
            self.report.row(
                {
                    "step": self.step,
                    "images": self.step * self.batch_size,
                    **means,
                    **extra,
                    "lr": lr,
                    "grad_norm": grad_norm,
                    "images_per_s": self.batch_size / seconds,
                    "step_s": seconds,
                    "time": time.time(),
                }
            )

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Loss of held-out images with fixed noise; the same images at every call."""
        source = self.task.validation
        if source is None:
            return {}
        started = time.perf_counter()
        self.players.set_training(False)
        wanted = min(self.config.loop.max_validation_images, source.num_images)
        stream = source.batches(start_step=0, global_batch=self.batch_size, seed=0, place=self.place)
        losses: list[Tensor] = []
        for index in range(max(1, wanted // self.batch_size)):
            batch = next(stream)
            noise = self._draw_noise(batch.global_rows, seed=0, step=VALIDATION_STEP + index)
            for micro_batch, micro_noise in self._micro_batches(batch.tensors, noise):
                losses.append(self.players.main.engine.forward(micro_batch, micro_noise)[0])
        mean = torch.stack(losses).double().mean()
        if self.place.world_size > 1:
            dist.all_reduce(mean)
            mean /= self.place.world_size
        self.players.set_training(True)
        self.window_started += time.perf_counter() - started
        return {"validation_loss": float(mean)}

    def _open_report(self) -> TrainingReport | SilentReport:
        if not self.place.is_main:
            return SilentReport()
        return TrainingReport(
            self.run_folder,
            name=self.task.name,
            num_steps=self.config.optimizer.num_steps,
            first_step=self.step,
            wandb=self.config.loop.wandb,
            config=self.task.settings(self.config),
        )

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
            world_size=self.place.world_size,
            engine=self.config.engine_name,
            seeds={"training": self.config.loop.seed},
            config=self.task.settings(self.config),
            data=flatten(self.task.batches.fingerprint),
        )

    def _save(self) -> Path:
        started = time.perf_counter()
        folder = save_checkpoint(
            self.run_folder / CHECKPOINTS_FOLDER,
            state=self._trainer_state(),
            kind=self.task.kind,
            model_config=self.task.model_config,
            network=self.task.objective.network,
            ema=self.ema,
            engines=self.players.engines,
            place=self.place,
            loop=self.config.loop,
        )
        self.window_started += time.perf_counter() - started
        return folder

    def _resume(self) -> Path | None:
        found = resume_checkpoint(
            self.run_folder / CHECKPOINTS_FOLDER,
            expected=self._trainer_state(),
            kind=self.task.kind,
            ema=self.ema,
            engines=self.players.engines,
            place=self.place,
            device=self.device,
        )
        if found is None:
            return None
        folder, state = found
        self.step = state.step
        return folder
