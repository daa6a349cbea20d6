"""Reference statistics on disk (what FID, sFID, precision and recall compare with), and scores against them.

ADM's files hold `mu`, `sigma` (pool features of the whole training set), `mu_s`, `sigma_s` (spatial features) and
`arr_0` (10,000 images, for precision and recall). Those of `nvg eval reference` hold the same statistics, `pool_3`
(the pool features of up to 10,000 images, so that none has to be looked at again), `facts` (how they were made, as
JSON) and, where asked for, `arr_0`, so that ADM's evaluator reads them too.

The protocol of published tables: 50,000 samples, FID and sFID against statistics of the whole training set, precision
and recall against 10,000 of its images, the Inception score over ten splits of a fixed permutation. The images are
drawn here or made elsewhere; what keeps a number from being compared with published ones is said with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from eval.decoding import Pixels
from eval.features.extractors import ExtractorSpec
from eval.features.inception import INCEPTION, NUM_POOL_FEATURES, NUM_SPATIAL_FEATURES
from eval.image_files import IMAGES_KEY, NpzImages, npz_names, read_npz_array, write_npz
from eval.pool.chunks import arrays_digest
from eval.pool.jobs import FeatureJob
from eval.pool.pool import ChunkPoolConfig, PoolResult, run_chunks
from eval.results import count_caveats, metric_protocol, not_the_published_features, timed
from eval.scores.frechet import NUM_RESAMPLES, Gaussian, frechet, frechet_spread, gather
from eval.scores.manifold import LEAST_IMAGES, NEIGHBOURHOOD
from eval.scores.metrics import drawn_rows, inception_scores, manifold_scores
from nvg.checkpoints import file_hash
from nvg.errors import UserError
from nvg.json_files import Count, parse_json
from nvg.pixels import ImageArray

_NUM_MANIFOLD_IMAGES = 10_000
_NUM_PUBLISHED_SAMPLES = 50_000
_LEAST_SAMPLES = 2048  # fewer than features: the covariance has no full rank
SCHEMA_VERSION = 1
FEATURES, LOGITS, SPATIAL, LABELS = "features_BF", "logits_BV", "spatial_BG", "labels_B"


class _Images(TypedDict):
    image_channels: NotRequired[Literal[1, 3]]
    pixels: NotRequired[Pixels]


class _Extractor(TypedDict):
    sha256: NotRequired[str]


class _Facts(TypedDict):
    """What is read of a reference's `facts`; the rest goes into the protocol of its scores as it is."""

    extractor: NotRequired[_Extractor]
    image_size: NotRequired[Count]
    images: NotRequired[_Images]
    num_images: NotRequired[Count]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What generated images are compared with.

    Attributes:
        path: the file.
        sha256: its hash.
        pool: statistics of the pool features; None where they have to be computed from `images`.
        spatial: statistics of the spatial features; None leaves sFID out.
        features_MF: pool features of real images for precision and recall; None has them computed from `images`.
        images: real images, where the file holds some.
        facts: how the file was made, as far as it says.
    """

    path: str
    sha256: str
    pool: Gaussian | None
    spatial: Gaussian | None
    features_MF: NDArray[np.float32] | None
    images: NpzImages | None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the reference images, where the file says so."""
        if self.images is not None:
            return self.images.images.shape[1], self.images.images.shape[2]
        size = self.facts.get("image_size")
        return None if size is None else (size, size)

    @property
    def read_as(self) -> tuple[int, Pixels]:
        """Channels and pixels of its images, for files that are compared with them; ADM's are RGB as stored."""
        images = self.facts.get("images", {})
        return images.get("image_channels", 3), images.get("pixels", "stored")

    def check_size(self, height: int, width: int) -> None:
        """Refuse samples of another resolution.

        Raises:
            UserError: names both sizes.
        """
        if self.image_size not in (None, (height, width)):
            found = "×".join(map(str, self.image_size or ()))
            raise UserError(
                f"reference: {self.path} was made from images of {found} pixels, the samples have {height}×{width}; "
                "give the reference of their resolution"
            )


def select_rows(num_images: int) -> NDArray[np.int64]:
    """Which images stand for the real manifold: at most 10,000, drawn once with a fixed seed, in order."""
    return drawn_rows(num_images, _NUM_MANIFOLD_IMAGES)


