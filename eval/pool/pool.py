"""A pool of Ray actors that computes something for the items 0, 1, 2, … of a set, chunk by chunk.

Item n belongs to chunk n // chunk_size. A chunk is always computed whole, in the same batches and with the same
number of threads, and what a job computes depends on the indices alone: so its bytes do not depend on which actor
computes it, on how many there are, or on how often one died. A finished chunk is one file; a run that was killed goes
on with the missing ones.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from cluster.actors import PoolEvent, UnitWorker, require_resources, run_units
from cluster.files import write_atomically
from cluster.progress import ProgressBars
from eval.pool.chunks import Arrays, join_chunks, read_chunk, write_chunk
from eval.scores.manifold import LEAST_IMAGES
from nvg.bounds import at_least, check_fields, refuse
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

    num_actors: int = at_least(1, 1)
    chunk_size: int = at_least(1, 250)
    batch_size: int = at_least(1, 250)
    threads_per_actor: int = at_least(1, 1)
    cpus_per_actor: float = at_least(0, 1.0)
    gpus_per_actor: float = at_least(0, 0.0)
    max_tries: int = at_least(1, 3)

    def __post_init__(self) -> None:
        check_fields(self, "pool")
        if self.chunk_size % self.batch_size:
            raise refuse(
                "pool.chunk_size",
                self.chunk_size,
                f"a multiple of batch_size {self.batch_size}, so that every batch has the same size",
            )

    @property
    def device(self) -> str:
        """Device a worker computes on."""
        return "cuda" if self.gpus_per_actor > 0 else "cpu"


@dataclass(frozen=True, kw_only=True)
class PoolConfig(ChunkPoolConfig):
    """Size and shape of the sampling pool.

    Attributes:
        num_samples: images wanted; a multiple of the class count gives exactly equal classes. Fewer have no precision.
        seed: seed of all samples.
    """

    num_samples: int = at_least(LEAST_IMAGES, 2000)
    seed: int = at_least(0, 0)


class PoolError(UserError):
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


class ChunkWorker(UnitWorker):
    """Computes and commits chunks. Networks are loaded with the first chunk."""

    def __init__(self, job: PoolJob, config: ChunkPoolConfig, folder: Path, key: str) -> None:
        self._job = job
        self._config = config
        self._folder = folder
        self._key = key
        self._batch: BatchFunction | None = None

    def compute(self, number: int) -> int:
        """Compute one chunk and write it; returns its number.

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


def _compute_chunks(
    missing: list[int], config: ChunkPoolConfig, arguments: dict[str, Any]
) -> Generator[PoolEvent, None, None]:
    """Have actors compute chunks; yields the event of each one that is on disk."""
    cpus, gpus, threads = config.cpus_per_actor, config.gpus_per_actor, str(config.threads_per_actor)
    each = {"CPU": ("pool.cpus_per_actor", cpus), "GPU": ("pool.gpus_per_actor", gpus)}
    require_resources(each, "pool.num_actors", config.num_actors)
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    events = run_units(
        ChunkWorker,
        {"config": config, **arguments},
        dict.fromkeys(missing, ()),
        num_actors=config.num_actors,
        max_tries=config.max_tries,
        fatal=Exception,
        options={"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": environment}},
    )
    with closing(events):
        for event in events:
            if event.kind == "failed":
                raise PoolError(
                    f"chunk {event.unit}: {config.max_tries} workers died while computing it (last: {event.reason}); "
                    "finished chunks are kept. Look for a lack of memory, or make batch_size smaller"
                )
            if event.kind == "committed":
                yield event


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
        num_computed, num_reused: chunks that this call computed, and that were there already.
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
        folder: parent of the pool's own folder, which is named after a hash of all that matters.
        title: what the progress bar says.
        console: where the bar is drawn; None takes the terminal.
        on_chunk: called with the number of every chunk this run computes, after it is committed.
        wanted: names of the arrays that are brought into memory; None brings all.

    Returns:
        The wanted arrays in order.

    Raises:
        UserError: weights are missing or do not fit.
        ClusterError: there is no Ray session, or the cluster has too few CPUs or GPUs.
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
        total, done = len(numbers) * config.chunk_size, (len(numbers) - len(missing)) * config.chunk_size
        arguments = {"job": job, "folder": place.resolve(), "key": key}
        with (
            ProgressBars({title: total}, completed={title: done}, unit="images", console=console) as bars,
            closing(_compute_chunks(missing, config, arguments)) as committed,
        ):
            for event in committed:
                done += config.chunk_size
                num_deaths = event.num_deaths
                bars.update(title, done)
                if on_chunk is not None:
                    on_chunk(event.unit)
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
    """Everything that decides the bytes of a chunk, as JSON; the count of items and of workers is not among it.

    Raises:
        UserError: a weight file is missing.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "chunk_size": config.chunk_size,
        "batch_size": config.batch_size,
        "threads_per_actor": config.threads_per_actor,
        "device": config.device,
        # Before there was a choice, cuDNN rounded convolutions as it liked.
        **({} if config.device == "cpu" else {"tf32": "where precision is tf32"}),
        "torch": torch.__version__,
        **job.identity(),
    }
