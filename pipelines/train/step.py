"""One training step: rates, forward, backward and update of all who learn, their losses checked, the average.

A tokenizer with an adversarial loss has two players, each with an engine and a schedule of its own; every other
training has one. What a step is given, `feed` makes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cluster.ranks import Ranks
from nvg.errors import NotFiniteError
from nvg.training import Ema, WsdSchedule
from pipelines.train.config import OptimizerConfig, RunConfig
from pipelines.train.engine import TrainingEngine, build_engine
from pipelines.train.feed import Feed, StepInput
from pipelines.train.task import TrainingTask


@dataclass(frozen=True, kw_only=True)
class StepNumbers:
    """What a step tells.

    Attributes:
        metrics: "loss" and others by name, still on the device: a scalar is a mean over the micro batches, a pair is
            sum and number of values, of which micro batches and ranks have different numbers.
        lr: learning rate at factor 1.
        grad_norm: of the main gradient before clipping; None where it was not asked for.
    """

    metrics: dict[str, Tensor]
    lr: float
    grad_norm: float | None


class Player:
    """An objective with its engine and its schedule.

    Args:
        name: for messages.
        objective: module whose `network` is trained.
        optimizer: of this objective.
        config: the rest of the run.
        ranks: this rank.
        universal: see `build_engine`.
    """

    def __init__(
        self, name: str, objective: Any, optimizer: OptimizerConfig, config: RunConfig, ranks: Ranks, universal: bool
    ) -> None:
        self.name, self.objective, self.optimizer = name, objective.to(ranks.device), optimizer
        self.schedule = WsdSchedule(
            total_images=optimizer.total_images,
            warmup_images=optimizer.warmup_images,
            decay_start=optimizer.decay_start,
            final_factor=optimizer.final_factor,
            warmup_factor=optimizer.warmup_factor,
            shape=optimizer.decay_shape,
        )
        self.engine: TrainingEngine = build_engine(objective, optimizer, config, ranks, universal=universal)
        self.num_skipped = 0  # updates in a row that the engine refused
        self.total_skipped = 0

    def set_learning_rate(self, images_seen: int) -> float:
        """Follow the schedule; returns the learning rate at factor 1."""
        lr = self.optimizer.lr * self.schedule.factor(images_seen)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        return lr

    def count_refusal(self) -> None:
        """Note whether the engine took the update just made."""
        refused = not self.engine.was_step_applied()
        self.num_skipped = self.num_skipped + 1 if refused else 0
        self.total_skipped += refused


class Step:
    """The training step of a task, and everything it moves.

    Args:
        task: the main objective and, where there is one, its adversary.
        config: the run.
        ranks: this rank.
        universal: see `build_engine`.

    Attributes:
        done: steps done; set it to go on from a checkpoint.
        feed: makes what a step is given.
        ema: averages of the network; the other ranks hold none.
    """

    def __init__(self, task: TrainingTask, config: RunConfig, ranks: Ranks, *, universal: bool) -> None:
        self.task, self.config, self.ranks = task, config, ranks
        self.global_batch = config.optimizer.global_batch
        self.num_micro = config.optimizer.accumulation_steps(ranks.world_size)
        self.feed = Feed(task.objective, global_batch=self.global_batch, num_micro=self.num_micro, ranks=ranks)
        # Made before ZeRO-3 can partition the parameters.
        network = task.objective.to(ranks.device).network
        self.ema = Ema(
            network if ranks.is_main else nn.Module(),
            half_life_images=config.optimizer.ema_half_life_images,
            ramp=config.optimizer.ema_ramp,
        )
        self.main = Player(task.kind, task.objective, config.optimizer, config, ranks, universal)
        self.players = [self.main]
        if (other := task.adversary) is not None:
            name = f"adversary of the {task.kind}"
            self.players.append(Player(name, other.objective, other.optimizer, config, ranks, universal))
        self.done = 0
        self._unread: list[tuple[Player, int, np.ndarray, Tensor]] = []

    def __call__(self, given: StepInput, *, want_grad_norm: bool) -> StepNumbers:
        """Take the step after `done` (all ranks call).

        Args:
            given: this rank's input of it.
            want_grad_norm: the norm costs a wait for the device.

        Raises:
            NotFiniteError: a loss is not finite, or gradients were not for too many steps; names step and sample ids.
                On a GPU losses are looked at by `require_finite` alone: here the host would wait in every step.
        """
        lr, *_ = [player.set_learning_rate(self.done * self.global_batch) for player in self.players]
        parts: dict[str, list[Tensor]] = {}
        grad_norm = None
        for number, (micro_batch, noise) in enumerate(self.feed.on_device(given), start=1):
            last = number == self.num_micro
            loss, metrics, grad_norm = self._turn(self.main, given, micro_batch, noise, last, want_grad_norm)
            if self.task.adversary is not None:
                seen = {**micro_batch, **self.task.adversary.seen()}
                other_loss, others, _ = self._turn(self.players[1], given, seen, noise, last, want_grad_norm)
                metrics = {**metrics, **others, "adversary_loss": other_loss}
            for name, value in {**metrics, "loss": loss}.items():
                parts.setdefault(name, []).append(value)
        self.done += 1
        joined = {name: torch.stack(values) for name, values in parts.items()}
        means = {name: values.sum(0) if values.ndim == 2 else values.mean() for name, values in joined.items()}
        self._after_update(given)
        return StepNumbers(metrics=means, lr=lr, grad_norm=grad_norm)

    def _turn(
        self,
        player: Player,
        given: StepInput,
        micro_batch: dict[str, Tensor],
        noise: dict[str, Tensor],
        last: bool,
        want_grad_norm: bool,
    ) -> tuple[Tensor, dict[str, Tensor], float | None]:
        """One player's micro batch; detached loss, its named parts, the norm before clipping or None."""
        try:
            loss, metrics = player.engine.forward(micro_batch, noise)
        except NotFiniteError as error:
            raise _not_finite(player, given.sample_ids, f"step {self.done + 1}: {error}") from error
        self._unread.append((player, self.done + 1, given.sample_ids, loss.detach()))
        if loss.device.type == "cpu":
            self.require_finite()
        player.engine.backward(loss)
        grad_norm = player.engine.step(last=last, want_grad_norm=want_grad_norm)
        if last:
            player.count_refusal()
        return loss.detach(), metrics, grad_norm

    def _after_update(self, given: StepInput) -> None:
        if self.task.after_update is not None:
            self.task.after_update(self.main.engine, self.done - 1)
        if self.main.num_skipped == 0:
            # Under ZeRO-3 gathering is a collective: every rank takes part, the main rank alone averages.
            with self.main.engine.whole_parameters():
                if self.ranks.is_main:
                    self.ema.update(self.task.objective.network, num_images=self.global_batch)
        num_skipped = max(player.num_skipped for player in self.players)
        if num_skipped > self.config.loop.max_skipped_steps:
            raise NotFiniteError(
                f"{self.task.kind}: {num_skipped} optimizer steps in a row were skipped because gradients were not "
                f"finite, up to step {self.done}, sample ids {given.sample_ids.tolist()}"
            )

    def require_finite(self) -> None:
        """Raises NotFiniteError unless every loss since the last call is finite; one transfer for all."""
        unread, self._unread = self._unread, []
        losses = torch.stack([loss for *_, loss in unread]).tolist() if unread else []
        for (player, step, sample_ids, _), loss in zip(unread, losses, strict=True):
            if not math.isfinite(loss):
                raise _not_finite(player, sample_ids, f"the loss of step {step} is {loss}")

    @property
    def images(self) -> int:
        """Images seen; also the position in the data stream."""
        return self.done * self.global_batch

    @property
    def engines(self) -> dict[str, TrainingEngine]:
        """Engines by the name of their folder in a checkpoint, the main one first."""
        names = [self.main.engine.folder_name, f"{self.main.engine.folder_name}-adversary"]
        return {name: player.engine for name, player in zip(names, self.players, strict=False)}

    @property
    def total_skipped(self) -> int:
        """Updates that the engines have refused since this session began."""
        return sum(player.total_skipped for player in self.players)

    def set_training(self, training: bool) -> None:
        """Training or evaluation mode for all."""
        for player in self.players:
            player.objective.train(training)


def _not_finite(player: Player, sample_ids: np.ndarray, what: str) -> NotFiniteError:
    return NotFiniteError(
        f"{player.name}: {what}; sample ids {sample_ids.tolist()}. The last checkpoint is untouched. Lower "
        "optimizer.lr, or look at these samples"
    )
