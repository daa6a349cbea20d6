"""Batches for the loop: each rank's rows of a global batch, the same for any number of ranks.

Sample n of a training (n counts images from 0) is in epoch n // E at position n % E; the permutation of
an epoch depends on (seed, epoch) alone. Step s takes samples s·G .. (s+1)·G - 1 and rank r of W the r-th
of W equal parts, so a batch may span two epochs, no image is dropped and the position in the data is the
number of images seen.

StreamingDataset has an order of its own, which depends also on canonical nodes, block size, algorithm and
batch: all are part of the fingerprint. There a step has the same set of samples for any number of ranks,
in another order.

Shapes: B rows of this rank, T tokens, L positions, c image channels, S image side.
"""

from __future__ import annotations

import ctypes
import fcntl
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nvg.errors import UserError
from nvg.records import RecordDataset
from pipelines.sources import ImageSource, LoadedImages, load_images, to_model_range
from pipelines.training_config import DataConfig
from pipelines.training_env import RankEnvironment, barrier

MAX_IMAGE_BYTES_IN_MEMORY = 8 * 2**30


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's rows of one global batch.

    Attributes:
        tensors: named tensors with B leading rows, on the CPU.
        sample_ids: (B,) int64 row numbers in the data set, named when a loss is not finite.
    """

    tensors: dict[str, Tensor]
    sample_ids: np.ndarray


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


class _EpochRows:
    """Row numbers of any range of samples, one epoch's order kept at a time.

    Args:
        seed: data seed.
        view_rows: for each image its rows (views); with one row per image an epoch is a permutation of rows.
    """

    def __init__(self, seed: int, view_rows: list[np.ndarray]) -> None:
        self.seed = seed
        self.offsets = np.cumsum([0] + [len(rows) for rows in view_rows[:-1]])
        self.counts = np.array([len(rows) for rows in view_rows])
        self.rows = np.concatenate(view_rows)
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
        view_rows: rows of each image (one entry per image).
        fetch: rows (B,) int64 -> named tensors with B rows.
        fingerprint: content part of the fingerprint.
    """

    def __init__(
        self,
        view_rows: list[np.ndarray],
        fetch: Callable[[np.ndarray], dict[str, Tensor]],
        fingerprint: dict[str, Any],
    ) -> None:
        self._view_rows, self._fetch, self._fingerprint = view_rows, fetch, fingerprint

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Content and order of the data."""
        return {**self._fingerprint, "order": "philox permutation of (seed, epoch)"}

    @property
    def num_images(self) -> int:
        """Images in one epoch."""
        return len(self._view_rows)

    def batches(self, *, start_step: int, global_batch: int, seed: int, place: RankEnvironment) -> Iterator[Batch]:
        """This rank's batches from ``start_step`` on; never ends."""
        share = global_batch // place.world_size
        epoch_rows = _EpochRows(seed, self._view_rows)
        first = start_step * global_batch + place.rank * share
        while True:
            rows = epoch_rows.take(first, share)
            yield Batch(tensors=self._fetch(rows), sample_ids=rows)
            first += global_batch


def record_source(records: RecordDataset, config: DataConfig) -> ArraySource:
    """Records in memory.

    Args:
        records: opened records.
        config: how an epoch is made.

    Returns:
        Source of {"label" (B,), "content_ids" (B, T), "structure" (B, L)}, all int64.
    """

    def fetch(rows: np.ndarray) -> dict[str, Tensor]:
        return {name: torch.from_numpy(values) for name, values in records.batch(rows).items()}

    view_rows = _view_rows(records.image, config.views_per_epoch)
    return ArraySource(view_rows, fetch, record_fingerprint(config, records.manifest))


def _view_rows(image: np.ndarray, views_per_epoch: str) -> list[np.ndarray]:
    """Rows of each image in ascending image number; with "all" each row counts as an image of its own."""
    if views_per_epoch == "all":
        return list(np.arange(len(image)).reshape(-1, 1))
    order = np.argsort(image, kind="stable")
    starts = np.flatnonzero(np.diff(image[order].astype(np.int64))) + 1
    return np.split(order, starts)


