"""What a step is given: this rank's rows and their noise, made ready by one thread while the step before runs.

The rows follow from the order of the data, the noise of a row from (seed, step, its place in the global batch). So a
step's input is the same whenever and for however many ranks it is made, a rank draws no other's noise, and what the
host has to do for a step costs no time of a device that is busy with the one before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cluster.ranks import Ranks
from nvg.pixels import scale_levels
from pipelines.batches.order import Batch, BatchSource
from pipelines.train.task import Objective

MicroBatch = tuple[dict[str, Tensor], dict[str, Tensor]]  # rows of the data, rows of the noise
Item = TypeVar("Item")
_LONGEST_WAIT_S = 1.0
_PATIENCE_S = 10.0  # with a source that is still reading when the run ends
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """One rank's input of one step, on the host.

    Attributes:
        sample_ids: (B,) int64 row numbers in the data set, named when a loss is not finite.
        micro_batches: in order; pinned where a GPU fetches them.
    """

    sample_ids: np.ndarray
    micro_batches: list[MicroBatch]


class Feed:
    """Makes the inputs of a rank's steps.

    Args:
        objective: draws the noise.
        global_batch: images of a step.
        num_micro: micro batches of a rank in a step.
        ranks: this rank.
    """

    def __init__(self, objective: Objective, *, global_batch: int, num_micro: int, ranks: Ranks) -> None:
        self._objective, self._global_batch, self._ranks = objective, global_batch, ranks
        self._size = global_batch // ranks.world_size // num_micro

    def made_ahead(
        self, source: BatchSource, *, seed: int, first_step: int, last_step: int
    ) -> AbstractContextManager[Iterator[StepInput]]:
        """Inputs of the steps `first_step` .. `last_step` - 1, counted from 0; each is made while the last is in use.

        What goes wrong with an input is raised where its step asks for it. The thread ends with the block.

        Args:
            source: the data.
            seed: of their order and of the noise.
            first_step, last_step: of the steps.
        """
        # Here and not in the thread, since a source may have to meet the other ranks before it gives anything.
        stream = source.batches(start_step=first_step, global_batch=self._global_batch, seed=seed, ranks=self._ranks)

        def made() -> Generator[StepInput]:
            try:
                for step, batch in enumerate(islice(stream, last_step - first_step), start=first_step):
                    yield self.prepared(batch, seed=seed, step=step)
            finally:
                if isinstance(stream, Generator):
                    stream.close()  # its threads and processes end here, even where an error still holds its frames

        return one_ahead(made())

    def prepared(self, batch: Batch, *, seed: int, step: int) -> StepInput:
        """The host's part of an input, in any thread.

        Args:
            batch: this rank's rows.
            seed, step: what their noise is drawn from.
        """
        draw_noise, rows = self._objective.draw_noise, batch.global_rows
        noise = draw_noise(seed=seed, step=step, global_batch=self._global_batch, rows=rows)
        data, noise = self._pinned(batch.tensors), self._pinned(noise)
        micro_batches = [
            (_rows(data, first, self._size), _rows(noise, first, self._size))
            for first in range(0, len(batch.sample_ids), self._size)
        ]
        return StepInput(sample_ids=batch.sample_ids, micro_batches=micro_batches)

    def _pinned(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Where a GPU can fetch them beside the host's work, but for what stays on the host."""
        if self._ranks.device.type != "cuda":
            return tensors
        torch.cuda.set_device(self._ranks.device)  # a thread begins with the first GPU, whosever that is
        stays = self._objective.host_noise
        return {name: value if name in stays else value.pin_memory() for name, value in tensors.items()}

    def on_device(self, given: StepInput) -> Iterator[MicroBatch]:
        """The micro batches where they are used; levels of pixels (uint8) as the networks take them."""
        for data, noise in given.micro_batches:
            moved = {name: self._moved(value) for name, value in data.items()}
            levels = {name: scale_levels(value) for name, value in moved.items() if value.dtype == torch.uint8}
            stays = self._objective.host_noise
            yield (
                moved | levels,
                {name: value if name in stays else self._moved(value) for name, value in noise.items()},
            )

    def _moved(self, value: Tensor) -> Tensor:
        return value.to(self._ranks.device, non_blocking=True)


def _rows(tensors: dict[str, Tensor], first: int, count: int) -> dict[str, Tensor]:
    return {name: value[first : first + count] for name, value in tensors.items()}


@contextmanager
def one_ahead(items: Generator[Item]) -> Iterator[Iterator[Item]]:
    """The items of a generator, none of them None, each made by a thread while its user has the one before.

    The generator runs and is closed in that thread alone, which ends with the block. An exception of the generator is
    raised where its item is asked for.
    """
    asked: SimpleQueue[Future[Item | None] | None] = SimpleQueue()

    def make() -> None:
        while (future := asked.get()) is not None:
            try:
                future.set_result(next(items, None))
            except BaseException as error:  # whatever it is, it is for the one who waits
                future.set_exception(error)
        items.close()

    def ask() -> Future[Item | None]:
        future: Future[Item | None] = Future()
        asked.put(future)
        return future

    def made(future: Future[Item | None]) -> Item | None:
        while not future.done():  # a Ctrl-C in the moment before a wait begins does not end it: so waits are short
            wait([future], timeout=_LONGEST_WAIT_S)
        return future.result()

    def in_turn() -> Iterator[Item]:
        future = ask()
        while (item := made(future)) is not None:
            future = ask()
            yield item

    # Not waited for by an interpreter that ends: a source that hangs must not keep a process that was told to end.
    thread = threading.Thread(target=make, name="feed", daemon=True)
    thread.start()
    try:
        yield in_turn()
    finally:
        asked.put(None)
        thread.join(_PATIENCE_S)
        if thread.is_alive():
            logger.warning("the data of the next step are still being read after %g s; they are left", _PATIENCE_S)
