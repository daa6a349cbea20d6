"""The sampling pool: N Ray actors draw class-balanced images and compute their features.

Sample n asks for class n mod num_classes; its noise depends on its index alone. How chunks are handed out, kept and
taken up again is in `eval.pool.pool`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from eval.chunk_workers import BatchFunction
from eval.features.extractors import ExtractorSpec, build_extractor, feature_arrays, feature_names
from eval.pixels import ImageArray
from eval.pool.chunks import Arrays, arrays_digest
from eval.pool.pool import PoolResult, chunk_identity, run_chunks
from eval.pool.samplers import SamplerSpec
from eval.pool_config import PoolConfig

IMAGES = "images_BHWC"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The results of consecutive samples."""

    images_BHWC: ImageArray
    labels_B: NDArray[np.int64]
    sample_indices_B: NDArray[np.int64]
    features_BF: NDArray[np.float32]
    logits_BV: NDArray[np.float32]

    def digest(self) -> str:
        """SHA-256 over all arrays, as hex."""
        return arrays_digest(vars(self), tuple(vars(self)))


@dataclass(frozen=True, kw_only=True)
class SamplePool(PoolResult):
    """All samples of a pool."""

    @property
    def samples(self) -> Samples:
        """Images, labels, indices, features and logits in order of the index."""
        return Samples(**{name: self.arrays[name] for name in Samples.__dataclass_fields__})

    def images_sha256(self) -> str:
        """Hash of all images in order, as hex."""
        return hashlib.sha256(np.ascontiguousarray(self.samples.images_BHWC).tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class SamplingJob:
    """Draw samples and compute their features.

    Attributes:
        spec: what to draw from.
        extractor: what the features come from.
        keep_images: False leaves the images out of the chunks: 50,000 of 256 pixels are 10 GB.
    """

    spec: SamplerSpec
    extractor: ExtractorSpec
    keep_images: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Arrays of a chunk; see `Samples`, and `eval.features.extractors.feature_arrays`."""
        images = (IMAGES,) if self.keep_images else ()
        return (*images, "labels_B", "sample_indices_B", *feature_names(self.extractor.kind))

    def identity(self) -> dict[str, Any]:
        """Hashes of the weight files and every setting of the draw.

        Raises:
            UserError: a weight file is missing.
        """
        return {
            "sampler": self.spec.identity(),
            "extractor": {"kind": self.extractor.kind, "sha256": self.extractor.weights_hash()},
            "labels": "sample_index % num_classes",
            **({} if self.keep_images else {"images": "not kept"}),
        }

    def build(self, device: str, batch_size: int) -> BatchFunction:
        """Load generators and extractor.

        Raises:
            ValueError: weights are missing or do not fit.
        """
        sampler = self.spec.build(device)
        extractor = build_extractor(self.extractor, device=device)

        def draw(indices_B: NDArray[np.int64]) -> Arrays:
            labels_B = indices_B % self.spec.num_classes
            images_BHWC = sampler.draw(torch.from_numpy(labels_B), torch.from_numpy(indices_B))
            arrays: Arrays = {"labels_B": labels_B, "sample_indices_B": indices_B}
            arrays |= feature_arrays(extractor, images_BHWC, batch_size=batch_size)
            return {**arrays, IMAGES: images_BHWC} if self.keep_images else arrays

        return draw


def run_pool(
    spec: SamplerSpec,
    *,
    config: PoolConfig,
    extractor: ExtractorSpec,
    folder: Path,
    title: str = "Sampling",
    console: Console | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> SamplePool:
    """Draw the samples and compute their features, or take what earlier runs left.

    Args:
        spec: what to draw from.
        config: size and shape of the pool.
        extractor: what the features come from.
        folder, title, console, on_chunk: see `eval.pool.pool.run_chunks`.

    Returns:
        All samples in order.

    Raises:
        UserError: weights are missing or do not fit, or the cluster has too few CPUs or GPUs.
        PoolError: a chunk's workers died `max_tries` times.
    """
    result = run_chunks(
        SamplingJob(spec=spec, extractor=extractor),
        config.num_samples,
        config=config,
        folder=folder,
        title=title,
        console=console,
        on_chunk=on_chunk,
    )
    return SamplePool(**vars(result))


def pool_identity(spec: SamplerSpec, config: PoolConfig, extractor: ExtractorSpec) -> dict[str, Any]:
    """Everything that decides the bytes of the samples; see `eval.pool.pool.chunk_identity`."""
    return chunk_identity(SamplingJob(spec=spec, extractor=extractor), config)
