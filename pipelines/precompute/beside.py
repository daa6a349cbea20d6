"""What precompute stores beside the records for the alignment of hidden tokens: features of each view, or its JPEG.

Legend: B image views, N tokens, D channels of a token.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from nvg.checkpoints import file_hash, find_efficientnet_weights, load_dinov2_features, load_efficientnet_tokens
from nvg.pixels import to_uint8
from nvg.records import EFFICIENTNET, FEATURES_FOLDER, JPEG_COLUMNS, JPEG_FOLDER, FeatureLayout, to_int8
from nvg.tokenizer import Dinov2Features, EfficientNetTokens
from pipelines.precompute.config import RepaStoreConfig

_EFFICIENTNET_KEY = "repa.efficientnet_weights"
_WITHOUT = "repa.store=jpeg or nothing does without it"


class RepaStream(Protocol):
    """A stream that has one row for each record, in their order."""

    @property
    def folder(self) -> str:
        """Name of its folder in the data set."""
        ...

    @property
    def columns(self) -> Mapping[str, str]:
        """MDS columns; "image" and "view" are among them."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """What is recorded of it in plan and manifest, JSON."""
        ...

    def rows(self, images_BCSS: torch.Tensor, number: int) -> list[dict[str, Any]]:
        """The other columns of the first `number` views of a batch: float32 in [-1, 1], filled up to the batch size."""
        ...


@dataclass(frozen=True)
class FeatureStream:
    """int8 features of a frozen network with a scale for each token.

    Attributes:
        network: on the device of the encoder.
        weights_hash: sha256 of its weight file.
    """

    network: Dinov2Features | EfficientNetTokens
    weights_hash: str
    folder = FEATURES_FOLDER

    @property
    def layout(self) -> FeatureLayout:
        """Shape of a row."""
        return FeatureLayout(self.network.num_tokens, self.network.width)

    @property
    def columns(self) -> Mapping[str, str]:
        """MDS columns."""
        return self.layout.columns

    @property
    def description(self) -> dict[str, Any]:
        """Shape, size and weights."""
        if isinstance(self.network, EfficientNetTokens):
            of = {"target": EFFICIENTNET, "efficientnet_weights_hash": self.weights_hash, **self.network.description}
        else:  # had no target before there were two
            of = {"dinov2_weights_hash": self.weights_hash}
        return {
            "store": FEATURES_FOLDER,
            **of,
            "num_tokens": self.layout.num_tokens,
            "width": self.layout.width,
            "bytes_per_record": self.layout.bytes_per_record,
        }

    def rows(self, images_BCSS: torch.Tensor, number: int) -> list[dict[str, Any]]:
        """Features of the first views of a batch; the whole batch is computed, so that every batch is alike."""
        features_BND, scale_BN = to_int8(self.network(images_BCSS)[:number].float().cpu().numpy())
        return [{"features": row, "scale": scale} for row, scale in zip(features_BND, scale_BN, strict=True)]


@dataclass(frozen=True)
class JpegStream:
    """The views themselves as JPEG, from which features can be computed in training."""

    quality: int
    folder = JPEG_FOLDER
    columns = JPEG_COLUMNS

    @property
    def description(self) -> dict[str, Any]:
        """Kind and quality."""
        return {"store": JPEG_FOLDER, "quality": self.quality}

    def rows(self, images_BCSS: torch.Tensor, number: int) -> list[dict[str, Any]]:
        """JPEG files of the first views of a batch."""
        return [{"jpeg": _jpeg(pixels, self.quality)} for pixels in to_uint8(images_BCSS[:number], "round")]


def open_repa_stream(config: RepaStoreConfig, device: str, num_positions: int) -> RepaStream | None:
    """The stream that a job writes beside its records; None where it writes none.

    Args:
        num_positions: of the tokenizer's latent.

    Raises:
        UserError: the network's weights are missing or are another network's.
    """
    if config.store == "features" and config.target == EFFICIENTNET:
        file = find_efficientnet_weights(config.efficientnet_weights, key=_EFFICIENTNET_KEY, without=_WITHOUT)
        tokens = load_efficientnet_tokens(file, key=_EFFICIENTNET_KEY, num_positions=num_positions, without=_WITHOUT)
        return FeatureStream(tokens.to(device), file_hash(file))
    if config.store == "features":
        network = load_dinov2_features(config.dinov2_weights, key="repa.dinov2_weights")
        return FeatureStream(network.to(device), file_hash(config.dinov2_weights))
    return JpegStream(config.jpeg_quality) if config.store == "jpeg" else None


def _jpeg(pixels_HWC: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC.squeeze(2) if pixels_HWC.shape[2] == 1 else pixels_HWC).save(
        buffer, "jpeg", quality=quality, subsampling=0
    )
    return buffer.getvalue()
