"""The pool job that looks at real or given images: their features, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.chunk_workers import BatchFunction
from eval.features.extractors import ExtractorSpec, build_extractor, feature_arrays, feature_names
from eval.image_files import ImageReader
from eval.pool.chunks import Arrays


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
        return {
            "images": self.images.identity(),
            "extractor": {"kind": self.extractor.kind, "sha256": self.extractor.weights_hash()},
        }

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
