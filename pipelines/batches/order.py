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

from cluster.ranks import Ranks
from nvg.randomness import IndexOrder, picks

_ORDER, _COMPUTED_ORDER = "philox permutation of (seed, epoch)", "feistel network of (seed, epoch)"


@dataclass(frozen=True)
class ViewGrid:
    """Rows of so many images with so many views each, one after the other; no array holds them.

    An epoch's order is computed where it is asked for, so hundreds of millions of rows cost a rank nothing.
    """

    num_images: int
    num_views: int

    def __len__(self) -> int:
        return self.num_images


# Rows (views) of each image: a list, or an array (N, V) where all have as many. With one row an image, an epoch is a
# permutation of rows.
ViewRows = list[np.ndarray] | np.ndarray | ViewGrid


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's rows of one global batch.

    Attributes:
        tensors: named tensors with B leading rows, on the CPU; uint8 ones are levels of pixels, which a step takes in
            [-1, 1], as `nvg.pixels.scale_levels` makes them where they are used.
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

    def batches(self, *, start_step: int, global_batch: int, seed: int, ranks: Ranks) -> Iterator[Batch]:
        """This rank's batches of steps `start_step`, `start_step + 1`, …; never ends.

        All ranks call; the iterator is for one thread, any one, and meets no other rank.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """What one rank reads in one step.

    Attributes:
        rows_B: (B,) int64 row numbers in the data set.
        epochs_B: (B,) int64, the epoch each row belongs to.
        global_rows: the B places of these rows in the global batch.
    """

    rows_B: np.ndarray
    epochs_B: np.ndarray
    global_rows: slice


class _EpochRows:
    """Row numbers of any range of samples, one epoch's order kept at a time."""

    def __init__(self, seed: int, view_rows: list[np.ndarray] | np.ndarray, *, in_turn: bool) -> None:
        self.seed, self.in_turn = seed, in_turn
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
            counts = self.counts[order]
            views = epoch % counts if self.in_turn else (stream.random(len(order)) * counts).astype(np.int64)
            self.epoch, self.order = epoch, self.rows[self.offsets[order] + views]
        return self.order

    def take(self, first: int, count: int) -> np.ndarray:
        """Rows of samples `first` .. `first + count - 1`, int64."""
        samples, size = np.arange(first, first + count), len(self.counts)
        epochs = range(first // size, (first + count - 1) // size + 1)
        return np.concatenate([self._epoch(epoch)[samples[samples // size == epoch] % size] for epoch in epochs])


class _ComputedRows:
    """Row numbers of any range of samples of a `ViewGrid`; what `_EpochRows` is for arrays, in another order."""

    def __init__(self, seed: int, grid: ViewGrid, *, in_turn: bool) -> None:
        self.seed, self.grid, self.in_turn = seed, grid, in_turn

    def take(self, first: int, count: int) -> np.ndarray:
        """Rows of samples `first` .. `first + count - 1`, int64."""
        samples, size = np.arange(first, first + count), self.grid.num_images
        epochs = range(first // size, (first + count - 1) // size + 1)
        return np.concatenate([self._rows(epoch, samples[samples // size == epoch] % size) for epoch in epochs])

    def _rows(self, epoch: int, places: np.ndarray) -> np.ndarray:
        images, num_views = IndexOrder(self.seed, epoch, self.grid.num_images)[places], self.grid.num_views
        views = epoch % num_views if self.in_turn else picks(self.seed, epoch, images, num_views)
        return images * num_views + views


class EpochSource:
    """What sources whose order is our own share: their fingerprint, an epoch's length, the rows of each step.

    Args:
        view_rows: rows of each image.
        fingerprint: content part of the fingerprint.
        views_per_epoch: see `DataConfig`.
    """

    def __init__(self, view_rows: ViewRows, fingerprint: dict[str, Any], views_per_epoch: str) -> None:
        self._view_rows = _rows_apart(view_rows) if views_per_epoch == "all" else view_rows
        self._in_turn = views_per_epoch == "in_turn"
        self.fingerprint = {**fingerprint, "order": _COMPUTED_ORDER if isinstance(view_rows, ViewGrid) else _ORDER}
        self.num_images = len(self._view_rows)

    def steps(self, *, start_step: int, global_batch: int, seed: int, ranks: Ranks) -> Iterator[StepRows]:
        """Rows of this rank's batches from `start_step` on; never ends."""
        share = global_batch // ranks.world_size
        rows = self._view_rows
        if isinstance(rows, ViewGrid):
            epoch_rows: _ComputedRows | _EpochRows = _ComputedRows(seed, rows, in_turn=self._in_turn)
        else:
            epoch_rows = _EpochRows(seed, rows, in_turn=self._in_turn)
        global_rows = slice(ranks.rank * share, (ranks.rank + 1) * share)
        first = start_step * global_batch + ranks.rank * share
        while True:
            epochs_B = (first + np.arange(share)) // self.num_images
            yield StepRows(rows_B=epoch_rows.take(first, share), epochs_B=epochs_B, global_rows=global_rows)
            first += global_batch


class ArraySource(EpochSource):
    """Batches from arrays held in memory.

    Args:
        view_rows, fingerprint, views_per_epoch: see `EpochSource`.
        fetch: rows (B,) int64 -> named tensors with B rows.
    """

    def __init__(
        self,
        view_rows: ViewRows,
        fetch: Callable[[np.ndarray], dict[str, Tensor]],
        fingerprint: dict[str, Any],
        views_per_epoch: str = "one",
    ) -> None:
        super().__init__(view_rows, fingerprint, views_per_epoch)
        self._fetch = fetch

    def batches(self, *, start_step: int, global_batch: int, seed: int, ranks: Ranks) -> Iterator[Batch]:
        """This rank's batches from `start_step` on; never ends."""
        for step in self.steps(start_step=start_step, global_batch=global_batch, seed=seed, ranks=ranks):
            yield Batch(tensors=self._fetch(step.rows_B), sample_ids=step.rows_B, global_rows=step.global_rows)


def _rows_apart(view_rows: ViewRows) -> np.ndarray | ViewGrid:
    """Each row as an image of its own, (rows, 1), in ascending order: an epoch then goes over all views."""
    if isinstance(view_rows, ViewGrid):
        return ViewGrid(view_rows.num_images * view_rows.num_views, 1)
    rows = view_rows.reshape(-1) if isinstance(view_rows, np.ndarray) else np.concatenate(view_rows)
    return np.sort(rows)[:, None]
