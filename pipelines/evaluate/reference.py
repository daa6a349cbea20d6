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
from eval.features.extractors import ExtractorConfig, ExtractorSpec, given_extractor, trained_extractor
from eval.pool.jobs import FeatureJob
from eval.pool.pool import ChunkPoolConfig, PoolResult, run_chunks
from eval.reference import FEATURES, SPATIAL, select_rows, write_reference
from eval.results import metric_protocol
from eval.scores.frechet import Gaussian, gather
from nvg.errors import UserError
from nvg.pixels import ImageArray
from pipelines.evaluate.images import SourceImages
from pipelines.sources import ImageSource, SkippedInput, SourceConfig, check_bad_inputs, load_images, open_source

READABLE = "readable_B"
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
        if not self.output:
            raise ValueError("output: found nothing, expected a folder")


def plan_reference(config: ReferenceRunConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    source, pool = config.source, config.pool
    return [
        f"open the {source.kind} source {source.path or ''}".rstrip() + f": {source.split}",
        f"features: {config.extractor_kind} "
        + (f"from {config.extractor_path}" if config.extractor_path else "trained on these images"),
        f"join or start Ray ({config.session.address}) and look at every image on {pool.num_actors} worker(s), "
        f"{pool.chunk_size} per chunk",
        f"write {FILE_NAME} in {config.output}" + (" with 10,000 images" if config.keep_images else ""),
    ]


def run_reference(config: ReferenceRunConfig, *, console: Console | None = None) -> Path:
    """Compute the statistics of a source, in one pass over its chunks; started again, it goes on where it was.

    Args:
        config: the images and the extractor.
        console: where progress is drawn.

    Returns:
        The reference file.

    Raises:
        UserError: images or weights are missing, or too many images cannot be read.
    """
    output = Path(config.output).expanduser().absolute()
    output.mkdir(parents=True, exist_ok=True)
    source = open_source(config.source)
    if len(source) < 2:
        raise UserError(f"source.split: found {len(source)} image(s) in {config.source.split!r}, expected at least two")
    extractor = given_extractor(config) or _trained(config, source)
    with cluster_session(config.session):
        pool = run_chunks(
            FeatureJob(images=SourceImages(source), extractor=extractor),
            len(source),
            config=config.pool,
            folder=output / "pool",
            title="Reference",
            console=console,
            wanted=(READABLE,),
        )
    readable_N = pool.arrays[READABLE]
    unreadable = [SkippedInput(source.keys[index], "no readable image") for index in np.flatnonzero(~readable_N)]
    check_bad_inputs([*source.skipped, *unreadable], source)
    rows = np.flatnonzero(readable_N)
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
        images=(len(chosen), _read(source, chosen)) if config.keep_images else None,
    )
    if console is not None:
        console.print(f"reference  {path}  ({len(rows):,} images)", highlight=False, soft_wrap=True)
    return path


def _trained(config: ReferenceRunConfig, source: ImageSource) -> ExtractorSpec:
    loaded = load_images(source)
    return trained_extractor(config, loaded.images, loaded.labels, len(source.class_names))


def _gaussian(pool: PoolResult, name: str, keep_N: NDArray[np.bool_]) -> Gaussian:
    return gather(_rows_of(pool, name, keep_N)).gaussian()


def _rows_of(pool: PoolResult, name: str, keep_N: NDArray[np.bool_]) -> Iterator[NDArray[Any]]:
    """Rows of one array that are wanted, chunk by chunk."""
    start = 0
    for chunk in pool.stream(name):
        yield chunk[keep_N[start : start + len(chunk)]]
        start += len(chunk)


def _read(source: ImageSource, rows: NDArray[np.int64]) -> Iterator[ImageArray]:
    for row in rows.tolist():
        yield source.read(row, 0)[None]
