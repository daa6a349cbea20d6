"""What an actor works on, and how its stages run side by side: read and decode, encode, cluster and quantise, write."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.precompute.config import PrecomputeConfig
from pipelines.sources import BadImage, ImageSource

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class View:
    """One image view on its way into a batch: uint8 pixels (S, S, channels)."""

    image: int
    view: int
    pixels: np.ndarray


def read_batches(
    source: ImageSource, indices: np.ndarray, config: PrecomputeConfig, skipped: list[dict[str, str]]
) -> Generator[list[View], None, None]:
    """Batches of image views in the unit's order.

    Args:
        source: Where the images are read.
        indices: int64, the source indices of the unit's images.
        config: Batch size, threads, number of views.
        skipped: Images that cannot be decoded are added, with the reason.

    Yields:
        Full batches; the last one may be shorter.

    Raises:
        OSError: An input cannot be read.
    """
    views = range(config.source.num_views)

    def read(index: int) -> list[View] | BadImage:
        try:
            return [View(index, view, pixels) for view, pixels in enumerate(source.read_views(index, views))]
        except BadImage as error:
            return error

    batch: list[View] = []
    for index, result in _read_ahead(read, indices, config):
        if isinstance(result, BadImage):
            skipped.append({"key": source.keys[index], "reason": str(result)})
            continue
        batch += result
        while len(batch) >= config.batch_size:
            yield batch[: config.batch_size]
            del batch[: config.batch_size]
    if batch:
        yield batch


def _read_ahead(read: Callable[[int], Any], indices: np.ndarray, config: PrecomputeConfig) -> Iterator[tuple[int, Any]]:
    """Call `read` on threads, `BATCHES_AHEAD` batches ahead of the encoder, and yield in order."""
    ahead = max(2 * config.threads_per_actor, -(-BATCHES_AHEAD * config.batch_size // config.source.num_views))
    waiting: deque[tuple[int, Future]] = deque()
    with ThreadPoolExecutor(config.threads_per_actor, thread_name_prefix="decode") as threads:
        try:
            for index in map(int, indices):
                waiting.append((index, threads.submit(read, index)))
                if len(waiting) > ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for index, future in waiting:
                yield index, future.result()
        finally:  # an encoder that failed waits for nothing that is not needed any more
            threads.shutdown(cancel_futures=True)


def in_stages(items: Iterable[Any], stages: Sequence[Callable[[Any], Any]]) -> Iterator[Any]:
    """Pass items through functions, each function in a thread of its own: item 2 is encoded while item 1 is written.

    Order is kept and every function sees the items one after the other, so the results are those of plain calls; at
    most `BATCHES_AHEAD` items a stage are on their way.

    Args:
        items: Iterated in the calling thread.
        stages: Applied from first to last.

    Yields:
        What the last function returns for each item.

    Raises:
        Exception: The first one of an item or function; later items are dropped.
    """
    threads = [ThreadPoolExecutor(1, thread_name_prefix=stage.__name__) for stage in stages]
    waiting: deque[Future] = deque()
    try:
        for item in items:
            future: Future = threads[0].submit(stages[0], item)
            for thread, stage in zip(threads[1:], stages[1:], strict=True):
                future = thread.submit(_after, stage, future)
            waiting.append(future)
            if len(waiting) > BATCHES_AHEAD * len(stages):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for thread in threads:
            thread.shutdown(cancel_futures=True)


def _after(stage: Callable[[Any], Any], before: Future) -> Any:
    return stage(before.result())
