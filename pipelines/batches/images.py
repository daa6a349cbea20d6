"""Images of the tokenizer's training: held in memory, or decoded batch by batch; the same batches either way.

Row r of a source with V views is view r % V of image r // V. An image that turns out not to be readable is replaced by
the next one of the list that is, in memory as when it is met: a batch then depends on the files alone, so a resumed
run and a run of any number of ranks see the same, and nobody decodes a million files before the first step only to
find none bad. As everywhere, more than `max_bad_fraction` of bad inputs stop the run.

Shapes: B rows of this rank, N images, H, W side, C channels.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.ranks import Ranks
from nvg.bounds import refuse
from nvg.errors import UserError
from pipelines.batches.config import ImageLoadingConfig
from pipelines.batches.order import ArraySource, Batch, BatchSource, EpochSource, StepRows
from pipelines.sources import BadImage, ImageSource, SkippedInput, SourceConfig, check_bad_inputs, load_images
from pipelines.sources.source import split_rule
from pipelines.sources.views import say_changes

logger = logging.getLogger(__name__)

MAX_IMAGE_BYTES_IN_MEMORY = 8 * 2**30


def image_source(source: ImageSource, views_per_epoch: str, loading: ImageLoadingConfig) -> BatchSource:
    """The source that `loading.loader` names.

    Returns:
        Source of {"image" (B, C, H, W) uint8}.

    Raises:
        UserError: memory is asked for and does not suffice, or too many files are bad.
    """
    fresh = source.config.view_policy == "fresh_crop"
    fits = not fresh and _num_bytes(source) <= MAX_IMAGE_BYTES_IN_MEMORY
    if loading.loader == "memory" or (loading.loader == "auto" and fits):
        return memory_image_source(source, views_per_epoch)
    return LazyImageSource(source, views_per_epoch, loading)


def _num_bytes(source: ImageSource) -> int:
    config = source.config
    return len(source) * config.num_views * config.image_size**2 * config.image_channels


def memory_image_source(source: ImageSource, views_per_epoch: str) -> ArraySource:
    """All views of a source, decoded once and held as bytes; gives what `image_source` gives.

    Raises:
        UserError: the views do not fit or are new in each epoch, or too many files are bad.
    """
    config = source.config
    if config.view_policy == "fresh_crop":
        raise UserError("source.view_policy=fresh_crop has new views in each epoch; set loading.loader=lazy")
    num_bytes = _num_bytes(source)
    if num_bytes > MAX_IMAGE_BYTES_IN_MEMORY:
        raise UserError(
            f"the images of {config.path or config.kind} need {num_bytes / 2**30:.1f} GiB in memory, the limit is "
            f"{MAX_IMAGE_BYTES_IN_MEMORY / 2**30:.0f} GiB; set loading.loader=lazy, or lower source.num_views or "
            "source.image_size"
        )
    loaded = load_images(source, range(config.num_views))
    readable = loaded.indices[:: config.num_views]

    def fetch(rows_B: np.ndarray) -> dict[str, Tensor]:
        images_B, views_B = np.divmod(rows_B, config.num_views)
        stored_B = np.searchsorted(readable, images_B) % len(readable) * config.num_views + views_B
        return {"image": _planes(loaded.images[stored_B])}

    return ArraySource(_view_rows(source), fetch, _fingerprint(source, views_per_epoch), views_per_epoch)


class LazyImageSource(EpochSource):
    """Batches whose images are read and decoded by a few threads, a few batches ahead; order as in memory.

    No decoded image is held beyond its batch: memory is that of `prefetch_batches + 1` batches of bytes.
    """

    def __init__(self, source: ImageSource, views_per_epoch: str, loading: ImageLoadingConfig) -> None:
        super().__init__(_view_rows(source), _fingerprint(source, views_per_epoch), views_per_epoch)
        self._reader = _ReplacingReader(source)
        self._config, self._loading = source.config, loading

    def batches(self, *, start_step: int, global_batch: int, seed: int, ranks: Ranks) -> Iterator[Batch]:
        """This rank's batches from `start_step` on; reads no other rank's rows; never ends."""
        steps = self.steps(start_step=start_step, global_batch=global_batch, seed=seed, ranks=ranks)
        ahead: deque[tuple[StepRows, list[Future[np.ndarray]]]] = deque()
        pool = ThreadPoolExecutor(self._loading.num_threads, thread_name_prefix="images")
        try:
            while True:
                while len(ahead) <= self._loading.prefetch_batches:
                    step = next(steps)
                    ahead.append((step, self._submit(pool, step)))
                step, images = ahead.popleft()
                tensors = {"image": _planes(np.stack([image.result() for image in images]))}
                yield Batch(tensors=tensors, sample_ids=step.rows_B, global_rows=step.global_rows)
        finally:
            pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, step: StepRows) -> list[Future[np.ndarray]]:
        images_B, views_B = np.divmod(step.rows_B, self._config.num_views)
        if self._config.view_policy == "fresh_crop":
            views_B = step.epochs_B + 1
        return [
            pool.submit(self._reader.read, image, view)
            for image, view in zip(images_B.tolist(), views_B.tolist(), strict=True)
        ]


class _ReplacingReader:
    """Views of a source; an image that cannot be read is replaced by the next one that can. Safe for threads."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.skipped: dict[int, SkippedInput] = {}
        self._lock = threading.Lock()

    def read(self, index: int, view: int) -> np.ndarray:
        """One view, uint8 (H, W, C).

        Raises:
            UserError: too many images are bad, none is left, or a file cannot be reached.
        """
        num_images = len(self.source)
        for candidate in (number % num_images for number in range(index, index + num_images)):
            if candidate in self.skipped:
                self._check()  # the thread that found it may still be on its way to say that it is one too many
                continue
            try:
                image = self.source.read(candidate, view)
                say_changes(self.source.config)
                return image
            except BadImage as error:
                self._skip(candidate, str(error))
            except OSError as error:
                raise UserError(
                    f"{self.source.keys[candidate]} in {self.source.config.path}: cannot be reached any more: {error}; "
                    "bring it back and start again, the run goes on from its last checkpoint"
                ) from error
        raise UserError(f"source {self.source.config.path or self.source.config.kind}: no image could be read")

    def _skip(self, index: int, reason: str) -> None:
        with self._lock:
            if index not in self.skipped:
                self.skipped[index] = SkippedInput(self.source.keys[index], reason)
                logger.warning("%s: %s; the next readable image takes its place", self.source.keys[index], reason)
        self._check()

    def _check(self) -> None:
        with self._lock:
            check_bad_inputs([*self.source.skipped, *self.skipped.values()], self.source)


