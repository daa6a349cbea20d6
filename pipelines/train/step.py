"""One network's turn in a training step: forward, backward and update with an engine and a schedule of its own.

A tokenizer with an adversarial loss has two players, every other training one.

A rank's rows of a global batch and of its noise, on the device, micro batch by micro batch.

Losses of the steps since the last row of metrics, kept on the device until the row is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from cluster.ranks import Ranks
from nvg.training import WsdSchedule
from pipelines.batches.order import Batch
from pipelines.train.config import DeepSpeedConfig, LoopConfig, OptimizerConfig, TrainingConfig
from pipelines.train.engine import TrainingEngine, build_engine
from pipelines.train.task import Objective, TrainingTask


class Turn(TypedDict):
    """What all players of a micro batch are told.

    last: whether the step ends with it, so that the weights are updated. want_grad_norm: whether the gradient's norm is
    asked for. check: called with the player's name and the detached loss before the backward pass.
    """

    last: bool
    want_grad_norm: bool
    check: Callable[[str, Tensor], None]


class Player:
    """An objective with its engine.

    Args:
        name: for messages.
        objective: module whose ``network`` is trained, on ``device``.
        optimizer: learning rate, schedule, clipping, batch.
        loop, deepspeed: settings of the engine.
        ranks: this rank.
        universal: see :func:`pipelines.train.engine.build_engine`.
    """

    def __init__(
        self,
        name: str,
        objective: Any,
        optimizer: OptimizerConfig,
        *,
        loop: LoopConfig,
        deepspeed: DeepSpeedConfig,
        ranks: Ranks,
        universal: bool,
    ) -> None:
        self.name, self.objective, self.optimizer = name, objective, optimizer
        self.schedule = WsdSchedule(
            total_images=optimizer.total_images,
            warmup_images=optimizer.warmup_images,
            decay_start=optimizer.decay_start,
            final_factor=optimizer.final_factor,
            warmup_factor=optimizer.warmup_factor,
            shape=optimizer.decay_shape,
        )
        self.engine: TrainingEngine = build_engine(
            objective,
            optimizer=optimizer,
            loop=loop,
            deepspeed=deepspeed,
            ranks=ranks,
            universal=universal,
        )
        self.num_skipped = 0  # updates in a row that the engine refused
        self.total_skipped = 0

    def set_learning_rate(self, images_seen: int) -> float:
        """Follow the schedule; returns the learning rate at factor 1."""
        lr = self.optimizer.lr * self.schedule.factor(images_seen)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        return lr

    def turn(
        self,
        batch: dict[str, Tensor],
        noise: dict[str, Tensor],
        **told: Unpack[Turn],
    ) -> tuple[Tensor, dict[str, Tensor], float | None]:
        """One micro batch.

        Args:
            batch, noise: rows of this micro batch.
            **told: see :class:`Turn`.

        Returns:
            Detached scalar loss, its named parts, the norm before clipping or None.
        """
        loss, metrics = self.engine.forward(batch, noise)
        told["check"](self.name, loss.detach())
        self.engine.backward(loss)
        grad_norm = self.engine.step(last=told["last"], want_grad_norm=told["want_grad_norm"])
        if told["last"]:
            refused = not self.engine.was_step_applied()
            self.num_skipped = self.num_skipped + 1 if refused else 0
            self.total_skipped += refused
        return loss.detach(), metrics, grad_norm


class Players:
    """Everyone who learns in a step, on the device and with an engine each.

    Args:
        task: the main objective and, where there is one, its adversary.
        config: settings of the main optimizer, of loop and engines.
        ranks: this rank.
        universal: see :func:`pipelines.train.engine.build_engine`.
    """

    def __init__(
        self,
        task: TrainingTask,
        config: TrainingConfig,
        ranks: Ranks,
        *,
        universal: bool,
    ) -> None:
        def player(name: str, objective: Any, optimizer: OptimizerConfig) -> Player:
            objective.to(ranks.device)
            return Player(
                name,
                objective,
                optimizer,
                loop=config.loop,
                deepspeed=config.deepspeed,
                ranks=ranks,
                universal=universal,
            )

        self.main = player(task.name, task.objective, config.optimizer)
        self.adversary: Player | None = None
        if task.adversary is not None:
            name = f"adversary of the {task.name}"
            self.adversary = player(name, task.adversary.objective, task.adversary.optimizer)
            self.seen = task.adversary.seen

    @property
    def engines(self) -> dict[str, TrainingEngine]:
        """Engines by the name of their folder in a checkpoint, the main one first."""
        name = self.main.engine.folder_name
        engines = {name: self.main.engine}
        return engines if self.adversary is None else {**engines, f"{name}-adversary": self.adversary.engine}

    @property
    def num_skipped(self) -> int:
        """Updates in a row that the unluckiest player's engine refused."""
        return max(self.main.num_skipped, 0 if self.adversary is None else self.adversary.num_skipped)

    @property
    def total_skipped(self) -> int:
        """Updates that the engines have refused since this session began."""
        return self.main.total_skipped + (0 if self.adversary is None else self.adversary.total_skipped)

    def set_training(self, training: bool) -> None:
        """Training or evaluation mode for all."""
        self.main.objective.train(training)
        if self.adversary is not None:
            self.adversary.objective.train(training)

    def set_learning_rate(self, images_seen: int) -> float:
        """Follow the schedules; returns the main player's learning rate."""
        if self.adversary is not None:
            self.adversary.set_learning_rate(images_seen)
        return self.main.set_learning_rate(images_seen)

    def turn(
        self, batch: dict[str, Tensor], noise: dict[str, Tensor], **told: Unpack[Turn]
    ) -> tuple[Tensor, dict[str, Tensor], float | None]:
        """One micro batch: the main player's turn, then its adversary's on what came out of it.

        Args:
            batch, noise: rows of this micro batch.
            **told: see :class:`Turn`.

        Returns:
            The main loss, the named numbers of both, the norm of the main gradient or None.
        """
        loss, metrics, grad_norm = self.main.turn(batch, noise, **told)
        if self.adversary is not None:
            adversary_loss, numbers, _ = self.adversary.turn({**batch, **self.seen()}, noise, **told)
            metrics = {**metrics, **numbers, "adversary_loss": adversary_loss}
        return loss, metrics, grad_norm


