"""One evaluation: draw samples, score them, and put the same scores of real images beside them.

A score alone says little. So every number of the generated images stands beside that of real images nobody
trained on (what is reachable), of their tokenizer reconstructions (what the tokenizer loses) and of samples
without guidance (what the generators learned). FID, precision and recall compare with the training images.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from eval.evaluation_config import Evaluation, EvaluationConfig, EvaluationData, EvaluationMaterial
from eval.features.extractors import (
    ExtractorConfig,
    ExtractorSpec,
    build_extractor,
    extract,
    given_extractor,
    trained_extractor,
)
from eval.image_sets import Features
from eval.pictures.paintings import paint_images, paint_samples
from eval.pool.jobs import SamplePool, run_pool
from eval.pool.samplers import GeneratorSpec
from eval.results import protocol, threads, timed, write_results
from eval.scores.judge import Judge, class_accuracy, train_judge
from eval.scores.metrics import distance_to_training, peak_signal_to_noise, score_features
from nvg.checkpoints import load_network
from nvg.pixels import ImageArray, to_model_range, to_uint8
from nvg.tokenizer import Tokenizer

SCHEMA_VERSION = 1
NUM_PAINTINGS = 4


def evaluate(config: EvaluationConfig, data: EvaluationData, *, console: Console | None = None) -> Evaluation:
    """Draw, score, compare; write `results.json` into the output folder.

    Everything already computed for the same weights and settings is taken from the output folder.

    Args:
        config: what is evaluated, and how.
        data: real images.
        console: where progress bars are drawn.

    Returns:
        The results and the images for the report.

    Raises:
        UserError: weights are missing or do not fit the data.
        ValueError: settings or images do not fit.
    """
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    num_classes = len(data.class_names)
    spec = config.generator_spec(num_classes)
    spec.identity()
    spec.check()
    with timed(seconds, "feature network"), threads(config.pool.threads_per_actor):
        extractor_spec = prepare_extractor(config, data)
    pools = {"generated": _draw(spec, config, extractor_spec, "Sampling", console, seconds, "sampling")}
    if config.guidance_one:
        plain = replace(spec, sampling=replace(config.sampling, content_guidance=1.0, structure_guidance=1.0))
        pools["generated_guidance_1"] = _draw(
            plain,
            config,
            extractor_spec,
            "Sampling at guidance 1",
            console,
            seconds,
            "sampling at guidance 1",
        )
    with timed(seconds, "reconstructions and paintings"), threads(config.pool.threads_per_actor):
        reconstructions = reconstruct(config, data.held_out_images)
        paintings = paint_samples(spec, config.pool, count=NUM_PAINTINGS)
        real_paintings = paint_images(spec, data.held_out_images, data.held_out_labels, count=2)
    with timed(seconds, "scores"), threads(config.pool.threads_per_actor):
        extractor = build_extractor(extractor_spec)
        reference = extract(extractor, data.train_images)
        judge = _train_judge(config, data)
        real = data.held_out_images, data.held_out_labels, extract(extractor, data.held_out_images)
        copies = reconstructions, data.held_out_labels, extract(extractor, reconstructions)
        scores = {
            name: _scores(
                pool.samples.images_BHWC,
                pool.samples.labels_B,
                Features(pool.samples.features_BF, pool.samples.logits_BV),
                reference,
                judge,
                num_classes,
            )
            for name, pool in pools.items()
        }
        scores["held_out"] = _scores(*real, reference, judge, num_classes)
        scores["reconstructions"] = _scores(*copies, reference, judge, num_classes)
        scores["reconstructions"]["psnr_db"] = float(peak_signal_to_noise(reconstructions, data.held_out_images).mean())
        samples = pools["generated"].samples
        seen = data.train_images if data.train_views is None else data.train_views
        near = distance_to_training(samples.images_BHWC, seen, data.held_out_images)
        scores["generated"]["distance_to_training"] = {
            "share_nearer_than_95_percent_of_held_out": near.share_nearer,
            "threshold_grey_levels": near.threshold,
            "median_grey_levels": float(np.median(near.sample_N)),
            "held_out_median_grey_levels": float(np.median(near.held_out_M)),
        }
    results = {
        "schema_version": SCHEMA_VERSION,
        "scores": scores,
        "protocol": protocol(config, data, extractor_spec, pools, judge),
        "seconds": seconds,
    }
    write_results(output, results)
    material = EvaluationMaterial(
        class_names=data.class_names,
        generated=samples.images_BHWC,
        generated_labels=samples.labels_B,
        held_out=data.held_out_images,
        held_out_labels=data.held_out_labels,
        reconstructions=reconstructions,
        nearest=seen[near.nearest_N],
        nearest_distance=near.sample_N,
        distance_threshold=near.threshold,
        paintings=paintings,
        real_paintings=real_paintings,
    )
    return Evaluation(results=results, material=material)


def prepare_extractor(config: ExtractorConfig, data: EvaluationData) -> ExtractorSpec:
    """The extractor the configuration names; a feature network is trained where none is there.

    Args:
        config: what is evaluated, and how.
        data: real images; the network learns from the training images.

    Returns:
        The spec, its weights on disk.

    Raises:
        UserError: weights named in the configuration are missing.
    """
    labels, num_classes = data.train_labels, len(data.class_names)
    return given_extractor(config) or trained_extractor(config, data.train_images, labels, num_classes)


def reconstruct(config: EvaluationConfig, images_BHWC: ImageArray, *, batch_size: int = 64) -> ImageArray:
    """Send images through the tokenizer and back.

    Args:
        config: names the tokenizer and the rounding.
        images_BHWC: uint8 images.
        batch_size: images per pass.

    Returns:
        uint8 images of the same shape.

    Raises:
        UserError: the tokenizer is missing or takes images of another size.
    """
    tokenizer = load_network(Tokenizer, config.tokenizer, name=config.tokenizer_weights)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images_BHWC), batch_size):
            batch = to_model_range(images_BHWC[start : start + batch_size])
            parts.append(to_uint8(tokenizer.reconstruct(batch), config.rounding))
    return np.concatenate(parts)


def _draw(
    spec: GeneratorSpec,
    config: EvaluationConfig,
    extractor: ExtractorSpec,
    title: str,
    console: Console | None,
    seconds: dict[str, float],
    name: str,
) -> SamplePool:
    with timed(seconds, name):
        return run_pool(
            spec,
            config=config.pool,
            extractor=extractor,
            folder=Path(config.output) / "pool",
            title=title,
            console=console,
        )


def _train_judge(config: EvaluationConfig, data: EvaluationData) -> Judge | None:
    if data.judge_images is None or data.judge_labels is None:
        return None
    return train_judge(data.judge_images, data.judge_labels, num_classes=len(data.class_names), config=config.judge)


def _scores(
    images: ImageArray,
    labels: np.ndarray,
    features: Features,
    reference: Features,
    judge: Judge | None,
    num_classes: int,
) -> dict[str, Any]:
    scores: dict[str, Any] = {"num_images": len(images)}
    scores |= score_features(features.features_NF, features.logits_NV, reference.features_NF)
    if judge is not None:
        scores["class_accuracy"], scores["class_accuracy_by_class"] = class_accuracy(
            judge.read(images), labels, num_classes
        )
    return scores
