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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

from cluster.manifest import write_atomically
from eval.chunk_workers import PoolError, PoolJob, compute_chunks
from eval.pool.chunks import Arrays, join_chunks, read_chunk
from eval.pool_config import ChunkPoolConfig

SCHEMA_VERSION = 1


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
