"""Scores from feature arrays.

The arrays may come from any extractor and any number of workers; nothing here knows about models.
Three traps are closed here: the Inception score depends on the order of the samples, so they are always permuted with
a fixed seed; precision and recall name which set is generated; FID is summed in float64.
Shapes: features_NF float32, logits_NV float32, images_BHWC uint8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from eval.scores.frechet import frechet, gather
from eval.scores.manifold import NEIGHBOURHOOD, manifold_hits, share_spread
from nvg.errors import UserError
from nvg.pixels import ImageArray, check_images

FloatArray = NDArray[np.float32]

PERMUTATION_SEED = 2020
NUM_SPLITS = 10
_SELECTION_SEED = 0
_LEAST_PER_SPLIT = 50  # below, splits differ by chance alone
_ORDERED_SHARE = 0.9
_MEASURED_AT_MOST = 10**10  # differences of numbers: ten seconds of a core
_TABLE_ENTRIES = 1 << 26  # 256 MiB
_NUM_CANDIDATES = 8


@dataclass(frozen=True, kw_only=True)
class DistanceToTraining:
    """How near samples lie to the images the generators were trained on.

    Attributes:
        sample_N: distance of each sample to its nearest training image, root mean square over pixels (in grey levels of
            0..255), or over features.
        nearest_N: row of that training image.
        held_out_M: the same distance for real held-out images.
        threshold: the distance that 95 % of held-out images exceed.
        share_nearer: share of samples below the threshold; about 0.05 says no copying.
    """

    sample_N: NDArray[np.float64]
    nearest_N: NDArray[np.int64]
    held_out_M: NDArray[np.float64]
    threshold: float
    share_nearer: float

    def summary(self, unit: str) -> dict[str, float]:
        """What `results.json` holds of it; `unit` of the distances is part of the names."""
        return {
            "share_nearer_than_95_percent_of_held_out": self.share_nearer,
            f"threshold_{unit}": self.threshold,
            f"median_{unit}": float(np.median(self.sample_N)),
            f"held_out_median_{unit}": float(np.median(self.held_out_M)),
        }


def frechet_distance(features_NF: FloatArray, reference_MF: FloatArray) -> float:
    """FID between two sets of features.

    The squared Fréchet distance of two normal distributions. With fewer samples than features the covariance is
    rank-deficient and the number compares only with itself.

    Raises:
        ValueError: arrays that do not fit each other, or hold values that are not finite.
    """
    _check_pair(features_NF, reference_MF, least=2)
    return frechet(gather([features_NF]).gaussian(), gather([reference_MF]).gaussian())


def inception_score(logits_NV: FloatArray, *, splits: int = NUM_SPLITS) -> tuple[float, float]:
    """Inception score and its standard deviation over the splits.

    The samples are permuted with a fixed seed first, so splits hold all classes in whatever order the samples come.

    Args:
        logits_NV: class logits of the extractor, without the bias of its last layer.
        splits: their number.

    Raises:
        ValueError: fewer samples than splits.

    Paper: Table 1 (IS)
    """
    _check_features(logits_NV, "logits", least=splits)
    return _inception_score(logits_NV, splits, shuffle=True)


def refuse_class_order(logits_NV: FloatArray, *, splits: int = NUM_SPLITS) -> None:
    """Refuse samples that come sorted by class.

    ADM's evaluator takes splits as the samples lie. Where each split holds few classes it reports a fraction of the
    score, and whoever compares the two numbers is misled.

    Args:
        logits_NV: class logits, in the order of the file.
        splits: their number.

    Raises:
        UserError: the score in this order falls short of the permuted one by a tenth or more.
    """
    if len(logits_NV) < splits * _LEAST_PER_SPLIT:
        return
    in_order, permuted = (_inception_score(logits_NV, splits, shuffle=shuffle)[0] for shuffle in (False, True))
    if in_order < _ORDERED_SHARE * permuted:
        raise UserError(
            f"samples: found them ordered by class (Inception score {in_order:.1f} in the order of the file, "
            f"{permuted:.1f} permuted), expected mixed classes; ADM's evaluator would report the first number. "
            "Shuffle the file, or set class_ordered=true to score it permuted all the same"
        )


def _inception_score(logits_NV: FloatArray, splits: int, *, shuffle: bool) -> tuple[float, float]:
    logits = torch.from_numpy(np.ascontiguousarray(logits_NV))
    result = isc_features_to_metric(logits, splits=splits, shuffle=shuffle, rng_seed=PERMUTATION_SEED)
    return result[KEY_METRIC_ISC_MEAN], result[KEY_METRIC_ISC_STD]


def inception_scores(logits_NV: FloatArray) -> dict[str, float]:
    """Inception score and its spread, under their names in `results.json`; fewer than ten samples: as many splits."""
    mean, deviation = inception_score(logits_NV, splits=min(NUM_SPLITS, len(logits_NV)))
    return {"inception_score": mean, "inception_score_std": deviation}


def manifold_scores(generated_NF: FloatArray, real_MF: FloatArray) -> dict[str, float]:
    """Precision and recall with their spreads, under their names in `results.json`.

    Raises:
        ValueError: arrays that do not fit, or too few rows.
    """
    _check_pair(generated_NF, real_MF, least=NEIGHBOURHOOD + 1)
    hits = manifold_hits(generated_NF, real_MF)
    return {
        "precision": hits.precision,
        "precision_std": share_spread(hits.generated_N),
        "recall": hits.recall,
        "recall_std": share_spread(hits.real_M),
    }


def score_features(
    features_NF: FloatArray,
    logits_NV: FloatArray | None,
    reference_MF: FloatArray,
    *,
    distance_key: str = "fid",
    manifold_images: int = 0,
) -> dict[str, float]:
    """All scores of one set of images against the features of reference images.

    Args:
        features_NF, logits_NV: of the images; without logits there is no Inception score.
        reference_MF: features of the reference.
        distance_key: what the Fréchet distance is called in the result.
        manifold_images: precision and recall take so many of either side, drawn once with a fixed seed; 0 takes all.

    Returns:
        `fid`, `inception_score`, `precision`, `recall`, and of the last three their spreads (`…_std`).

    Raises:
        ValueError: arrays that do not fit.
    """
    sides = (features_NF, reference_MF)
    return {
        distance_key: frechet_distance(features_NF, reference_MF),
        **({} if logits_NV is None else inception_scores(logits_NV)),
        **manifold_scores(
            *(rows if not manifold_images else rows[drawn_rows(len(rows), manifold_images)] for rows in sides)
        ),
    }


def drawn_rows(count: int, wanted: int) -> NDArray[np.int64]:
    """`wanted` rows of `count`, or all where there are fewer: drawn once with a fixed seed, in order."""
    return np.sort(np.random.default_rng(_SELECTION_SEED).permutation(count)[:wanted])


def distance_to_training(
    samples_BHWC: ImageArray, training_BHWC: ImageArray, held_out_BHWC: ImageArray, *, side: int = 32
) -> DistanceToTraining:
    """Find the nearest training image of every sample and say whether samples lie suspiciously near.

    Args:
        samples_BHWC: generated images.
        training_BHWC: the images the generators were trained on.
        held_out_BHWC: real images nobody was trained on.
        side: images larger than this are averaged down to it before they are compared, in pixels.

    Raises:
        ValueError: images that do not fit each other.
    """
    for name, images in (("samples", samples_BHWC), ("training", training_BHWC), ("held out", held_out_BHWC)):
        check_images(images, f"{name} images")
        if images.shape[1:] != training_BHWC.shape[1:]:
            raise ValueError(f"{name} images: found {images.shape[1:]}, training images are {training_BHWC.shape[1:]}")
    return _nearness(*(_pixel_rows(images, side) for images in (samples_BHWC, training_BHWC, held_out_BHWC)))


def feature_distance_to_training(
    samples_NF: FloatArray, training_MF: FloatArray, held_out_KF: FloatArray
) -> DistanceToTraining:
    """The same in a feature space, where neither a shift nor a shade hides a copy."""
    return _nearness(*(torch.from_numpy(rows) for rows in (samples_NF, training_MF, held_out_KF)))


def _nearness(samples_NP: torch.Tensor, training_MP: torch.Tensor, held_out_KP: torch.Tensor) -> DistanceToTraining:
    sample_N, nearest_N = _nearest(samples_NP, training_MP)
    held_out_M, _ = _nearest(held_out_KP, training_MP)
    threshold = float(np.quantile(held_out_M, 0.05))
    return DistanceToTraining(
        sample_N=sample_N,
        nearest_N=nearest_N,
        held_out_M=held_out_M,
        threshold=threshold,
        share_nearer=float((sample_N < threshold).mean()),
    )


def peak_signal_to_noise(images_BHWC: ImageArray, originals_BHWC: ImageArray) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each reconstruction, in dB; the peak is 255.

    Returns:
        float64 (B,): 20·log10(255) - 10·log10(mean square error), an image without error counting as 1/12 grey level².

    Raises:
        ValueError: shapes differ.
    """
    if images_BHWC.shape != originals_BHWC.shape:
        raise ValueError(f"reconstructions: found {images_BHWC.shape}, originals are {originals_BHWC.shape}")
    difference = images_BHWC.astype(np.float64) - originals_BHWC
    error_B = np.maximum((difference**2).mean(axis=(1, 2, 3)), 1 / 12)
    return 20 * np.log10(255) - 10 * np.log10(error_B)


