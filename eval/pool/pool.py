"""A pool of Ray actors that computes something for the items 0, 1, 2, … of a set, chunk by chunk.

Item n belongs to chunk n // chunk_size. A chunk is always computed whole, in the same batches and with the same
number of threads, and what a job computes depends on the indices alone: so its bytes do not depend on which actor
computes it, on how many there are, or on how often one died. A finished chunk is one file; a run that was killed goes
on with the missing ones.

The Ray actors of a pool: each computes whole chunks and commits them; a chunk whose actor dies goes to another.

Size and shape of the pools.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cluster.files import write_atomically
from eval.pool.chunks import Arrays, join_chunks, read_chunk, write_chunk
from nvg.errors import UserError

BatchFunction = Callable[[NDArray[np.int64]], Arrays]
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ChunkPoolConfig:
    """Shape of a pool.

    Attributes:
        num_actors: workers that compute at the same time.
        chunk_size: items per file, the unit of resuming; a multiple of batch_size.
        batch_size: items computed together; part of the protocol, since it can move rounding.
        threads_per_actor: torch threads of each worker; part of the protocol too.
        cpus_per_actor: CPUs reserved in Ray for each worker; may be less than one on a small machine.
        gpus_per_actor: GPUs reserved for each worker; above 0 the worker computes on its GPU.
        max_tries: how often a chunk is begun before the run gives up on it.
    """

    num_actors: int = 1
    chunk_size: int = 250
    batch_size: int = 250
    threads_per_actor: int = 1
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    max_tries: int = 3

    def __post_init__(self) -> None:
        for name in ("num_actors", "chunk_size", "batch_size", "threads_per_actor", "max_tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.chunk_size % self.batch_size:
            raise ValueError(
                f"chunk_size: found {self.chunk_size}, expected a multiple of batch_size "
                f"({self.batch_size}), "
                "so that every batch has the same size"
            )
        if self.cpus_per_actor < 0 or self.gpus_per_actor < 0:
            raise ValueError(
                f"cpus_per_actor, gpus_per_actor: found {self.cpus_per_actor}, {self.gpus_per_actor}; "
                "expected numbers of at least 0"
            )

    @property
    def device(self) -> str:
        """Device a worker computes on."""
        return "cuda" if self.gpus_per_actor > 0 else "cpu"


@dataclass(frozen=True, kw_only=True)
class PoolConfig(ChunkPoolConfig):
    """Size and shape of the sampling pool.

    Attributes:
        num_samples: images wanted; a multiple of the class count gives exactly equal classes.
        seed: seed of all samples.
    """

    num_samples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 1:
            raise ValueError(f"num_samples: found {self.num_samples}, expected at least 1")


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


@dataclass(frozen=True, kw_only=True)
class PoolResult:
    """Everything a pool computed.

    Attributes:
        arrays: name to array, one row per item in order of the index; those that were asked for.
        folder: where the chunks lie.
        identity: what decides their bytes.
        key: its hash, which every chunk carries.
        names: all arrays of a chunk.
        num_items, chunk_size: how many items there are, and how many in a chunk.
        num_computed: chunks computed by this call.
        num_reused: chunks that were there already.
        num_deaths: workers that died in this call.
        seconds: wall time of this call.
    """

    arrays: Arrays
    folder: Path
    identity: dict[str, Any]
    key: str
    names: tuple[str, ...]
    num_items: int
    chunk_size: int
    num_computed: int
    num_reused: int
    num_deaths: int
    seconds: float

    def stream(self, name: str) -> Iterator[NDArray[Any]]:
        """One array of all items, chunk by chunk in order, for what does not fit into memory.

        Raises:
            PoolError: a chunk has vanished or is damaged.
        """
        for number, start in enumerate(range(0, self.num_items, self.chunk_size)):
            chunk = read_chunk(self.folder, number, self.names, self.key)
            if chunk is None:
                raise PoolError(f"chunk {number} of {self.folder} has vanished; start the same command again")
            yield chunk[name][: self.num_items - start]


def run_chunks(
    job: PoolJob,
    num_items: int,
    *,
    config: ChunkPoolConfig,
    folder: Path,
    title: str,
    console: Console | None = None,
    on_chunk: Callable[[int], None] | None = None,
    wanted: Sequence[str] | None = None,
) -> PoolResult:
    """Compute the arrays of all items, or take what earlier runs left.

    Ray must be initialised unless every chunk is there already. On several machines `folder` and the
    weights must lie on storage that all of them see.

    Args:
        job: what is computed.
        num_items: items wanted.
        config: shape of the pool.
        folder: parent of the pool's own folder, which is named after a hash of all that matters.
        title: what the progress bar says.
        console: where the bar is drawn; None takes the terminal. Nothing is drawn where there is none.
        on_chunk: called with the number of every chunk this run computes, after it is committed.
        wanted: names of the arrays that are brought into memory; None brings all.

    Returns:
        The wanted arrays in order.

    Raises:
        UserError: weights are missing or do not fit, or the cluster has too few CPUs or GPUs.
        PoolError: a chunk's workers died `max_tries` times.
    """
    began = time.perf_counter()
    identity = chunk_identity(job, config)
    text = json.dumps(identity, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    place = folder / key[:16]
    place.mkdir(parents=True, exist_ok=True)
    write_atomically(place / "pool.json", f"{json.dumps(identity, indent=2, sort_keys=True)}\n".encode())
    numbers = range(-(-num_items // config.chunk_size))
    missing = [number for number in numbers if read_chunk(place, number, job.names, key) is None]
    num_deaths = 0
    if missing:
        console = console or Console(stderr=True)
        with _progress(console) as progress:
            bar = progress.add_task(title, total=len(numbers) * config.chunk_size)
            progress.advance(bar, (len(numbers) - len(missing)) * config.chunk_size)

            def committed(number: int) -> None:
                progress.advance(bar, config.chunk_size)
                if on_chunk is not None:
                    on_chunk(number)

            num_deaths = compute_chunks(missing, (job, config, place.resolve(), key), config, committed)
    parts: list[Arrays] = []
    lost: list[int] = []
    for number in numbers:
        chunk = read_chunk(place, number, job.names, key)
        if chunk is None:
            lost.append(number)
        else:
            parts.append({name: chunk[name] for name in (job.names if wanted is None else wanted)})
    if lost:
        raise PoolError(
            f"chunks {lost[:10]} of {place} were committed by workers but cannot be read here; on several "
            "machines the output folder must lie on storage that all of them share"
        )
    return PoolResult(
        arrays=join_chunks(parts, num_items),
        folder=place,
        identity=identity,
        key=key,
        names=tuple(job.names),
        num_items=num_items,
        chunk_size=config.chunk_size,
        num_computed=len(missing),
        num_reused=len(numbers) - len(missing),
        num_deaths=num_deaths,
        seconds=time.perf_counter() - began,
    )


def chunk_identity(job: PoolJob, config: ChunkPoolConfig) -> dict[str, Any]:
    """Everything that decides the bytes of a chunk; the count of items and of workers is not among it.

    Args:
        job: what is computed.
        config: shape of the pool.

    Returns:
        JSON values.

    Raises:
        UserError: a weight file is missing.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "chunk_size": config.chunk_size,
        "batch_size": config.batch_size,
        "threads_per_actor": config.threads_per_actor,
        "device": config.device,
        "torch": torch.__version__,
        **job.identity(),
    }


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