def record_fingerprint(config: DataConfig, manifest: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for a run to go on with these records.

    Args:
        config: loader and order.
        manifest: the records' manifest.

    Returns:
        Flat dictionary of JSON values.
    """
    wanted = (
        "schema_version", "plan", "tokenizer_hash", "num_images", "num_views", "num_classes", "codebook_size",
        "num_positions", "source_fingerprint",
    )  # fmt: skip
    fingerprint: dict[str, Any] = {name: manifest[name] for name in wanted if name in manifest}
    fingerprint |= {"loader": config.loader, "views_per_epoch": config.views_per_epoch}
    if config.loader == "streaming":
        fingerprint |= {
            "num_canonical_nodes": config.num_canonical_nodes,
            "shuffle_block_size": config.shuffle_block_size,
            "shuffle_algo": config.shuffle_algo,
        }
    return fingerprint


class StreamingSource:
    """Records through StreamingDataset, for data sets beyond one node's memory.

    Args:
        config: ``loader`` is "streaming".
        manifest: the records' manifest.
    """

    def __init__(self, config: DataConfig, manifest: dict[str, Any]) -> None:
        self.config, self.manifest = config, manifest

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Content and order of the data."""
        return record_fingerprint(self.config, self.manifest)

    @property
    def num_images(self) -> int:
        """Record rows in one epoch (all views)."""
        return int(self.manifest["num_records"])

    def batches(self, *, start_step: int, global_batch: int, seed: int, place: RankEnvironment) -> Iterator[Batch]:
        """This rank's batches from ``start_step`` on; drops an epoch's incomplete batch; never ends."""
        from torch.utils.data import DataLoader

        share = global_batch // place.world_size
        dataset = _open_streaming(self.config, share, seed, place)
        steps_per_epoch = dataset.size // global_batch
        if steps_per_epoch == 0:
            raise UserError(
                f"{self.config.path} has {dataset.size} records, fewer than "
                f"optimizer.global_batch={global_batch}; lower the batch or use data.loader=memory"
            )
        epoch, step = divmod(start_step, steps_per_epoch)
        loader = DataLoader(
            dataset,
            batch_size=share,
            drop_last=True,
            num_workers=self.config.num_workers,
            collate_fn=_collate,
            worker_init_fn=_die_with_parent,
        )
        # Before the first iteration, and counted by us: StreamingDataLoader miscounts some collate results.
        dataset.load_state_dict(
            {
                "epoch": epoch,
                "sample_in_epoch": step * global_batch,
                "num_canonical_nodes": self.config.num_canonical_nodes,
                "shuffle_seed": seed,
                "initial_physical_nodes": place.world_size // place.local_world_size,
            }
        )
        while True:
            for batch in loader:
                if step == steps_per_epoch:
                    break
                step += 1
                yield batch
            step = 0


def _open_streaming(config: DataConfig, share: int, seed: int, place: RankEnvironment) -> Any:
    """Build under a lock of this node: two jobs that build at once race for shared-memory names."""
    from streaming import StreamingDataset  # heavy import (transformers, torchvision): only where it is used

    with open(Path(tempfile.gettempdir()) / "nvg-streaming.lock", "w") as lock:
        if place.local_rank == 0:
            fcntl.flock(lock, fcntl.LOCK_EX)
        barrier(place)  # the node's other ranks wait until their leader holds the lock
        dataset = StreamingDataset(
            local=config.path,
            remote=None,
            shuffle=True,
            shuffle_algo=config.shuffle_algo,
            shuffle_seed=seed,
            shuffle_block_size=config.shuffle_block_size,
            num_canonical_nodes=config.num_canonical_nodes,
            batch_size=share,
        )
        barrier(place)
    return dataset


def _collate(samples: list[dict[str, Any]]) -> Batch:
    tensors = {
        name: torch.from_numpy(np.stack([np.asarray(sample[name]) for sample in samples]).astype(np.int64))
        for name in ("label", "content_ids", "structure")
    }
    image = np.array([int(sample["image"]) for sample in samples], dtype=np.int64)
    return Batch(tensors=tensors, sample_ids=image)


def _die_with_parent(worker: int) -> None:
    """Loader processes of a killed rank would live on with their memory: Linux ends them with it."""
    pr_set_pdeathsig = 1
    ctypes.CDLL("libc.so.6", use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def generator_source(records: RecordDataset, config: DataConfig) -> BatchSource:
    """The source that ``config.loader`` names.

    Args:
        records: opened records; opening has checked every shard's size, which streaming does not.
        config: how they are read.

    Returns:
        Memory or streaming source.
    """
    if config.loader == "memory":
        return record_source(records, config)
    return StreamingSource(config, records.manifest)


def image_source(source: ImageSource, views_per_epoch: str = "one") -> ArraySource:
    """Images of the tokenizer's training, held in memory as bytes.

    Args:
        source: opened source; all its views are read once.
        views_per_epoch: "one" random view of each image per epoch, or "all".

    Returns:
        Source of {"image" (B, c, S, S) float32 in [-1, 1]}.

    Raises:
        UserError: the source does not fit, or too many of its files are bad.
    """
    config = source.config
    num_bytes = len(source) * config.num_views * config.image_size**2 * config.image_channels
    if num_bytes > MAX_IMAGE_BYTES_IN_MEMORY:
        raise UserError(
            f"the images of {config.path or config.kind} need {num_bytes / 2**30:.1f} GiB in memory, "
            f"the limit is {MAX_IMAGE_BYTES_IN_MEMORY / 2**30:.0f} GiB; lower "
            "source.num_views or source.image_size"
        )
    loaded: LoadedImages = load_images(source, range(config.num_views))

    def fetch(rows: np.ndarray) -> dict[str, Tensor]:
        return {"image": torch.from_numpy(to_model_range(loaded.images[rows]))}

    fingerprint = {
        "source_fingerprint": source.fingerprint,
        "split": config.split,
        "split_seed": config.seed,
        "image_size": config.image_size,
        "image_channels": config.image_channels,
        "num_views": config.num_views,
        "view_policy": config.view_policy,
        "num_rows": len(loaded.images),
        "views_per_epoch": views_per_epoch,
    }
    return ArraySource(_view_rows(loaded.indices, views_per_epoch), fetch, fingerprint)
