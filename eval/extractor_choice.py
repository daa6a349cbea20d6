"""Which network the features of an evaluation come from: weights that are given, or a network trained for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval.features.extractors import INCEPTION, SMALL_IMAGE, ExtractorSpec
from eval.features.small_network import (
    FeatureNetworkConfig,
    FeatureTrainingConfig,
    save_feature_network,
    train_feature_network,
)
from eval.pixels import ImageArray

LARGEST_FEATURE_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """Where features come from, and where an evaluation leaves its files.

    Attributes:
        output: folder for results, chunks and the feature network.
        extractor_kind: `nvg-small-image` or `inception-v3-compat`.
        extractor_path: Inception's file, or the folder of a feature network; empty trains the network on the
            training images and keeps it in the output folder.
        feature_training: schedule of that training.
    """

    output: str = ""
    extractor_kind: str = SMALL_IMAGE
    extractor_path: str = ""
    feature_training: FeatureTrainingConfig = field(default_factory=FeatureTrainingConfig)

    def __post_init__(self) -> None:
        if self.extractor_kind not in (SMALL_IMAGE, INCEPTION):
            raise ValueError(
                f"extractor_kind: found {self.extractor_kind!r}, expected {SMALL_IMAGE!r} or {INCEPTION!r}"
            )
        if self.extractor_kind == INCEPTION and not self.extractor_path:
            raise ValueError("extractor_path: found nothing, expected the file of Inception's weights")


def given_extractor(config: ExtractorConfig) -> ExtractorSpec | None:
    """The extractor whose weights the configuration names; None where a feature network has to be trained.

    Args:
        config: says where features come from.

    Raises:
        UserError: the weights are missing.
    """
    if not config.extractor_path:
        return None
    spec = ExtractorSpec(kind=config.extractor_kind, path=config.extractor_path)
    spec.check()
    return spec


def trained_extractor(
    config: ExtractorConfig, images_BHWC: ImageArray, labels_B: np.ndarray, num_classes: int
) -> ExtractorSpec:
    """A feature network trained on the training images, or the one an earlier run trained on them.

    Args:
        config: schedule of the training, and the folder the network is kept in.
        images_BHWC: uint8 training images.
        labels_B: int64, their classes.
        num_classes: how many classes there are.

    Returns:
        The spec, its weights on disk.
    """
    side, channels = images_BHWC.shape[1], images_BHWC.shape[3]
    network_config = FeatureNetworkConfig(
        image_size=min(side, LARGEST_FEATURE_SIDE), image_channels=channels, num_classes=num_classes
    )
    what = hashlib.sha256(repr((network_config, config.feature_training)).encode())
    what.update(np.ascontiguousarray(images_BHWC).tobytes())
    what.update(np.ascontiguousarray(labels_B, dtype=np.int64).tobytes())
    folder = Path(config.output) / "feature-network" / what.hexdigest()[:16]
    spec = ExtractorSpec(kind=SMALL_IMAGE, path=str(folder.resolve()))
    if not (spec.weights_file.is_file() and (folder / "config.json").is_file()):
        network = train_feature_network(images_BHWC, labels_B, config=network_config, training=config.feature_training)
        save_feature_network(network, folder)
    return spec
