"""The sampling pool: N Ray actors draw class-balanced images and compute their features.

Sample n asks for class n mod num_classes and belongs to chunk n // chunk_size. A chunk is always computed
whole, in the same batches and with the same number of threads, and its noise depends on the sample
indices alone: so its bytes do not depend on which actor computes it, on how many there are, or on how
often one died. A finished chunk is one file; a run that was killed goes on with the missing ones.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from eval.chunks import Chunk, join_chunks, read_chunk, write_chunk
from eval.extractors import ExtractorSpec, build_extractor, extract
from eval.pool_config import PoolConfig
from eval.samplers import Sampler, SamplerSpec
from nvg.errors import UserError

SCHEMA_VERSION = 1


class PoolError(RuntimeError):
    """A chunk could not be computed although it was tried again."""


@dataclass(frozen=True, kw_only=True)
class PoolResult:
    """All samples of a pool.

    Attributes:
        samples: images, labels, indices, features and logits in order of the index.
        folder: where the chunks lie.
        identity: what decides their bytes.
        num_computed: chunks computed by this call.
        num_reused: chunks that were there already.
        num_deaths: workers that died in this call.
        seconds: wall time of this call.
    """

    samples: Chunk
    folder: Path
    identity: dict[str, Any]
    num_computed: int
    num_reused: int
    num_deaths: int
    seconds: float

    def images_sha256(self) -> str:
        """Hash of all images in order, as hex."""
        return hashlib.sha256(np.ascontiguousarray(self.samples.images_BHWC).tobytes()).hexdigest()


class ChunkWorker:
    """Computes and commits chunks; one per actor. Networks are loaded with the first chunk."""

    def __init__(self, spec: SamplerSpec, extractor: ExtractorSpec, config: PoolConfig, folder: Path, key: str) -> None:
        self._spec = spec
        self._extractor_spec = extractor
        self._config = config
        self._folder = folder
        self._key = key
        self._sampler: Sampler | None = None
        self._extractor: Any = None

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
        if self._sampler is None:
            self._sampler = self._spec.build(config.device)
            self._extractor = build_extractor(self._extractor_spec, device=config.device)
        start = number * config.chunk_size
        indices_N = torch.arange(start, start + config.chunk_size, dtype=torch.int64)
        labels_N = indices_N % self._spec.num_classes
        images, features, logits = [], [], []
        for rows in torch.arange(config.chunk_size).split(config.batch_size):
            images.append(self._sampler.draw(labels_N[rows], indices_N[rows]))
            layers = extract(self._extractor, images[-1], batch_size=config.batch_size)
            features.append(layers.features_NF)
            logits.append(layers.logits_NV)
        chunk = Chunk(
            images_BHWC=np.concatenate(images),
            labels_B=labels_N.numpy(),
            sample_indices_B=indices_N.numpy(),
            features_BF=np.concatenate(features),
            logits_BV=np.concatenate(logits),
        )
        write_chunk(self._folder, number, chunk, self._key)
        return number


def run_pool(
    spec: SamplerSpec,
    *,
    config: PoolConfig,
    extractor: ExtractorSpec,
    folder: Path,
    title: str = "Sampling",
    console: Console | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> PoolResult:
    """Draw the samples and compute their features, or take what earlier runs left.

    Ray must be initialised unless every chunk is there already. On several machines `folder` and the
    weights must lie on storage that all of them see.

    Args:
        spec: what to draw from.
        config: size and shape of the pool.
        extractor: what the features come from.
        folder: parent of the pool's own folder, which is named after a hash of all that matters.
        title: what the progress bar says.
        console: where the bar is drawn; None takes the terminal. Nothing is drawn where there is none.
        on_chunk: called with the number of every chunk this run computes, after it is committed.

    Returns:
        All samples in order.

    Raises:
        UserError: weights are missing or do not fit, or the cluster has too few CPUs or GPUs.
        PoolError: a chunk's workers died `max_tries` times.
    """
    began = time.perf_counter()
    identity = pool_identity(spec, config, extractor)
    text = json.dumps(identity, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    place = folder / key[:16]
    place.mkdir(parents=True, exist_ok=True)
    write_atomically(place / "pool.json", f"{json.dumps(identity, indent=2, sort_keys=True)}\n".encode())
    missing = [number for number in range(config.num_chunks) if read_chunk(place, number, key) is None]
    num_deaths = 0
    if missing:
        console = console or Console(stderr=True)
        with _progress(console) as progress:
            bar = progress.add_task(title, total=config.num_chunks * config.chunk_size)
            progress.advance(bar, (config.num_chunks - len(missing)) * config.chunk_size)

            def committed(number: int) -> None:
                progress.advance(bar, config.chunk_size)
                if on_chunk is not None:
                    on_chunk(number)

            num_deaths = _compute(missing, (spec, extractor, config, place.resolve(), key), config, committed)
    chunks = [read_chunk(place, number, key) for number in range(config.num_chunks)]
    lost = [number for number, chunk in enumerate(chunks) if chunk is None]
    if lost:
        raise PoolError(
            f"chunks {lost[:10]} of {place} were committed by workers but cannot be read here; on several "
            "machines the output folder must lie on storage that all of them share"
        )
    return PoolResult(
        samples=join_chunks([chunk for chunk in chunks if chunk is not None], config.num_samples),
        folder=place,
        identity=identity,
        num_computed=len(missing),
        num_reused=config.num_chunks - len(missing),
        num_deaths=num_deaths,
        seconds=time.perf_counter() - began,
    )


def pool_identity(spec: SamplerSpec, config: PoolConfig, extractor: ExtractorSpec) -> dict[str, Any]:
    """Everything that decides the bytes of a chunk; the count of samples and of workers is not among it.

    Args:
        spec: what is drawn from.
        config: size and shape of the pool.
        extractor: what the features come from.

    Returns:
        JSON values.

    Raises:
        UserError: a weight file is missing.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "sampler": spec.identity(),
        "extractor": {"kind": extractor.kind, "sha256": extractor.weights_hash()},
        "chunk_size": config.chunk_size,
        "batch_size": config.batch_size,
        "threads_per_actor": config.threads_per_actor,
        "device": config.device,
        "labels": "sample_index % num_classes",
        "torch": torch.__version__,
    }


def _compute(
    missing: list[int], arguments: tuple[Any, ...], config: PoolConfig, committed: Callable[[int], None]
) -> int:
    """Hand the chunks out; a chunk whose worker dies goes to another one. Returns how many workers died."""
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


def _check_resources(config: PoolConfig) -> None:
    import ray

    if not ray.is_initialized():
        raise UserError("The sampling pool found no Ray session; open one with cluster.session.cluster_session")
    have = ray.cluster_resources()
    for name, each in (("CPU", config.cpus_per_actor), ("GPU", config.gpus_per_actor)):
        needed = each * config.num_actors
        if needed > have.get(name, 0) + 1e-9:
            raise UserError(
                f"pool.num_actors: {config.num_actors} workers of {each:g} {name} need {needed:g}, the "
                "cluster has "
                f"{have.get(name, 0):g}; make num_actors or {name.lower()}s_per_actor smaller"
            )


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
