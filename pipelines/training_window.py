"""Losses of the steps since the last row of metrics, kept on the device until the row is written."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from cluster.ranks import RankEnvironment, gather_objects


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
        place: this rank.
    """

    def __init__(self, name: str, place: RankEnvironment) -> None:
        self.name, self.place = name, place
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
        for others in gather_objects(sums, self.place)[1:]:
            for name, (value, count) in others.items():
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += value
                total[1] += count
        means = {name: total / count for name, (total, count) in sums.items()}
        num_steps = len(self.steps)
        self.steps = []
        return {"loss": means.pop("loss"), **dict(sorted(means.items()))}, num_steps
