"""Laws of the scores: what must hold whatever the features are."""

from __future__ import annotations

import numpy as np
import pytest

from eval.scores import metrics
from eval.scores.manifold import manifold_hits
from eval.scores.metrics import (
    distance_to_training,
    drawn_rows,
    feature_distance_to_training,
    frechet_distance,
    inception_score,
    peak_signal_to_noise,
    refuse_class_order,
    score_features,
)
from nvg.errors import UserError


def normals(count: int, *, seed: int, mean: float = 0.0, scale: float = 1.0, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, scale, (count, width)).astype(np.float32)


def test_fid_of_identical_features_is_zero() -> None:
    features = normals(500, seed=0)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-5)


def test_fid_of_a_shift_is_its_square() -> None:
    features = normals(500, seed=0)
    assert frechet_distance(features + np.float32(2), features) == pytest.approx(6 * 4, rel=1e-4)


def test_fid_does_not_depend_on_the_order() -> None:
    features, reference = normals(200, seed=0), normals(300, seed=1, scale=1.5)
    shuffled = features[np.random.default_rng(2).permutation(200)]
    assert frechet_distance(shuffled, reference) == pytest.approx(frechet_distance(features, reference), rel=1e-9)


def test_collapsed_samples_have_precision_without_recall() -> None:
    real = normals(400, seed=0)
    collapsed = normals(400, seed=1, scale=0.01)
    hits = manifold_hits(collapsed, real)
    assert hits.precision > 0.95
    assert hits.recall < 0.05


def test_scattered_samples_have_recall_without_precision() -> None:
    real = normals(400, seed=0, scale=0.2)
    scattered = normals(400, seed=1, scale=20)
    hits = manifold_hits(scattered, real)
    assert hits.precision < 0.1
    assert hits.recall > 0.9


def test_inception_score_bounds() -> None:
    certain = np.tile(np.float32(50) * np.eye(10, dtype=np.float32), (100, 1))
    assert inception_score(certain)[0] == pytest.approx(10, rel=0.05)
    assert inception_score(np.zeros((100, 10), np.float32))[0] == pytest.approx(1)


def test_inception_score_survives_samples_sorted_by_class() -> None:
    by_class = np.float32(8) * np.repeat(np.eye(10, dtype=np.float32), 60, axis=0)
    mixed = by_class[np.random.default_rng(1).permutation(600)]
    assert inception_score(by_class)[0] == pytest.approx(inception_score(mixed)[0], rel=0.02)


def test_samples_ordered_by_class_are_refused() -> None:
    by_class = np.float32(8) * np.repeat(np.eye(10, dtype=np.float32), 60, axis=0)
    refuse_class_order(by_class[np.random.default_rng(1).permutation(600)])
    refuse_class_order(by_class[::60])
    with pytest.raises(
        UserError, match=r"ordered by class \(Inception score 1\.0 in the order of the file, 9\.\d perm"
    ):
        refuse_class_order(by_class)


def test_a_handful_of_images_can_be_scored() -> None:
    scores = score_features(normals(5, seed=0), normals(5, seed=2, width=3), normals(50, seed=1))
    assert all(np.isfinite(list(scores.values())))


@pytest.mark.parametrize(
    ("features", "reference", "word"),
    [
        (normals(50, seed=0), normals(50, seed=1, width=7), "same extractor"),
        (normals(1, seed=0), normals(50, seed=1), "at least"),
        (np.full((20, 6), np.nan, np.float32), normals(50, seed=1), "not finite"),
        (np.zeros((20, 6), np.int64), normals(50, seed=1), "floats"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: np.ndarray, reference: np.ndarray, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        score_features(features, np.zeros((max(len(features), 10), 3), np.float32), reference)


def test_copies_are_found(noise_images: np.ndarray) -> None:
    training, held_out = noise_images[:20], noise_images[20:]
    copies = training[[3, 7, 7, 11]]
    found = distance_to_training(copies, training, held_out)
    assert found.nearest_N.tolist() == [3, 7, 7, 11]
    assert found.share_nearer == 1.0
    assert found.sample_N.max() == 0


def test_held_out_images_are_five_percent_near(digits) -> None:
    found = distance_to_training(digits.held_out.images, digits.train.images, digits.held_out.images)
    assert found.share_nearer == pytest.approx(0.05, abs=0.01)


def test_distance_is_the_root_mean_square_in_grey_levels() -> None:
    dark, light = np.full((1, 4, 4, 1), 10, np.uint8), np.full((1, 4, 4, 1), 13, np.uint8)
    assert distance_to_training(light, dark, light).sample_N[0] == pytest.approx(3)


def test_a_large_search_finds_what_a_full_one_does(noise_images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    training = noise_images[rng.integers(0, 40, 300)]
    training = np.clip(training.astype(int) + rng.integers(-9, 9, training.shape), 0, 255).astype(np.uint8)
    samples = noise_images[:20]
    full = distance_to_training(samples, training, noise_images[20:])
    monkeypatch.setattr(metrics, "_MEASURED_AT_MOST", 0)
    monkeypatch.setattr(metrics, "_TABLE_ENTRIES", 1000)
    found = distance_to_training(samples, training, noise_images[20:])
    assert found.nearest_N.tolist() == full.nearest_N.tolist()
    np.testing.assert_allclose(found.sample_N, full.sample_N, rtol=1e-6)
    assert found.share_nearer == full.share_nearer


def test_copies_are_found_in_features_too() -> None:
    training, held_out = normals(200, seed=0), normals(100, seed=1)
    found = feature_distance_to_training(training[[5, 9]] + np.float32(1e-3), training, held_out)
    assert found.nearest_N.tolist() == [5, 9]
    np.testing.assert_allclose(found.sample_N, 1e-3, rtol=1e-3)
    assert found.share_nearer == 1.0
    assert feature_distance_to_training(held_out, training, held_out).share_nearer == pytest.approx(0.05)


def test_precision_and_recall_of_as_many_images_of_either_side() -> None:
    features, reference = normals(300, seed=0), normals(500, seed=1, scale=1.2)
    found = score_features(features, None, reference, distance_key="fd", manifold_images=100)
    rows = drawn_rows(300, 100), drawn_rows(500, 100)
    assert [len(set(picked.tolist())) for picked in rows] == [100, 100]
    hits = manifold_hits(features[rows[0]], reference[rows[1]])
    assert (found["precision"], found["recall"]) == (hits.precision, hits.recall)
    assert found["fd"] == frechet_distance(features, reference)  # of all images
    assert set(found) == {"fd", "precision", "precision_std", "recall", "recall_std"}
    whole = score_features(features, None, reference, distance_key="fd", manifold_images=500)
    assert whole["recall"] == manifold_hits(features, reference).recall


def test_psnr_of_a_known_error() -> None:
    images = np.full((2, 4, 4, 1), 100, np.uint8)
    np.testing.assert_allclose(peak_signal_to_noise(images + np.uint8(5), images), 20 * np.log10(255 / 5))