def write_reference(
    path: Path,
    *,
    pool: Gaussian,
    spatial: Gaussian | None,
    features_MF: NDArray[np.float32],
    facts: dict[str, Any],
    images: tuple[int, Iterable[ImageArray]] | None = None,
) -> None:
    """Write a reference file.

    Args:
        path: the npz file.
        pool: statistics of the pool features of all images.
        spatial: of their spatial features, where the extractor has them.
        features_MF: pool features of the images of `select_rows`.
        facts: how they were made, as JSON values: extractor, image_size, count, source.
        images: count and blocks of these images; None leaves `arr_0` out.
    """
    arrays: dict[str, NDArray[Any]] = {"mu": pool.mean_F, "sigma": pool.covariance_FF}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean_F, "sigma_s": spatial.covariance_FF}
    text = np.array(json.dumps(facts, sort_keys=True, allow_nan=False))
    write_npz(path, {**arrays, "pool_3": features_MF, "facts": text}, images)


def read_reference(path: str, extractor: ExtractorSpec) -> Reference:
    """Read a reference file and make sure that it belongs to the extractor.

    Args:
        path: an npz file of ADM's or of `nvg eval reference`.
        extractor: what the features of the samples come from.

    Returns:
        The reference; `mu` wins over `arr_0`, as in ADM's evaluator.

    Raises:
        UserError: the file is missing, cut off, holds neither statistics nor images, or features of another extractor.
    """
    if not Path(path).is_file():
        raise UserError(
            f"reference: found no file {path}, expected statistics such as ADM's VIRTUAL_imagenet256_labeled.npz (in "
            "the README of guided-diffusion's evaluations) or a file of `nvg eval reference`; set reference"
        )
    names = npz_names(path)
    if not {"mu", IMAGES_KEY} & set(names):
        raise UserError(f"reference: found {', '.join(names) or 'nothing'} in {path}, expected mu and sigma, or arr_0")
    facts: Any = {}
    if "facts" in names:
        advice = "make the file again with `nvg eval reference`"
        facts = parse_json(str(read_npz_array(path, "facts")), _Facts, f"{path}: facts", "how it was made", advice)
    made_with = facts.get("extractor", {}).get("sha256")
    if made_with not in (None, extractor.weights_hash()):
        raise UserError(
            f"reference: {path} was made with the extractor {made_with[:12]}…, the samples are looked at with "
            f"{extractor.weights_hash()[:12]}… ({extractor.path}); give the extractor it was made with"
        )
    pool = _gaussian(path, names, "mu", "sigma", NUM_POOL_FEATURES if extractor.kind == INCEPTION else None)
    spatial = None
    if extractor.kind == INCEPTION:
        spatial = _gaussian(path, names, "mu_s", "sigma_s", NUM_SPATIAL_FEATURES)
    reference = Reference(
        path=path,
        sha256=file_hash(path),
        pool=pool,
        spatial=spatial,
        features_MF=_numbers(path, "pool_3", 2).astype(np.float32) if "pool_3" in names else None,
        images=NpzImages(path) if IMAGES_KEY in names else None,
        facts=facts,
    )
    if reference.features_MF is not None and pool is not None and reference.features_MF.shape[1] != len(pool.mean_F):
        raise UserError(
            f"reference: found pool_3 of {reference.features_MF.shape} in {path}, expected rows of {len(pool.mean_F)} "
            "features as mu has; give the file as `nvg eval reference` wrote it"
        )
    for name, rows in (("pool_3", reference.features_MF), (IMAGES_KEY, reference.images)):
        if rows is not None:
            require_images(len(rows), f"reference: {name} of {path}")
    return reference


def require_images(count: int, what: str) -> None:
    """Refuse fewer images than the scores take; `what` begins the message.

    Raises:
        UserError: names both counts.
    """
    if count < LEAST_IMAGES:
        raise UserError(
            f"{what}: found {count} image(s), expected at least {LEAST_IMAGES}: precision and recall look at "
            f"{NEIGHBOURHOOD} neighbours of each; give more images"
        )


def _gaussian(path: str, names: list[str], mean: str, covariance: str, width: int | None) -> Gaussian | None:
    if mean not in names:
        return None
    pair = [_numbers(path, name, dimensions) for name, dimensions in ((mean, 1), (covariance, 2))]
    width = pair[0].size if width is None else width
    if pair[0].shape != (width,) or pair[1].shape != (width, width):
        raise UserError(
            f"reference: found {mean} of {pair[0].shape} and {covariance} of {pair[1].shape} in {path}, expected "
            f"({width},) and ({width}, {width}) as this extractor gives them; give the reference of the extractor"
        )
    return Gaussian(*pair)