def _pixel_rows(images_BHWC: ImageArray, side: int) -> torch.Tensor:
    """One float32 row of pixels (0..255) per image, averaged down where larger than `side`."""
    images = torch.from_numpy(images_BHWC.copy()).permute(0, 3, 1, 2).to(torch.float32)
    if max(images.shape[-2:]) > side:
        images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return images.flatten(1)


def _nearest(rows_NP: torch.Tensor, training_MP: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Root-mean-square distance and row of the nearest training image of every row.

    Of large sets a matrix product, ten times as fast but less exact, names the candidates that are measured.
    """
    distances, picks = [], []
    measure_all = len(rows_NP) * training_MP.numel() <= _MEASURED_AT_MOST
    squares_M = training_MP.square().sum(dim=1)
    for block in rows_NP.split(512 if measure_all else max(1, _TABLE_ENTRIES // len(training_MP))):
        if measure_all:
            table = torch.cdist(block, training_MP, compute_mode="donot_use_mm_for_euclid_dist")
            values, rows = table.min(dim=1)
        else:
            table = torch.addmm(squares_M, block, training_MP.T, alpha=-2.0)
            near_BK = table.topk(_NUM_CANDIDATES, largest=False).indices
            values, places = (block[:, None] - training_MP[near_BK]).square().sum(dim=2).sqrt().min(dim=1)
            rows = near_BK.gather(1, places[:, None])[:, 0]
        distances.append(values)
        picks.append(rows)
    scale = training_MP.shape[1] ** 0.5
    return torch.cat(distances).double().numpy() / scale, torch.cat(picks).numpy()


def _check_features(array_NF: FloatArray, name: str, *, least: int) -> None:
    if array_NF.ndim != 2 or not np.issubdtype(array_NF.dtype, np.floating):
        raise ValueError(f"{name}: found {array_NF.dtype} {array_NF.shape}, expected floats (samples, features)")
    if len(array_NF) < least:
        raise ValueError(f"{name}: found {len(array_NF)} samples, expected at least {least}")
    if not np.isfinite(array_NF).all():
        raise ValueError(f"{name}: found values that are not finite")


def _check_pair(first_NF: FloatArray, second_MF: FloatArray, *, least: int) -> None:
    _check_features(first_NF, "features", least=least)
    _check_features(second_MF, "reference features", least=least)
    if first_NF.shape[1] != second_MF.shape[1]:
        raise ValueError(
            f"features: found {first_NF.shape[1]} columns beside {second_MF.shape[1]} of the reference; "
            "both must come from the same extractor"
        )
