"""One evaluation without a reference file: draw samples, score them, and put real images' scores beside theirs.

A score alone says little. So every number of the generated images stands beside that of real images nobody
trained on (what is reachable), of their tokenizer reconstructions (what the tokenizer loses) and of samples
without guidance (what the generators learned). FID (or FD), precision and recall compare with the training images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from eval.features.extractors import (
    ExtractorConfig,
    ExtractorSpec,
    build_extractor,
    extract,
    given_extractor,
    scores_of,
    trained_extractor,
)
from eval.image_sets import Features, ImageSet
from eval.pictures.paintings import Painting, paint_images, paint_samples
from eval.pool.jobs import SamplePool, kept_features, run_pool
from eval.pool.pool import PoolConfig
from eval.pool.samplers import GeneratorSpec
from eval.results import (
    caveat,
    comparability,
    comparison_caveats,
    count_caveats,
    metric_protocol,
    size_caveats,
    threads,
    timed,
    write_results,
)
from eval.scores.judge import Judge, JudgeConfig, class_accuracy, train_judge, why_no_judge, why_not_trusted
from eval.scores.manifold import LEAST_IMAGES
from eval.scores.metrics import (
    DistanceToTraining,
    distance_to_training,
    feature_distance_to_training,
    peak_signal_to_noise,
    score_features,
)
from nvg.checkpoints import load_network
from nvg.errors import UserError
from nvg.pixels import ImageArray, to_model_range, to_uint8
from nvg.tokenizer import Tokenizer

SCHEMA_VERSION = 1
_NUM_PAINTINGS = 4
_TRAIN = "train"


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """Real images, in memory.

    Attributes:
        class_names: names in order of the labels.
        train: the reference of FID, precision and recall.
        held_out: images neither tokenizer nor generators nor judge were trained on.
        judge: images for the judge alone; without them, or without one of each class, class accuracy is left out.
        train_views: every view of the training images that the generators saw, in which copies are looked for;
            None takes those of `train`.
        fingerprints: name of a split to its source's fingerprint, for the protocol.
        seen_in_training: why scores may be those of images that networks have seen, a clause each.
    """

    class_names: list[str]
    train: ImageSet
    held_out: ImageSet
    judge: ImageSet | None = None
    train_views: ImageArray | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    seen_in_training: list[str] = field(default_factory=list)

    @property
    def seen(self) -> ImageArray:
        """Images the generators have seen."""
        return self.train.images if self.train_views is None else self.train_views

    @property
    def no_judge(self) -> str:
        """Why there is no judge, as a clause; empty where there is one."""
        return why_no_judge(self.class_names, np.zeros(0, np.int64) if self.judge is None else self.judge.labels)

    def __post_init__(self) -> None:
        scored = {"training": self.train, "held-out": self.held_out}
        check_counts({name: len(images) for name, images in scored.items()})
        for name, images in (scored if self.judge is None else {**scored, "judge": self.judge}).items():
            images.check(len(self.class_names), name)
            if images.images.shape[1:] != self.train.images.shape[1:]:
                raise ValueError(
                    f"{name} images: found {images.images.shape[1:]}, the training images are "
                    f"{self.train.images.shape[1:]}"
                )


def check_counts(counts: Mapping[str, int]) -> None:
    """Refuse parts too small to be scored; `counts` are images by what a message calls the part.

    Raises:
        UserError: names the part.
    """
    for name, count in counts.items():
        if count < LEAST_IMAGES:
            raise UserError(
                f"{name} images: found {count}, expected at least {LEAST_IMAGES} for precision and recall; give more "
                "images, or change source.test_fraction"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationMaterial:
    """Images the report shows.

    Attributes:
        class_names: names in order of the labels.
        generated: samples, with the classes asked for.
        held_out: real images.
        reconstructions: of the held-out images.
        nearest: training image nearest to each generated one.
        nearest_distance: its distance, in grey levels.
        paintings: samples after every stage.
        real_paintings: held-out images after every stage.
    """

    class_names: list[str]
    generated: ImageSet
    held_out: ImageSet
    reconstructions: ImageArray
    nearest: ImageArray
    nearest_distance: np.ndarray
    paintings: list[Painting]
    real_paintings: list[Painting]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores as JSON values, and the images the report shows."""

    results: dict[str, Any]
    material: EvaluationMaterial