def _numbers(path: str, name: str, num_dimensions: int) -> NDArray[np.float64]:
    """An array of the file, whose numbers are finite."""
    found = read_npz_array(path, name)
    if found.dtype.kind not in "fiu" or found.ndim != num_dimensions or not np.isfinite(found).all():
        what = "numbers that are not finite" if found.dtype.kind == "f" else f"{found.dtype} {found.shape}"
        what = f"{found.dtype} {found.shape}" if found.ndim != num_dimensions else what
        raise UserError(
            f"reference: found {what} in {name} of {path}, expected finite numbers in {num_dimensions} dimension(s); "
            "copy it again"
        )
    return np.array(found, dtype=np.float64)


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
        count = min(count, _NUM_MANIFOLD_IMAGES)  # statistics are there: only the manifold is missing
    job = FeatureJob(images=reference.images, extractor=extractor)
    arrays = run_chunks(job, count, config=pool, folder=folder, title="Reference", console=console).arrays
    statistics: dict[str, Any] = {}
    if reference.pool is None:
        statistics["pool"] = gather([arrays[FEATURES]]).gaussian()
        statistics["facts"] = {**reference.facts, "num_images": count}
        if SPATIAL in arrays:
            statistics["spatial"] = gather([arrays[SPATIAL]]).gaussian()
    return replace(reference, features_MF=arrays[FEATURES][:_NUM_MANIFOLD_IMAGES], **statistics)


def score_against(
    pool: PoolResult, reference: Reference, config: ScoreConfig, *, distance_key: str = "fid"
) -> dict[str, Any]:
    """All scores of the images of a pool, whose features are in memory, against a complete reference.

    Returns:
        `num_images`, `fid` (or what `distance_key` calls it), `sfid` where both sides have spatial features,
        `inception_score` where there are logits, `precision`, `recall`, and their spreads `…_std`.

    Raises:
        UserError: features that are not finite; names the sample.
        ValueError: features that do not fit the reference.
    """
    assert reference.pool is not None
    assert reference.features_MF is not None
    sides = {distance_key: (pool.arrays[FEATURES], reference.pool)}
    if SPATIAL in pool.arrays and reference.spatial is not None:
        sides["sfid"] = (pool.arrays[SPATIAL], reference.spatial)
    scores: dict[str, Any] = {"num_images": len(pool.arrays[FEATURES])}
    for name, (features_NF, expected) in sides.items():
        scores[name] = frechet(gather([features_NF]).gaussian(), expected)
        if config.frechet_spread:
            scores[f"{name}_std"] = frechet_spread(features_NF, expected)
    return {
        **scores,
        **(inception_scores(pool.arrays[LOGITS]) if LOGITS in pool.arrays else {}),
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
        scores = score_against(pool, reference, config, distance_key=extractor.distance_key)
    no_inception_score = "Inception score: the extractor has no logits of Inception's classes"
    reasons = not_comparable_because(scores["num_images"], extractor, reference, pool.arrays.get(LABELS))
    return {
        "schema_version": SCHEMA_VERSION,
        "scores": {"generated": scores},
        "caveats": count_caveats(
            {"generated": scores["num_images"]},
            scores=scores,
            num_features=pool.arrays[FEATURES].shape[1],
            num_reference=reference.facts.get("num_images"),
            num_manifold=None if reference.features_MF is None else len(reference.features_MF),
        ),
        "comparable": not reasons,
        "not_comparable_because": reasons,
        "left_out": [
            *([] if "sfid" in scores else ["sFID: extractor or reference has no spatial features"]),
            *([] if "inception_score" in scores else [no_inception_score]),
        ],
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
        num_images: samples scored, whose features come from `extractor`.
        reference: complete.
        labels_B: classes asked for, where they are known.
    """
    reasons = [reason] if (reason := not_the_published_features(extractor)) else []
    least = extractor.num_features if extractor.distance_key == "fd" else _LEAST_SAMPLES
    if num_images < least:
        name = extractor.distance
        reasons.append(f"{num_images:,} samples are fewer than the {least:,} features: {name} means little")
    elif num_images != _NUM_PUBLISHED_SAMPLES:
        reasons.append(f"{num_images:,} samples; published scores use {_NUM_PUBLISHED_SAMPLES:,}")
    num_real = 0 if reference.features_MF is None else len(reference.features_MF)
    if num_real != _NUM_MANIFOLD_IMAGES:
        reasons.append(f"precision and recall against {num_real:,} images; published: {_NUM_MANIFOLD_IMAGES:,}")
    if labels_B is not None and len(set(np.bincount(labels_B).tolist())) != 1:
        reasons.append("classes are not drawn equally often")
    return reasons
