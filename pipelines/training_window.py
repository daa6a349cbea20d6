"""Losses of the steps since the last row of metrics, kept on the device until the row is written."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipelines.training_env import RankEnvironment, gather_objects


class NonFiniteLossError(RuntimeError):
    """The loss is not a number any more; names step and sample ids."""


class LossWindow:
    """Losses and named numbers of some steps; one transfer from the device and one gather over ranks a window.

    Args:
        name: of the training, for messages.
        place: this rank.
    """

    def __init__(self, name: str, place: RankEnvironment) -> None:
        self.name, self.place = name, place
        self.steps: list[tuple[int, np.ndarray, Tensor, dict[str, Tensor]]] = []

    @property
    def last_sample_ids(self) -> list[int]:
        """Sample ids of the newest step."""
        return self.steps[-1][1].tolist()

    def add(self, step: int, sample_ids: np.ndarray, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Note a step: its rows of the data set, scalar loss and named scalar numbers."""
        self.steps.append((step, sample_ids, loss, parts))

    def require_finite(self, loss: Tensor, step: int, sample_ids: np.ndarray) -> None:
        """Raises NonFiniteLossError unless the scalar loss of a step is a finite number."""
        if not bool(torch.isfinite(loss)):
            raise NonFiniteLossError(
                f"{self.name}: the loss of step {step} is {float(loss)}; sample ids "
                f"{sample_ids.tolist()}. The last checkpoint is untouched. Lower "
                "optimizer.lr, or look at these samples"
            )

    def require_all_finite(self) -> None:
        """Raises NonFiniteLossError unless every loss of the window is finite."""
        for step, sample_ids, loss, _ in self.steps:
            self.require_finite(loss, step, sample_ids)

    def close(self) -> tuple[dict[str, float], int]:
        """Empties the window (all ranks call).

        Returns:
            Mean of "loss" and of every named number over the steps and ranks that had it (a step may lack some
            stages); the number of steps.
        """
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