def evaluate(
    spec: GeneratorSpec,
    data: EvaluationData,
    config: ExtractorConfig,
    *,
    pool: PoolConfig,
    judge: JudgeConfig,
    guidance_one: bool = True,
    manifold_images: int = 0,
    console: Console | None = None,
) -> Evaluation:
    """Draw, score, compare; write `results.json` into the output folder.

    Everything already computed for the same weights and settings is taken from the output folder.

    Args:
        spec: what is drawn from.
        data: real images.
        config: where features come from, and the output folder.
        pool: size and shape of the sampling pool; Ray must be initialised.
        judge: how the judge is trained.
        guidance_one: also draw with both guidance scales at 1, all else unchanged.
        manifold_images: see `score_features`.
        console: where progress bars are drawn.

    Raises:
        UserError: weights are missing or do not fit the data.
        ValueError: settings or images do not fit.
    """
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    spec.identity()
    spec.check()
    judge.extractor()
    with timed(seconds, "feature network"), threads(pool.threads_per_actor):
        extractor = prepare_extractor(config, data)
    pools = _draw(spec, extractor, pool, guidance_one, output / "pool", console, seconds)
    sets = {name: pool_images(drawn) for name, drawn in pools.items()}
    with timed(seconds, "reconstructions and paintings"), threads(pool.threads_per_actor):
        copies = reconstruct(
            spec.tokenizer, data.held_out.images, weights=spec.tokenizer_weights, rounding=spec.rounding
        )
        paintings = paint_samples(spec, pool, count=_NUM_PAINTINGS)
        real_paintings = paint_images(spec, data.held_out.images, data.held_out.labels, count=2)
    with timed(seconds, "scores"), threads(pool.threads_per_actor):
        sets |= {"held_out": data.held_out, "reconstructions": ImageSet(copies, data.held_out.labels)}
        fitted = _fit(data, judge)
        looked = _look({**sets, _TRAIN: data.train}, extractor, pool, output / "features")
        scores, near = _score(looked, data, extractor, fitted, manifold_images)
    results = {
        "schema_version": SCHEMA_VERSION,
        "scores": scores,
        "caveats": _caveats(scores, looked, data, extractor, manifold_images),
        **comparability(extractor),
        "protocol": _protocol(data, extractor, pools, fitted, spec, manifold_images),
        "seconds": seconds,
    }
    write_results(output, results)
    material = EvaluationMaterial(
        class_names=data.class_names,
        generated=sets["generated"],
        held_out=data.held_out,
        reconstructions=copies,
        nearest=data.seen[near.nearest_N],
        nearest_distance=near.sample_N,
        paintings=paintings,
        real_paintings=real_paintings,
    )
    return Evaluation(results=results, material=material)


def prepare_extractor(config: ExtractorConfig, data: EvaluationData) -> ExtractorSpec:
    """The extractor the configuration names; where there is none, a feature network trained on the training images.

    Raises:
        UserError: weights named in the configuration are missing.
    """
    return given_extractor(config) or trained_extractor(config, data.train, len(data.class_names))


def reconstruct(
    folder: str, images_BHWC: ImageArray, *, weights: str = "ema", rounding: str = "release", batch_size: int = 64
) -> ImageArray:
    """Send images through the tokenizer in a folder and back.

    Raises:
        UserError: the tokenizer is missing or takes images of another size.
    """
    tokenizer = load_network(Tokenizer, folder, name=weights)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images_BHWC), batch_size):
            batch = to_model_range(images_BHWC[start : start + batch_size])
            parts.append(to_uint8(tokenizer.reconstruct(batch), rounding))
    return np.concatenate(parts)


def _draw(
    spec: GeneratorSpec,
    extractor: ExtractorSpec,
    pool: PoolConfig,
    guidance_one: bool,
    folder: Path,
    console: Console | None,
    seconds: dict[str, float],
) -> dict[str, SamplePool]:
    titles, specs = {"generated": "Sampling"}, {"generated": spec}
    if guidance_one:
        titles["generated_guidance_1"] = "Sampling at guidance 1"
        plain = replace(spec.sampling, content_guidance=1.0, structure_guidance=1.0)
        specs["generated_guidance_1"] = replace(spec, sampling=plain)
    pools = {}
    for name, title in titles.items():
        with timed(seconds, title.lower()):
            pools[name] = run_pool(
                specs[name], config=pool, extractor=extractor, folder=folder, title=title, console=console
            )
    return pools


def pool_images(pool: SamplePool) -> ImageSet:
    """The samples of a pool with the features it computed."""
    samples = pool.samples
    return ImageSet(samples.images_BHWC, samples.labels_B, Features(samples.features_BF, samples.logits_BV))


def _fit(data: EvaluationData, config: JudgeConfig) -> Judge | None:
    if data.judge is None or data.no_judge:
        return None
    return train_judge(data.judge.images, data.judge.labels, num_classes=len(data.class_names), config=config)


