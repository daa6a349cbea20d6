"""One network's turn in a training step: forward, backward and update with an engine and a schedule of its own.

A tokenizer with an adversarial loss has two players, every other training one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from cluster.ranks import RankEnvironment
from nvg.training import WsdSchedule
from pipelines.train.config import DeepSpeedConfig, LoopConfig, OptimizerConfig
from pipelines.train.engine import TrainingEngine, build_engine
from pipelines.train.task import TrainingConfig, TrainingTask


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
        place, device: this rank.
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
        place: RankEnvironment,
        device: torch.device,
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
            place=place,
            device=device,
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
        place, device: this rank.
        universal: see :func:`pipelines.train.engine.build_engine`.
    """

    def __init__(
        self,
        task: TrainingTask,
        config: TrainingConfig,
        place: RankEnvironment,
        device: torch.device,
        *,
        universal: bool,
    ) -> None:
        def player(name: str, objective: Any, optimizer: OptimizerConfig) -> Player:
            objective.to(device)
            return Player(
                name,
                objective,
                optimizer,
                loop=config.loop,
                deepspeed=config.deepspeed,
                place=place,
                device=device,
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
