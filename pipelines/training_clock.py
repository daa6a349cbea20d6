"""Where the time of a training goes, how fast it is and how much memory it takes."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cluster.ranks import RankEnvironment
from pipelines.train.costs import peak_flops
from pipelines.train.task import TrainingTask

DATA = "data"


class TrainingClock:
    """Seconds since the last row of metrics, by what they went to.

    Args:
        device: of this rank, for its memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started = time.perf_counter()
        self.spans: dict[str, float] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Count the block's seconds under a name; all but `DATA` are no part of the steps."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spans[name] = self.spans.get(name, 0.0) + time.perf_counter() - started

    def close(self, num_steps: int) -> dict[str, float]:
        """Numbers of the window that ends now.

        Args:
            num_steps: steps in it.

        Returns:
            step_s: seconds of a step with its wait for data; data_s: that wait; <name>_s: seconds of everything else in
            the whole window; memory_gib: the most this rank has held, of its device or else of the host.
        """
        now = time.perf_counter()
        data = self.spans.pop(DATA, 0.0)
        seconds = (now - self.started - sum(self.spans.values())) / num_steps
        others = {f"{name}_s": value for name, value in self.spans.items()}
        self.started, self.spans = now, {}
        return {"step_s": seconds, "data_s": data / num_steps, **others, "memory_gib": self._memory_gib()}

    def _memory_gib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts it in KiB


class Speed:
    """Images and tokens a second, and the share of the devices' peak that the network's own operations make up.

    mfu = images_per_s · operations of an image, forward and backward / dense bf16 peak of all devices. Blocks computed
    again do not count; a device whose peak is not listed, such as a CPU, has none.

    Args:
        task: what is trained.
        place, device: this rank.
    """

    def __init__(self, task: TrainingTask, place: RankEnvironment, device: torch.device) -> None:
        self._task = task
        peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._peak = None if peak is None else peak * place.world_size
        self._flops_per_image: float | None = None

    def numbers(self, images_per_s: float) -> dict[str, float]:
        """images_per_s, and tokens_per_s and mfu where they are known."""
        numbers = {"images_per_s": images_per_s}
        if self._task.tokens_per_image is not None:
            numbers["tokens_per_s"] = images_per_s * self._task.tokens_per_image
        if self._peak is not None and self._task.count_flops is not None:
            if self._flops_per_image is None:
                self._flops_per_image = self._task.count_flops()
            numbers["mfu"] = images_per_s * self._flops_per_image / self._peak
        return numbers
