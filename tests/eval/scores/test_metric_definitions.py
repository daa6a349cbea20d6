"""The scores against slow implementations of their definitions, and the laws of sums gathered in pieces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scores.frechet import FeatureSums, Gaussian, frechet, frechet_spread, gather
from eval.scores.manifold import manifold_hits, share_spread
from eval.scores.metrics import NUM_SPLITS, PERMUTATION_SEED, frechet_distance, inception_score


def features(count: int, width: int, seed: int) -> np.ndarray:
    """Float32 rows of unequal scale with a mean far from zero, as Inception's are."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(width, width)) * np.linspace(0.1, 2, width)
    return (random.normal(size=(count, width)) @ mixing + random.uniform(0, 3, width)).astype(np.float32)


def slow_fid(first_NF: np.ndarray, second_MF: np.ndarray) -> float:
    means = [rows.astype(np.float64).mean(axis=0) for rows in (first_NF, second_MF)]
    covariances = [np.cov(rows.astype(np.float64), rowvar=False) for rows in (first_NF, second_MF)]
    values = np.linalg.eigvals(covariances[0] @ covariances[1]).astype(np.complex128)
    traces = np.trace(covariances[0]) + np.trace(covariances[1])
    return float(((means[0] - means[1]) ** 2).sum() + traces - 2 * np.sqrt(values).real.sum())


def slow_inception_score(logits_NV: np.ndarray) -> tuple[float, float]:
    order = np.random.RandomState(PERMUTATION_SEED).permutation(len(logits_NV))
    raised = np.exp(logits_NV[order].astype(np.float64))
    shares_NV = raised / raised.sum(axis=1, keepdims=True)
    scores = []
    for part in np.split(shares_NV, NUM_SPLITS):
        divergence_N = (part * (np.log(part) - np.log(part.mean(axis=0)))).sum(axis=1)
        scores.append(np.exp(divergence_N.mean()))
    return float(np.mean(scores)), float(np.std(scores))


def slow_hits(points: np.ndarray, centres: np.ndarray, neighbourhood: int = 3) -> list[bool]:
    points, centres = points.astype(np.float64), centres.astype(np.float64)
    radii = [np.sort(np.linalg.norm(centres - centre, axis=1))[neighbourhood] for centre in centres]
    return [bool((np.linalg.norm(centres - point, axis=1) <= radii).any()) for point in points]


@pytest.mark.parametrize(("count", "width"), [(700, 40), (30, 64)])
def test_fid_is_its_definition(count: int, width: int) -> None:
    first, second = features(count, width, 0), features(2 * count, width, 1)
    assert frechet_distance(first, second) == pytest.approx(slow_fid(first, second), rel=1e-6)


def test_inception_score_is_its_definition() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (600, 20)).astype(np.float32)
    assert inception_score(logits) == pytest.approx(slow_inception_score(logits), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_precision_and_recall_are_their_definition(seed: int) -> None:
    generated, real = features(1300, 24, seed)[:, :9], features(1100, 24, seed)[::-1, :9] * np.float32(1.3)
    hits = manifold_hits(generated, real)
    assert hits.generated_N.tolist() == slow_hits(generated, real)
    assert hits.real_M.tolist() == slow_hits(real, generated)
    assert 0 < hits.precision < 1
    assert 0 < hits.recall < 1


def test_a_shift_common_to_both_sets_moves_nothing() -> None:
    generated, real = features(400, 16, 0), features(300, 16, 1)
    near, far = manifold_hits(generated, real), manifold_hits(generated + np.float32(1000), real + np.float32(1000))
    assert np.mean(near.generated_N == far.generated_N) > 0.99
    assert np.mean(near.real_M == far.real_M) > 0.99


def test_fid_of_two_normal_distributions_is_the_closed_form() -> None:
    random = np.random.default_rng(0)
    rotation = np.linalg.qr(random.normal(size=(12, 12)))[0]
    variances = random.uniform(0.1, 4, (2, 12))
    means = random.normal(size=(2, 12))
    first, second = (
        Gaussian(mean, rotation @ np.diag(variance) @ rotation.T)
        for mean, variance in zip(means, variances, strict=True)
    )
    expected = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(variances[0]) - np.sqrt(variances[1])) ** 2).sum()
    assert frechet(first, second) == pytest.approx(expected, rel=1e-12)


@given(cuts=st.lists(st.integers(0, 200), max_size=8), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_sums_merged_in_any_split_are_those_of_one_pass(cuts: list[int], seed: int) -> None:
    rows = features(200, 6, seed)
    merged = gather([part for part in np.split(rows, sorted(cuts)) if len(part)]).gaussian()
    np.testing.assert_allclose(merged.mean_F, rows.astype(np.float64).mean(axis=0), rtol=1e-9)
    expected = np.cov(rows.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(merged.covariance_FF, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_sums_merged_in_the_order_of_the_chunks_are_the_same_bit_for_bit() -> None:
    chunks = np.split(features(400, 8, 0), 8)
    straight = gather(chunks)
    by_worker = [FeatureSums.of(chunk) for chunk in reversed(chunks)][::-1]  # computed in another order
    folded = by_worker[0]
    for sums in by_worker[1:]:
        folded = folded.merged(sums)
    assert folded.count == straight.count == 400
    assert np.array_equal(folded.mean_F, straight.mean_F)
    assert np.array_equal(folded.scatter_FF, straight.scatter_FF)


def test_spreads_have_the_size_of_sampling_noise() -> None:
    hits = np.arange(10_000) % 4 == 0
    assert share_spread(hits) == pytest.approx(np.sqrt(0.25 * 0.75 / 10_000), rel=0.1)
    assert share_spread(np.ones(10, np.bool_)) == 0
    reference = gather([features(4000, 8, 1)]).gaussian()
    few, many = (frechet_spread(features(count, 8, 0), reference) for count in (200, 5000))
    assert 0 < many < few / 2
    assert many == frechet_spread(features(5000, 8, 0), reference)


def test_bad_features_are_named() -> None:
    rows = features(6000, 4, 0)
    rows[5321, 2] = np.nan
    with pytest.raises(ValueError, match="not finite, first in sample 5321"):
        gather([rows[:100], rows[100:]])
    with pytest.raises(ValueError, match="no sample"):
        gather([])
    with pytest.raises(ValueError, match="found 1 samples"):
        gather([rows[:1]]).gaussian()
    with pytest.raises(ValueError, match=r"generated features: found \(3, 4\), expected at least 4 rows"):
        manifold_hits(rows[:3], rows[:10])
