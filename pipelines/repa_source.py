"""What a content generator's hidden tokens are aligned with: features beside the records, or DINOv2 in every step.

Legend: B rows of this rank, N patches, D channels of a feature, S side of an image.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nvg.checkpoints import load_dinov2_features
from nvg.errors import UserError
from nvg.records import FEATURES_FOLDER, JPEG_FOLDER, FeatureDataset, JpegDataset, RecordDataset
from nvg.tokenizer import Dinov2Features
from nvg.training import FEATURES, IMAGE

WEIGHTS_KEY = "dinov2_weights"


@dataclass(frozen=True, kw_only=True)
class RepaSource:
    """Where the target of every record comes from.

    Attributes:
        width: D.
        fetch: rows (B,) int64 -> what joins the batch: features (B, N, D), or image (B, 3, S, S) for the teacher.
        teacher: makes features of images; None where they are stored.
    """

    width: int
    fetch: Callable[[np.ndarray], dict[str, Tensor]]
    teacher: Dinov2Features | None


def open_repa_source(records: RecordDataset, dinov2_weights: str) -> RepaSource:
    """The source that a data set has beside its records.

    Args:
        records: opened; their manifest says what was stored.
        dinov2_weights: weight file, read where images were stored and no features.

    Raises:
        UserError: nothing was stored, or the weight file is missing.
    """
    store = records.manifest.get("repa", {}).get("store")
    if store == FEATURES_FOLDER:
        features = FeatureDataset.open(records)
        return RepaSource(
            width=features.layout.width,
            fetch=lambda rows: {FEATURES: torch.from_numpy(features.batch(rows))},
            teacher=None,
        )
    if store == JPEG_FOLDER:
        images = JpegDataset.open(records)
        teacher = load_dinov2_features(dinov2_weights, key=WEIGHTS_KEY)
        return RepaSource(
            width=teacher.width,
            fetch=lambda rows: {IMAGE: torch.stack([_decoded(jpeg) for jpeg in images.batch(rows)])},
            teacher=teacher,
        )
    raise UserError(
        f"loss.repa_weight is above 0, but {records.folder} has neither features nor images beside its records; run "
        "`nvg precompute` with repa.store=features or jpeg, or set loss.repa_weight=0"
    )


def _decoded(jpeg: bytes) -> Tensor:
    """float32 (3, S, S) in [-1, 1]."""
    with Image.open(io.BytesIO(jpeg)) as image:
        pixels_HWC = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels_HWC.permute(2, 0, 1).float() / 127.5 - 1.0
