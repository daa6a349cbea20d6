"""Scores of images against a reference file, by the protocol of published tables.

50,000 samples, FID and sFID against statistics of the whole training set, precision and recall against 10,000 of its
images, the Inception score over ten splits of a fixed permutation. The images are drawn here or made elsewhere; what is
left of a number that cannot be compared with published ones is said with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from eval.feature_job import FeatureJob
from eval.features.extractors import ExtractorSpec
from eval.features.inception import INCEPTION
from eval.pool.chunks import arrays_digest
from eval.pool.pool import PoolResult, run_chunks
from eval.pool_config import ChunkPoolConfig
from eval.protocol import metric_protocol
from eval.reference import NUM_MANIFOLD_IMAGES, Reference
from eval.scores.frechet import NUM_RESAMPLES, Gaussian, frechet, frechet_spread, gather
from eval.scores.metrics import inception_scores, manifold_scores
from eval.timing import timed
from nvg.errors import UserError

NUM_PUBLISHED_SAMPLES = 50_000
LEAST_SAMPLES = 2048  # fewer than features: the covariance has no full rank
SCHEMA_VERSION = 1
FEATURES, LOGITS, SPATIAL, LABELS = "features_BF", "logits_BV", "spatial_BG", "labels_B"


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What is computed beside the scores themselves.

    Attributes:
        frechet_spread: also the standard deviations of FID and sFID over ten resamples; takes as long as ten FIDs.
    """

    frechet_spread: bool = False


def complete_reference(
    reference: Reference, extractor: ExtractorSpec, *, pool: ChunkPoolConfig, folder: Path, console: Console | None
) -> Reference:
    """Compute from the reference's own images what its file leaves out.

    Args:
        reference: as read.
        extractor: what computes features.
        pool: shape of the pool; Ray must be initialised where images have to be looked at.
        folder: where the chunks are kept, so that this is done once.
        console: where progress is drawn.

    Returns:
        A reference with `pool` and `features_MF`.

    Raises:
        UserError: the file holds no images to compute them from.
    """
    if reference.pool is not None and reference.features_MF is not None:
        return reference
    if reference.images is None:
        raise UserError(
            f"reference: found neither arr_0 nor pool_3 in {reference.path}, expected one of them for precision and "
            "recall; give the whole file, or make one with `nvg eval reference`"
        )
    count = len(reference.images)
    if reference.pool is not None:
        count = min(count, NUM_MANIFOLD_IMAGES)  # statistics are there: only the manifold is missing
    job = FeatureJob(images=reference.images, extractor=extractor)
    arrays = run_chunks(job, count, config=pool, folder=folder, title="Reference", console=console).arrays
    statistics: dict[str, Gaussian] = {}
    if reference.pool is None:
        statistics["pool"] = gather([arrays[FEATURES]]).gaussian()
        if SPATIAL in arrays:
            statistics["spatial"] = gather([arrays[SPATIAL]]).gaussian()
    return replace(reference, features_MF=arrays[FEATURES][:NUM_MANIFOLD_IMAGES], **statistics)


def score_against(pool: PoolResult, reference: Reference, config: ScoreConfig) -> dict[str, Any]:
    """All scores of the images of a pool.

    Args:
        pool: its features, in memory.
        reference: complete.
        config: what is computed besides.

    Returns:
        `num_images`, `fid`, `sfid` where both sides have spatial features, `inception_score`, `precision`, `recall`,
        and their spreads `…_std`.

    Raises:
        UserError: features that are not finite; names the sample.
        ValueError: features that do not fit the reference.
    """
    assert reference.pool is not None
    assert reference.features_MF is not None
    sides = {"fid": (pool.arrays[FEATURES], reference.pool)}
    if SPATIAL in pool.arrays and reference.spatial is not None:
        sides["sfid"] = (pool.arrays[SPATIAL], reference.spatial)
    scores: dict[str, Any] = {"num_images": len(pool.arrays[FEATURES])}
    for name, (features_NF, expected) in sides.items():
        scores[name] = frechet(gather([features_NF]).gaussian(), expected)
        if config.frechet_spread:
            scores[f"{name}_std"] = frechet_spread(features_NF, expected)
    return {
        **scores,
        **inception_scores(pool.arrays[LOGITS]),
        **manifold_scores(pool.arrays[FEATURES], reference.features_MF),
    }


def results_against(
    pool: PoolResult,
    reference: Reference,
    extractor: ExtractorSpec,
    *,
    config: ScoreConfig,
    facts: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Scores, what they are worth, and how they were made.

    Args:
        pool: features of the samples, and their labels where they are known.
        reference: complete.
        extractor: where features come from.
        config: what is computed besides.
        facts: further JSON values of the protocol, e.g. parameter counts.
        seconds: receives the time of the scores; becomes part of the results.

    Returns:
        The content of `results.json`.
    """
    with timed(seconds, "scores"):
        scores = score_against(pool, reference, config)
    reasons = not_comparable_because(scores["num_images"], extractor, reference, pool.arrays.get(LABELS))
    return {
        "schema_version": SCHEMA_VERSION,
        "scores": {"generated": scores},
        "comparable": not reasons,
        "not_comparable_because": reasons,
        "left_out": [] if "sfid" in scores else ["sFID: extractor or reference has no spatial features"],
        "protocol": {
            **metric_protocol(extractor),
            "reference": {
                "file": Path(reference.path).name,
                "sha256": reference.sha256,
                "image_size": None if reference.image_size is None else list(reference.image_size),
                "manifold_images": 0 if reference.features_MF is None else len(reference.features_MF),
                **({"facts": reference.facts} if reference.facts else {}),
            },
            "samples": {
                **pool.identity,
                "num_samples": scores["num_images"],
                "features_sha256": arrays_digest(pool.arrays, (FEATURES,)),
            },
            "resamples_for_fid_spread": NUM_RESAMPLES if config.frechet_spread else 0,
            **facts,
        },
        "seconds": seconds,
    }


def not_comparable_because(
    num_images: int, extractor: ExtractorSpec, reference: Reference, labels_B: NDArray[np.int64] | None
) -> list[str]:
    """What keeps the scores from being set beside published ones; empty where nothing does.

    Args:
        num_images: samples scored.
        extractor: where their features come from.
        reference: complete.
        labels_B: classes asked for, where they are known.
    """
    reasons = []
    if extractor.kind != INCEPTION:
        reasons.append(f"features are those of {extractor.kind}, published scores use {INCEPTION}")
    if num_images < LEAST_SAMPLES:
        reasons.append(f"{num_images:,} samples are fewer than the {LEAST_SAMPLES:,} features: FID means little")
    elif num_images != NUM_PUBLISHED_SAMPLES:
        reasons.append(f"{num_images:,} samples; published scores use {NUM_PUBLISHED_SAMPLES:,}")
    num_real = 0 if reference.features_MF is None else len(reference.features_MF)
    if num_real != NUM_MANIFOLD_IMAGES:
        reasons.append(f"precision and recall against {num_real:,} images; published: {NUM_MANIFOLD_IMAGES:,}")
    if labels_B is not None and len(set(np.bincount(labels_B).tolist())) != 1:
        reasons.append("classes are not drawn equally often")
    return reasons
