"""Batches for the loop: each rank's rows of a global batch, the same for any number of ranks.

Sample n of a training (n counts images from 0) is in epoch n // E at position n % E; the permutation of
an epoch depends on (seed, epoch) alone. Step s takes samples s·G .. (s+1)·G - 1 and rank r of W the r-th
of W equal parts, so a batch may span two epochs, no image is dropped and the position in the data is the
number of images seen.

Shapes: B rows of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from pipelines.training_env import RankEnvironment

ORDER = "philox permutation of (seed, epoch)"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's rows of one global batch.

    Attributes:
        tensors: named tensors with B leading rows, on the CPU.
        sample_ids: (B,) int64 row numbers in the data set, named when a loss is not finite.
        global_rows: the B places of these rows in the global batch; their noise has the same places.
    """

    tensors: dict[str, Tensor]
    sample_ids: np.ndarray
    global_rows: slice


class BatchSource(Protocol):
    """Where a task's batches come from."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that fixes content and order of the data; compared when a run resumes."""
        ...

    @property
    def num_images(self) -> int:
        """Images in one epoch."""
        ...

    def batches(self, *, start_step: int, global_batch: int, seed: int, place: RankEnvironment) -> Iterator[Batch]:
        """This rank's batches of steps ``start_step``, ``start_step + 1``, …; never ends."""
        ...


class EpochRows:
    """Row numbers of any range of samples, one epoch's order kept at a time.

    Args:
        seed: data seed.
        view_rows: for each image its rows (views), a list, or an array (N, V) where all have as many; with one row
            per image an epoch is a permutation of rows.
    """

    def __init__(self, seed: int, view_rows: list[np.ndarray] | np.ndarray) -> None:
        self.seed = seed
        if isinstance(view_rows, np.ndarray):
            self.counts, self.rows = np.full(len(view_rows), view_rows.shape[1]), view_rows.reshape(-1)
        else:
            self.counts, self.rows = np.array([len(rows) for rows in view_rows]), np.concatenate(view_rows)
        self.offsets = np.cumsum(self.counts) - self.counts
        self.epoch, self.order = -1, np.empty(0, dtype=np.int64)

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch != self.epoch:
            stream = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            order = stream.permutation(len(self.counts))
            views = (stream.random(len(order)) * self.counts[order]).astype(np.int64)
            self.epoch, self.order = epoch, self.rows[self.offsets[order] + views]
        return self.order

    def take(self, first: int, count: int) -> np.ndarray:
        """Rows of samples ``first`` .. ``first + count - 1``, int64."""
        parts: list[np.ndarray] = []
        size = len(self.counts)
        while count > 0:
            epoch, position = divmod(first, size)
            part = self._epoch(epoch)[position : position + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return np.concatenate(parts)


class ArraySource:
    """Batches from arrays held in memory.

    Args:
        view_rows: rows of each image (one entry per image), a list or an array (N, V).
        fetch: rows (B,) int64 -> named tensors with B rows.
        fingerprint: content part of the fingerprint.
    """

    def __init__(
        self,
        view_rows: list[np.ndarray] | np.ndarray,
        fetch: Callable[[np.ndarray], dict[str, Tensor]],
        fingerprint: dict[str, Any],
    ) -> None:
        self._view_rows, self._fetch, self._fingerprint = view_rows, fetch, fingerprint

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Content and order of the data."""
        return {**self._fingerprint, "order": ORDER}

    @property
    def num_images(self) -> int:
        """Images in one epoch."""
        return len(self._view_rows)

    def batches(self, *, start_step: int, global_batch: int, seed: int, place: RankEnvironment) -> Iterator[Batch]:
        """This rank's batches from ``start_step`` on; never ends."""
        share = global_batch // place.world_size
        epoch_rows = EpochRows(seed, self._view_rows)
        first = start_step * global_batch + place.rank * share
        global_rows = slice(place.rank * share, (place.rank + 1) * share)
        while True:
            rows = epoch_rows.take(first, share)
            yield Batch(tensors=self._fetch(rows), sample_ids=rows, global_rows=global_rows)
            first += global_batch
