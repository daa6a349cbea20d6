"""The Ray actors of a pool: each computes whole chunks and commits them; a chunk whose actor dies goes to another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from eval.pool.chunks import Arrays, join_chunks, write_chunk
from eval.pool_config import ChunkPoolConfig
from nvg.errors import UserError

BatchFunction = Callable[[NDArray[np.int64]], Arrays]


class PoolError(RuntimeError):
    """A chunk could not be computed although it was tried again."""


class PoolJob(Protocol):
    """What a pool computes; it is sent to every actor, so it names weights and does not hold them."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays of a chunk, in the order in which they are hashed."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything that decides the arrays, as JSON values: hashes, settings, seed."""
        ...

    def build(self, device: str, batch_size: int) -> BatchFunction:
        """Load what is needed onto a device.

        Returns:
            From the indices of a batch to its arrays, one row per index; it must also take indices past the last item.
        """
        ...


class ChunkWorker:
    """Computes and commits chunks; one per actor. Networks are loaded with the first chunk."""

    def __init__(self, job: PoolJob, config: ChunkPoolConfig, folder: Path, key: str) -> None:
        self._job = job
        self._config = config
        self._folder = folder
        self._key = key
        self._batch: BatchFunction | None = None

    def compute(self, number: int) -> int:
        """Compute one chunk and write it.

        Args:
            number: the chunk's number.

        Returns:
            The number.

        Raises:
            ValueError: weights are missing or do not fit.
            OSError: the chunk cannot be written.
        """
        config = self._config
        torch.set_num_threads(config.threads_per_actor)
        if self._batch is None:
            self._batch = self._job.build(config.device, config.batch_size)
        start = number * config.chunk_size
        indices_N = np.arange(start, start + config.chunk_size, dtype=np.int64)
        batches = [self._batch(rows) for rows in np.split(indices_N, config.chunk_size // config.batch_size)]
        write_chunk(self._folder, number, join_chunks(batches, config.chunk_size), self._job.names, self._key)
        return number


def compute_chunks(
    missing: list[int], arguments: tuple[Any, ...], config: ChunkPoolConfig, committed: Callable[[int], None]
) -> int:
    """Hand chunks out to actors until all are committed.

    Args:
        missing: numbers of the chunks.
        arguments: of `ChunkWorker`.
        config: shape of the pool.
        committed: called with the number of each chunk that is on disk.

    Returns:
        How many workers died.

    Raises:
        UserError: the cluster has too few CPUs or GPUs.
        PoolError: a chunk's workers died `max_tries` times.
    """
    import ray  # reads its environment when it is imported
    from ray.exceptions import RayActorError

    _check_resources(config)
    threads = str(config.threads_per_actor)
    worker = ray.remote(ChunkWorker).options(
        num_cpus=config.cpus_per_actor,
        num_gpus=config.gpus_per_actor,
        max_restarts=0,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}},
    )
    waiting = deque(missing)
    tries = dict.fromkeys(missing, 0)
    idle = [worker.remote(*arguments) for _ in range(min(config.num_actors, len(missing)))]
    busy: dict[Any, tuple[int, Any]] = {}
    num_deaths = 0
    try:
        while waiting or busy:
            while waiting and idle:
                number, actor = waiting.popleft(), idle.pop()
                tries[number] += 1
                busy[actor.compute.remote(number)] = (number, actor)
            done, _ = ray.wait(list(busy), num_returns=1)
            number, actor = busy.pop(done[0])
            try:
                committed(ray.get(done[0]))
                idle.append(actor)
            except RayActorError as error:
                num_deaths += 1
                ray.kill(actor)
                if tries[number] >= config.max_tries:
                    raise PoolError(
                        f"chunk {number}: {tries[number]} workers died while computing it (last: {error}); "
                        "finished chunks are kept. Look for a lack of memory, or make batch_size smaller"
                    ) from error
                waiting.appendleft(number)
                idle.append(worker.remote(*arguments))
    finally:
        for actor in [*idle, *(actor for _, actor in busy.values())]:
            ray.kill(actor)
    return num_deaths


def _check_resources(config: ChunkPoolConfig) -> None:
    import ray

    if not ray.is_initialized():
        raise UserError("The pool found no Ray session; open one with cluster.session.cluster_session")
    have = ray.cluster_resources()
    for name, each in (("CPU", config.cpus_per_actor), ("GPU", config.gpus_per_actor)):
        needed = each * config.num_actors
        if needed > have.get(name, 0) + 1e-9:
            raise UserError(
                f"pool.num_actors: {config.num_actors} workers of {each:g} {name} need {needed:g}, the "
                "cluster has "
                f"{have.get(name, 0):g}; make num_actors or {name.lower()}s_per_actor smaller"
            )
