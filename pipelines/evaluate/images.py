"""New room."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.evaluation_config import EvaluationData
from nvg.pixels import ImageArray
from pipelines.sources import (
    BadImage,
    ImageSource,
    SourceConfig,
    load_images,
    open_source,
)


def load_data(source: SourceConfig) -> EvaluationData:
    """Read the three parts of a source into memory: view 0 of each image, and all views of the training images.

    Args:
        source: the images; its split is ignored.

    Returns:
        Training, judge and held-out images.

    Raises:
        UserError: a part is missing or empty, or has too many bad images.
    """
    opened = {name: open_source(replace(source, split=name)) for name in ("train", "judge", "test")}
    loaded = {name: load_images(part) for name, part in opened.items()}
    views = range(source.num_views)
    return EvaluationData(
        class_names=list(opened["train"].class_names),
        train_images=loaded["train"].images,
        train_labels=loaded["train"].labels,
        judge_images=loaded["judge"].images,
        judge_labels=loaded["judge"].labels,
        held_out_images=loaded["test"].images,
        held_out_labels=loaded["test"].labels,
        train_views=load_images(opened["train"], views).images if len(views) > 1 else None,
        fingerprints={name: part.fingerprint for name, part in opened.items()},
    )


@dataclass(frozen=True)
class SourceImages:
    """The images of an opened source, each in its centred view."""

    source: ImageSource

    def __len__(self) -> int:
        return len(self.source)

    def identity(self) -> dict[str, Any]:
        """Fingerprint, split and everything that decides a view."""
        config = self.source.config
        return {
            "kind": config.kind,
            "fingerprint": self.source.fingerprint,
            "split": config.split,
            "seed": config.seed,
            "judge_fraction": config.judge_fraction,
            "test_fraction": config.test_fraction,
            "view": f"0 ({config.view_policy})",
            "image_size": config.image_size,
            "image_channels": config.image_channels,
        }

    def read(self, indices_B: NDArray[np.int64]) -> tuple[ImageArray, NDArray[np.bool_]]:
        """Images, and which of them could be read; the others are black."""
        config = self.source.config
        images_BHWC = np.zeros((len(indices_B), config.image_size, config.image_size, config.image_channels), np.uint8)
        readable_B = np.ones(len(indices_B), np.bool_)
        for row, index in enumerate(indices_B.tolist()):
            try:
                images_BHWC[row] = self.source.read(index, 0)
            except BadImage:
                readable_B[row] = False
        return images_BHWC, readable_B
