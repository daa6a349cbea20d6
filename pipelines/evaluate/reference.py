"""`nvg eval reference`: statistics of any image set, in the format of ADM's reference files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from cluster.session import SessionConfig, cluster_session
from eval.features import ExtractorConfig
from eval.pool.jobs import FeatureJob
from eval.pool.pool import ChunkPoolConfig, PoolResult, run_chunks
from eval.reference import FEATURES, SPATIAL, require_images, select_rows, write_reference
from eval.results import metric_protocol
from eval.scores.frechet import Gaussian, gather
from pipelines.evaluate.config import make_folder, require
from pipelines.evaluate.images import SourceImages, check_readable, describe_features, describe_source, extractor_for
from pipelines.evaluate.table import print_file
from pipelines.sources import SourceConfig, open_source

_READABLE = "readable_B"
FILE_NAME = "reference.npz"


@dataclass(frozen=True, kw_only=True)
class ReferenceRunConfig(ExtractorConfig):
    """Of which images, by which extractor.

    Attributes:
        source: the images; view 0 of each image of its split. Where a feature network has to be trained, it learns from
            the same images.
        keep_images: also store the images that stand for the manifold (at most 10,000) as `arr_0`, so that ADM's own
            evaluator can read the file.
        pool: shape of the pool.
        session: the Ray cluster to start or join.
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    keep_images: bool = False
    pool: ChunkPoolConfig = field(default_factory=lambda: ChunkPoolConfig(chunk_size=1000, batch_size=50))
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "a folder", "output")
        self.source.keep_apart("output", self.output)


def plan_reference(config: ReferenceRunConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    pool = config.pool
    return [
        describe_source(config.source, config.source.split),
        describe_features(config, "these images"),
        f"join or start Ray ({config.session.address}) and look at every image on {pool.num_actors} worker(s), "
        f"{pool.chunk_size} per chunk",
        f"write {FILE_NAME} in {config.output}" + (" with 10,000 images" if config.keep_images else ""),
    ]


def run_reference(config: ReferenceRunConfig, *, console: Console | None = None) -> Path:
    """Compute the statistics of a source, in one pass over its chunks; started again, it goes on where it was.

    Returns:
        The reference file.

    Raises:
        UserError: images or weights are missing, or too many images cannot be read.
    """
    output = make_folder(config.output)
    source = open_source(config.source)
    name = f"source: split {config.source.split} of {config.source.path or config.source.kind}"
    require_images(len(source), name)
    extractor = extractor_for(config, config.source)
    with cluster_session(config.session):
        pool = run_chunks(
            FeatureJob(images=SourceImages(source), extractor=extractor),
            len(source),
            config=config.pool,
            folder=output / "pool",
            title="Reference",
            console=console,
            wanted=(_READABLE,),
        )
    readable_N = pool.arrays[_READABLE]
    check_readable(source, readable_N)
    rows = np.flatnonzero(readable_N)
    require_images(len(rows), f"{name}, readable ones")
    chosen = rows[select_rows(len(rows))]
    path = output / FILE_NAME
    write_reference(
        path,
        pool=_gaussian(pool, FEATURES, readable_N),
        spatial=_gaussian(pool, SPATIAL, readable_N) if SPATIAL in pool.names else None,
        features_MF=np.concatenate(list(_rows_of(pool, FEATURES, np.isin(np.arange(len(source)), chosen)))),
        facts={
            "images": pool.identity["images"],
            "num_images": len(rows),
            "image_size": config.source.image_size,
            **metric_protocol(extractor),
        },
        images=(len(chosen), (source.read(row, 0)[None] for row in chosen.tolist())) if config.keep_images else None,
    )
    if console is not None:
        print_file(console, "reference", path, f"  ({len(rows):,} images)")
    return path


def _gaussian(pool: PoolResult, name: str, keep_N: NDArray[np.bool_]) -> Gaussian:
    return gather(_rows_of(pool, name, keep_N)).gaussian()


def _rows_of(pool: PoolResult, name: str, keep_N: NDArray[np.bool_]) -> Iterator[NDArray[Any]]:
    """Rows of one array that are wanted, chunk by chunk."""
    start = 0
    for chunk in pool.stream(name):
        yield chunk[keep_N[start : start + len(chunk)]]
        start += len(chunk)