def _look(sets: dict[str, ImageSet], spec: ExtractorSpec, pool: PoolConfig, folder: Path) -> dict[str, ImageSet]:
    """The sets with the features of those that have none; a large network's are kept in the folder."""
    extractor, looked = build_extractor(spec), {}
    for name, images in sets.items():
        features = images.features
        if features is None and spec.distance_key == "fid":
            features = extract(extractor, images.images)
        elif features is None:
            features = kept_features(extractor, spec, images.images, config=pool, folder=folder)
        looked[name] = replace(images, features=features)
    return looked


def _score(
    looked: dict[str, ImageSet], data: EvaluationData, spec: ExtractorSpec, judge: Judge | None, manifold_images: int
) -> tuple[dict[str, dict[str, Any]], DistanceToTraining]:
    """All scores of each set against the training images, and how near the samples come to one of these."""
    sets = {name: (images, images.features) for name, images in looked.items() if images.features is not None}
    reference_NF = sets[_TRAIN][1].features_NF
    scores: dict[str, dict[str, Any]] = {}
    for name, (images, features) in sets.items():
        if name == _TRAIN:
            continue
        row: dict[str, Any] = {"num_images": len(images)}
        row |= score_features(
            features.features_NF,
            features.logits_NV,
            reference_NF,
            distance_key=spec.distance_key,
            manifold_images=manifold_images,
        )
        if judge is not None:
            row["class_accuracy"], row["class_accuracy_by_class"] = class_accuracy(
                judge.read(images.images, features.features_NF if judge.looks_with(spec) else None),
                images.labels,
                len(data.class_names),
            )
        scores[name] = row
    copies = looked["reconstructions"].images
    scores["reconstructions"]["psnr_db"] = float(peak_signal_to_noise(copies, data.held_out.images).mean())
    near = distance_to_training(looked["generated"].images, data.seen, data.held_out.images)
    found: dict[str, Any] = near.summary("grey_levels")
    if spec.distance_key == "fd":
        rows = [sets[name][1].features_NF for name in ("generated", _TRAIN, "held_out")]
        found["in_features"] = {"of": spec.kind, **feature_distance_to_training(*rows).summary("distance")}
    scores["generated"]["distance_to_training"] = found
    return scores, near


def _caveats(
    scores: dict[str, dict[str, Any]],
    looked: dict[str, ImageSet],
    data: EvaluationData,
    spec: ExtractorSpec,
    manifold_images: int,
) -> list[dict[str, Any]]:
    """What neither the judge nor the real images can carry."""
    found = [caveat(["class_accuracy"], [], f"left out: {data.no_judge}")] if data.no_judge else []
    if not data.no_judge:
        reason = why_not_trusted(scores["held_out"]["class_accuracy"], data.held_out.labels)
        found += [caveat(["class_accuracy"], list(scores), reason)] if reason else []
    features = looked["generated"].features
    assert features is not None
    judged = [] if data.no_judge else ["class_accuracy"]
    compared, real = scores_of(spec.kind), [name for name in ("reconstructions", "held_out") if name in scores]
    counts, num_train = {name: row["num_images"] for name, row in scores.items()}, len(data.train)
    of_a_side = {name: min(count, manifold_images or count) for name, count in counts.items()}
    num_manifold = min(num_train, manifold_images or num_train)
    return [
        *found,
        *(caveat([*compared, *judged], real, reason) for reason in data.seen_in_training),
        *count_caveats(
            counts,
            scores=(*compared, "distance_to_training"),
            num_features=features.features_NF.shape[1],
            num_reference=num_train,
            num_manifold=num_manifold,
        ),
        *size_caveats(of_a_side, num_manifold),
        *comparison_caveats(scores),
    ]


def _protocol(
    data: EvaluationData,
    extractor: ExtractorSpec,
    pools: dict[str, SamplePool],
    judge: Judge | None,
    spec: GeneratorSpec,
    manifold_images: int,
) -> dict[str, Any]:
    """Everything that a score depends on beside the networks, with hashes of weights and images."""
    reference = hashlib.sha256(np.ascontiguousarray(data.train.images).tobytes()).hexdigest()
    return {
        **metric_protocol(extractor, manifold_images=manifold_images),
        "reference": {"images": len(data.train), "sha256": reference, "split": "train"},
        "fingerprints": data.fingerprints,
        "pools": {
            name: {**pool.identity, "num_samples": len(pool.samples.labels_B), "images_sha256": pool.images_sha256()}
            for name, pool in pools.items()
        },
        "judge": None if judge is None else judge.protocol(),
        "rounding": spec.rounding,
        **spec.computed,
    }
