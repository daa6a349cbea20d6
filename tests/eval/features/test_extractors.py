"""The extractors as torch-fidelity uses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch.utils.data import Dataset
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from eval.features.extractors import (
    INCEPTION,
    SMALL_IMAGE,
    ExtractorSpec,
    build_extractor,
    extract,
    register_extractors,
)
from eval.features.inception import InceptionExtractor
from eval.features.small_network import FeatureNetworkConfig, FeatureTrainingConfig, train_feature_network
from eval.scores.metrics import score_features
from nvg.checkpoints import save_weights
from nvg.errors import UserError


class RgbImages(Dataset):
    """uint8 images as torch-fidelity wants them: 3xHxW."""

    def __init__(self, images_BHWC: np.ndarray) -> None:
        self.images_BCHW = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()

    def __len__(self) -> int:
        return len(self.images_BCHW)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images_BCHW[index]


def test_registering_twice_is_fine() -> None:
    register_extractors()
    register_extractors()
    assert SMALL_IMAGE in FEATURE_EXTRACTORS_REGISTRY


def test_torch_fidelity_itself_gives_the_same_scores(digits, extractor_spec: ExtractorSpec) -> None:
    samples, reference = digits.held_out.images[:120], digits.train.images[:200]
    register_extractors()
    theirs = torch_fidelity.calculate_metrics(
        input1=RgbImages(samples),
        input2=RgbImages(reference),
        feature_extractor=SMALL_IMAGE,
        feature_extractor_weights_path=extractor_spec.path,
        fid=True,
        isc=True,
        prc=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    extractor = build_extractor(extractor_spec)
    found = extract(extractor, samples)
    ours = score_features(found.features_NF, found.logits_NV, extract(extractor, reference).features_NF)
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3, abs=1e-4)
    assert ours["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=0.01)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=0.01)


def test_features_do_not_depend_on_the_batch(digits, extractor_spec: ExtractorSpec) -> None:
    extractor = build_extractor(extractor_spec)
    one = extract(extractor, digits.held_out.images[:30], batch_size=30)
    two = extract(extractor, digits.held_out.images[:30], batch_size=7)
    assert np.allclose(one.features_NF, two.features_NF, atol=1e-5)


def test_the_same_seed_trains_the_same_network(digits) -> None:
    config = FeatureNetworkConfig(image_size=16, image_channels=1, num_classes=10, width=4)
    training = FeatureTrainingConfig(num_steps=5)
    first, second = (
        train_feature_network(digits.train.images, digits.train.labels, config=config, training=training)
        for _ in range(2)
    )
    state = second.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.state_dict().items())


def test_a_short_training_already_reads_held_out_digits(digits, extractor_spec: ExtractorSpec) -> None:
    logits = extract(build_extractor(extractor_spec), digits.held_out.images).logits_NV
    assert logits is not None
    assert (logits.argmax(1) == digits.held_out.labels).mean() > 0.9


def test_colour_images_of_another_size() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = rng.integers(0, 60, (60, 20, 20, 3), dtype=np.uint8)
    images[np.arange(60), :, :, labels] += 150
    network = train_feature_network(
        images,
        labels,
        config=FeatureNetworkConfig(image_size=12, image_channels=3, num_classes=3, width=4),
        training=FeatureTrainingConfig(num_steps=40),
    )
    prepared = network.prepare(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert prepared.shape == (60, 3, 12, 12)
    assert (network(prepared)[1].argmax(1).numpy() == labels).mean() > 0.9


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the real file's format, old files' missing batch counters included."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    tensors = InceptionExtractor().state_dict()
    torch.save({name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}, path)
    return path


def test_inception_with_weights_in_the_real_file_format(inception_file: Path, digits) -> None:
    spec = ExtractorSpec(kind=INCEPTION, path=str(inception_file))
    layers = extract(build_extractor(spec), digits.held_out.images[:3], batch_size=2)
    assert layers.features_NF.shape == (3, 2048)
    assert layers.logits_NV is not None
    assert layers.logits_NV.shape == (3, 1008)
    assert np.isfinite(layers.logits_NV).all()
    assert np.ptp(layers.features_NF, axis=0).max() > 0


def test_the_spatial_layer_is_the_first_branch_of_the_seventh_mixed_block(inception_file: Path, digits) -> None:
    extractor = build_extractor(ExtractorSpec(kind=INCEPTION, path=str(inception_file)))
    assert isinstance(extractor, InceptionExtractor)
    entered: list[torch.Tensor] = []
    hook = extractor.Mixed_6d.register_forward_pre_hook(lambda module, given: entered.append(given[0].clone()))
    images = digits.held_out.images[:2]
    layers = extract(extractor, images)
    hook.remove()
    branch = extractor.Mixed_6d.branch1x1
    with torch.no_grad():
        maps_BCHW = torch.relu(branch.bn(branch.conv(entered[0]))).numpy()
    assert maps_BCHW.shape == (2, 192, 17, 17)
    assert layers.spatial_NG is not None
    assert layers.spatial_NG.shape == (2, 2023)
    for row, column, channel in [(0, 0, 0), (0, 0, 6), (0, 1, 0), (3, 11, 5), (16, 16, 6)]:
        place = (row * 17 + column) * 7 + channel
        np.testing.assert_allclose(layers.spatial_NG[:, place], maps_BCHW[:, channel, row, column], rtol=1e-5)
    assert layers.spatial_NG.min() >= 0
    assert layers.spatial_NG.max() > 0


def test_inception_logits_have_no_bias(inception_file: Path, digits) -> None:
    extractor = build_extractor(ExtractorSpec(kind=INCEPTION, path=str(inception_file)))
    assert isinstance(extractor, InceptionExtractor)
    layers = extract(extractor, digits.held_out.images[:2])
    assert layers.logits_NV is not None
    np.testing.assert_allclose(layers.logits_NV, layers.features_NF @ extractor.fc.weight.numpy().T, atol=1e-4)


def test_missing_inception_file_names_file_and_source(tmp_path: Path) -> None:
    spec = ExtractorSpec(kind=INCEPTION, path=str(tmp_path / "inception.pth"))
    with pytest.raises(UserError, match=r"inception\.pth.*weights-inception-2015-12-05.*extractor_path"):
        build_extractor(spec)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x04cos\nsystem\n(S'true'\ntR."])
def test_a_file_that_is_no_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "inception.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        build_extractor(ExtractorSpec(kind=INCEPTION, path=str(path)))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "inception.pth"
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(UserError, match="other tensors"):
        build_extractor(ExtractorSpec(kind=INCEPTION, path=str(path)))


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path, {"weight": torch.zeros(2)}, {}, kind="tokenizer")
    with pytest.raises(ValueError, match="feature-extractor"):
        build_extractor(ExtractorSpec(kind=SMALL_IMAGE, path=str(tmp_path)))


def test_missing_network_is_named(empty_folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors"):
        ExtractorSpec(kind=SMALL_IMAGE, path=str(empty_folder)).weights_hash()


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="vgg"):
        ExtractorSpec(kind="vgg", path="x")  # pyright: ignore[reportArgumentType]
