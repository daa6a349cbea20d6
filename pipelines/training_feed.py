"""A rank's rows of a global batch and of its noise, on the device, micro batch by micro batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cluster.ranks import RankEnvironment
from pipelines.batches.order import Batch
from pipelines.train.task import Objective


class Feed:
    """Cuts global batches for this rank.

    Args:
        objective: draws the noise; what it names in ``host_noise`` stays on the CPU.
        global_batch: images of all ranks.
        num_micro: micro batches of a rank.
        place, device: this rank.
    """

    def __init__(
        self, objective: Objective, *, global_batch: int, num_micro: int, place: RankEnvironment, device: torch.device
    ) -> None:
        self.objective, self.global_batch, self.num_micro = objective, global_batch, num_micro
        self.place, self.device = place, device

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
        size = self.global_batch // self.place.world_size // self.num_micro
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
        if self.device.type == "cuda":
            value = value.pin_memory()  # the copy then runs beside the host
        return value.to(self.device, non_blocking=True)