class Feed:
    """Cuts global batches for this rank.

    Args:
        objective: draws the noise; what it names in ``host_noise`` stays on the CPU.
        global_batch: images of all ranks.
        num_micro: micro batches of a rank.
        ranks: this rank.
    """

    def __init__(self, objective: Objective, *, global_batch: int, num_micro: int, ranks: Ranks) -> None:
        self.objective, self.global_batch, self.num_micro = objective, global_batch, num_micro
        self.ranks = ranks

    def micro_batches(
        self, batch: Batch, *, seed: int, step: int
    ) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Pairs of batch and noise.

        Args:
            batch: this rank's rows.
            seed, step: what the noise of the whole global batch is drawn from.
        """
        whole = self.objective.draw_noise(seed=seed, step=step, global_batch=self.global_batch)
        noise = {name: value[batch.global_rows] for name, value in whole.items()}
        size = self.global_batch // self.ranks.world_size // self.num_micro
        for index in range(self.num_micro):
            rows = slice(index * size, (index + 1) * size)
            yield (
                {name: self._moved(value[rows]) for name, value in batch.tensors.items()},
                {
                    name: value[rows] if name in self.objective.host_noise else self._moved(value[rows])
                    for name, value in noise.items()
                },
            )

    def _moved(self, value: Tensor) -> Tensor:
        if self.ranks.device.type == "cuda":
            value = value.pin_memory()  # the copy then runs beside the host
        return value.to(self.ranks.device, non_blocking=True)


class NonFiniteLossError(RuntimeError):
    """The loss is not a number any more; names step and sample ids."""


def not_finite(player: str, sample_ids: np.ndarray, what: str) -> NonFiniteLossError:
    """The error to raise about a step.

    Args:
        player: who learns.
        sample_ids: rows of the data set.
        what: was found.
    """
    return NonFiniteLossError(
        f"{player}: {what}; sample ids {sample_ids.tolist()}. The last checkpoint is untouched. Lower optimizer.lr, or "
        "look at these samples"
    )


class LossWindow:
    """Losses and named numbers of some steps; few transfers from the device and one gather over ranks a window.

    Args:
        name: of the training, for messages.
        ranks: this rank.
    """

    def __init__(self, name: str, ranks: Ranks) -> None:
        self.name, self.ranks = name, ranks
        self.steps: list[tuple[int, np.ndarray, Tensor, dict[str, Tensor]]] = []
        self.unread: list[tuple[str, int, np.ndarray, Tensor]] = []

    @property
    def last_sample_ids(self) -> list[int]:
        """Sample ids of the newest step."""
        return self.steps[-1][1].tolist()

    def add(self, step: int, sample_ids: np.ndarray, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Note a step: its rows of the data set, scalar loss and named scalar numbers."""
        self.steps.append((step, sample_ids, loss, parts))

    def check(self, player: str, step: int, sample_ids: np.ndarray, loss: Tensor) -> None:
        """Refuse a loss that is not finite: at once on a CPU, when the window is read on a device.

        Args:
            player: whose loss it is, for the message.
            step: number of the step.
            sample_ids: rows of the data set.
            loss: scalar.

        Raises:
            NonFiniteLossError: it is not finite.
        """
        self.unread.append((player, step, sample_ids, loss))
        if loss.device.type == "cpu":  # elsewhere the host would wait for the device in every step
            self.require_finite()

    def require_finite(self) -> None:
        """Raises NonFiniteLossError unless every loss since the last call is finite; one transfer for all."""
        unread, self.unread = self.unread, []
        if not unread:
            return
        losses = torch.stack([loss for *_, loss in unread]).tolist()
        for (player, step, sample_ids, _), loss in zip(unread, losses, strict=True):
            if not math.isfinite(loss):
                raise not_finite(player, sample_ids, f"the loss of step {step} is {loss}")

    def close(self) -> tuple[dict[str, float], int]:
        """Empties the window (all ranks call). Raises NonFiniteLossError where a loss of it is not finite.

        Returns:
            Mean of "loss" and of every named number over the steps and ranks that had it (a step may lack some
            stages); the number of steps.
        """
        self.require_finite()
        names: list[str] = []
        values: list[Tensor] = []
        for _, _, loss, parts in self.steps:
            for name, value in {**parts, "loss": loss}.items():
                names.append(name)
                values.append(value.float())
        sums: dict[str, list[float]] = {}
        for name, value in zip(names, torch.stack(values).tolist(), strict=True):
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += value
            total[1] += 1.0
        totals: dict[str, list[float]] = {}
        for of_rank in self.ranks.gather(sums):
            for name, (value, count) in of_rank.items():
                total = totals.setdefault(name, [0.0, 0.0])
                total[0] += value
                total[1] += count
        means = {name: total / count for name, (total, count) in totals.items()}
        num_steps = len(self.steps)
        self.steps = []
        return {"loss": means.pop("loss"), **dict(sorted(means.items()))}, num_steps