def check_loading(source: SourceConfig, loading: ImageLoadingConfig) -> None:
    """Refuse views that cannot be held.

    Raises:
        UserError: names both settings.
    """
    if source.view_policy == "fresh_crop" and loading.loader == "memory":
        expected = "lazy or auto, since the views of source.view_policy=fresh_crop are new in each epoch"
        raise refuse("loading.loader", loading.loader, expected, "set loading.loader to lazy or auto")


def _planes(images_BHWC: np.ndarray) -> Tensor:
    """Channel after channel, as training reads images."""
    return torch.from_numpy(np.moveaxis(images_BHWC, -1, 1).copy())


def _view_rows(source: ImageSource) -> np.ndarray:
    return np.arange(len(source) * source.config.num_views).reshape(-1, source.config.num_views)


def _fingerprint(source: ImageSource, views_per_epoch: str) -> dict[str, Any]:
    config = source.config
    return {
        "source_fingerprint": source.sized_fingerprint,
        "split": config.split,
        "split_seed": config.seed,  # decides views; it decided the split as well when the name was chosen
        **split_rule(config),
        "image_size": config.image_size,
        "image_channels": config.image_channels,
        "num_views": config.num_views,
        "view_policy": config.view_policy,
        **({"view_flip": True} if config.flip else {}),
        **config.decoding,
        "num_rows": len(source) * config.num_views,
        "views_per_epoch": views_per_epoch,
    }
