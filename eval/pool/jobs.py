"""What a pool computes for each item: samples, reconstructions, or features of real or given images.

Sample n asks for class n mod num_classes; its noise depends on its index alone. How chunks are handed out, kept and
taken up again is in `eval.pool.pool`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from eval.features.extractors import ExtractorSpec, build_extractor, extract, feature_arrays, feature_names
from eval.image_files import ImageReader
from eval.image_sets import Features
from eval.pool.chunks import Arrays, arrays_digest, read_chunk, write_chunk
from eval.pool.pool import BatchFunction, PoolConfig, PoolResult, run_chunks
from eval.pool.samplers import SamplerSpec
from eval.results import threads
from eval.scores.reconstruction import load_lpips, lpips_hash, pair_scores, reconstruct_with_ids
from nvg.checkpoints import load_network, weights_hash
from nvg.pixels import ImageArray
from nvg.precision import settle_precision
from nvg.tokenizer import Tokenizer

IMAGES = "images_BHWC"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The results of consecutive samples."""

    images_BHWC: ImageArray
    labels_B: NDArray[np.int64]
    sample_indices_B: NDArray[np.int64]
    features_BF: NDArray[np.float32]
    logits_BV: NDArray[np.float32] | None = None

    def digest(self) -> str:
        """SHA-256 over all arrays, as hex."""
        arrays = {name: array for name, array in vars(self).items() if array is not None}
        return arrays_digest(arrays, tuple(arrays))


@dataclass(frozen=True, kw_only=True)
class SamplePool(PoolResult):
    """All samples of a pool."""

    @property
    def samples(self) -> Samples:
        """Images, labels, indices, features and, where the extractor has them, logits in order of the index."""
        return Samples(**{name: self.arrays[name] for name in Samples.__dataclass_fields__ if name in self.arrays})

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
            "extractor": self.extractor.identity(),
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

    Args and what it raises: see `eval.pool.pool.run_chunks`.
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


@dataclass(frozen=True, kw_only=True)
class ReconstructionJob:
    """Reconstruct images, score each and note the ids it used.

    Attributes:
        images: the reference set.
        tokenizer: folder of the tokenizer's weights.
        tokenizer_weights: which of them: `ema` or `model`.
        extractor: where the features for rFID come from.
        lpips: trunk (`vgg`, `alex`) to the file of its weights; a trunk that is not there is left out.
        rounding: see `nvg.pixels.to_uint8`.
        precision: of the tokenizer, see `nvg.precision`; what is scored is computed in fp32.
    """

    images: ImageReader
    tokenizer: str
    tokenizer_weights: str = "ema"
    extractor: ExtractorSpec
    lpips: Mapping[str, str] = field(default_factory=dict)
    rounding: str = "release"
    precision: Literal["fp32", "tf32"] = "fp32"

    @property
    def names(self) -> tuple[str, ...]:
        """Arrays of a chunk."""
        scores = ("psnr_B", "ssim_B", *(f"lpips_{trunk}_B" for trunk in sorted(self.lpips)))
        return ("readable_B", "content_ids_BT", "features_BF", "original_features_BF", *scores)

    def identity(self) -> dict[str, Any]:
        """Hashes of images and weights, rounding and precision.

        Raises:
            UserError: a weight file is missing.
        """
        return {
            "images": self.images.identity(),
            "tokenizer": {
                "sha256": weights_hash(self.tokenizer, self.tokenizer_weights),
                "weights": self.tokenizer_weights,
            },
            "extractor": self.extractor.identity(),
            "lpips_sha256": {trunk: lpips_hash(trunk, self.lpips[trunk]) for trunk in sorted(self.lpips)},
            "rounding": self.rounding,
            **({} if self.precision == "fp32" else {"precision": self.precision}),
        }

    def build(self, device: str, batch_size: int) -> BatchFunction:
        """Load tokenizer, extractor and LPIPS.

        Raises:
            UserError: weights are missing or do not fit.
        """
        settle_precision(self.precision, device)
        tokenizer = load_network(Tokenizer, self.tokenizer, name=self.tokenizer_weights).to(device)
        extractor = build_extractor(self.extractor, device=device)
        distances = {trunk: network.to(device) for trunk, network in load_lpips(self.lpips).items()}

        def compute(indices_B: NDArray[np.int64]) -> Arrays:
            # The last chunk is filled up with the first images, so that its batches are as large as all others.
            images_BHWC, readable_B = self.images.read(indices_B % len(self.images))
            content_ids_BT, copies_BHWC = reconstruct_with_ids(tokenizer, images_BHWC, self.rounding)
            return {
                "readable_B": readable_B,
                "content_ids_BT": content_ids_BT,
                "features_BF": extract(extractor, copies_BHWC, batch_size=batch_size).features_NF,
                "original_features_BF": extract(extractor, images_BHWC, batch_size=batch_size).features_NF,
                **pair_scores(images_BHWC, copies_BHWC, distances),
            }

        return compute


@dataclass(frozen=True, kw_only=True)
class FeatureJob:
    """Compute the features of images.

    Attributes:
        images: where they come from.
        extractor: what computes their features.
    """

    images: ImageReader
    extractor: ExtractorSpec

    @property
    def names(self) -> tuple[str, ...]:
        """Arrays of a chunk: `readable_B`, and those of `eval.features.extractors.feature_arrays`."""
        return ("readable_B", *feature_names(self.extractor.kind))

    def identity(self) -> dict[str, Any]:
        """Hashes of images and weights.

        Raises:
            UserError: a file is missing.
        """
        return {"images": self.images.identity(), "extractor": self.extractor.identity()}

    def build(self, device: str, batch_size: int) -> BatchFunction:
        """Load the extractor.

        Raises:
            UserError: weights are missing or do not fit.
        """
        extractor = build_extractor(self.extractor, device=device)

        def compute(indices_B: NDArray[np.int64]) -> Arrays:
            # The last chunk is filled up with the first images, so that its batches are as large as all others.
            images_BHWC, readable_B = self.images.read(indices_B % len(self.images))
            return {"readable_B": readable_B, **feature_arrays(extractor, images_BHWC, batch_size=batch_size)}

        return compute


def kept_features(
    extractor: nn.Module, spec: ExtractorSpec, images_BHWC: ImageArray, *, config: PoolConfig, folder: Path
) -> Features:
    """Features of images that are in memory here, or those that an earlier call left in the folder.

    They are computed on as many threads as the pool has, whose workers are at rest.

    Args:
        extractor: built from `spec`.
        folder: parent of a folder named after all that matters.
    """
    num_threads = config.threads_per_actor * config.num_actors
    images = arrays_digest({IMAGES: images_BHWC}, (IMAGES,))
    made_of = {"images": images, "extractor": spec.identity(), "threads": num_threads, "torch": torch.__version__}
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    place, names = folder / key[:16], feature_names(spec.kind)
    arrays = read_chunk(place, 0, names, key)
    if arrays is None:
        with threads(num_threads):
            arrays = dict(feature_arrays(extractor, images_BHWC, batch_size=config.batch_size))
        place.mkdir(parents=True, exist_ok=True)
        write_chunk(place, 0, arrays, names, key)
    return Features(*(arrays[name] for name in names))
