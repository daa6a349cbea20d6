"""Real digits, tiny networks with random weights, and a feature network trained for a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pretrained_files import write_efficientnet
from tiny_networks import save_generators, save_tokenizer

from eval.evaluation import EvaluationData
from eval.features.extractors import SMALL_IMAGE, ExtractorSpec
from eval.features.pretrained import EFFICIENTNET
from eval.features.small_network import (
    FeatureNetworkConfig,
    FeatureTrainingConfig,
    save_feature_network,
    train_feature_network,
)
from eval.pool.samplers import GeneratorSpec
from nvg.checkpoints.frozen_weights import EFFICIENTNET_FILE
from nvg.sampling import SamplingConfig
from pipelines.evaluate.images import load_data
from pipelines.sources import SourceConfig


@pytest.fixture(scope="session")
def digits() -> EvaluationData:
    """The three parts of the bundled digits at 16x16."""
    return load_data(SourceConfig())


@pytest.fixture(scope="session")
def extractor_spec(digits: EvaluationData, tmp_path_factory: pytest.TempPathFactory) -> ExtractorSpec:
    """A feature network, trained for a moment and saved."""
    folder = tmp_path_factory.mktemp("feature-network")
    network = train_feature_network(
        digits.train.images,
        digits.train.labels,
        config=FeatureNetworkConfig(image_size=16, image_channels=1, num_classes=10, width=8),
        training=FeatureTrainingConfig(num_steps=150),
    )
    save_feature_network(network, folder)
    return ExtractorSpec(kind=SMALL_IMAGE, path=str(folder))


@pytest.fixture(scope="session")
def efficientnet_spec(tmp_path_factory: pytest.TempPathFactory) -> ExtractorSpec:
    """EfficientNet-Lite0 with random weights in the real file's format."""
    file = tmp_path_factory.mktemp("efficientnet") / EFFICIENTNET_FILE
    write_efficientnet(file)
    return ExtractorSpec(kind=EFFICIENTNET, path=str(file))


@pytest.fixture(scope="session")
def generator_spec(tmp_path_factory: pytest.TempPathFactory) -> GeneratorSpec:
    """Tokenizer and generators of a 4x4 grid with random weights, saved as a training would."""
    root = tmp_path_factory.mktemp("networks")
    save_tokenizer(root / "tokenizer")
    save_generators(root)
    return GeneratorSpec(
        tokenizer=str(root / "tokenizer"),
        content=str(root / "content"),
        structure=str(root / "structure"),
        num_classes=10,
        sampling=SamplingConfig(num_flow_steps=3),
        seed=5,
    )


@pytest.fixture
def noise_images() -> np.ndarray:
    """Forty random grey images."""
    return np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), dtype=np.uint8)


@pytest.fixture
def empty_folder(tmp_path: Path) -> Path:
    """A folder in which nothing lies."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder
