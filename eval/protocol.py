"""How an evaluation was made, written beside its scores so that two of them can be compared."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np

from eval.evaluation_config import EvaluationConfig, EvaluationData
from eval.extractors import ExtractorSpec, layers_of
from eval.judge import Judge
from eval.metrics import NEIGHBOURHOOD, NUM_SPLITS, PERMUTATION_SEED
from eval.pool import SamplePool


def protocol(
    config: EvaluationConfig,
    data: EvaluationData,
    extractor: ExtractorSpec,
    pools: dict[str, SamplePool],
    judge: Judge | None,
) -> dict[str, Any]:
    """Everything that a score depends on beside the networks.

    Args:
        config: settings of the evaluation.
        data: real images.
        extractor: where the features come from.
        pools: name to drawn samples.
        judge: the classifier, or None.

    Returns:
        JSON values, with hashes of weights and images.
    """
    reference = hashlib.sha256(np.ascontiguousarray(data.train_images).tobytes()).hexdigest()
    feature_layer, logit_layer = layers_of(extractor.kind)
    return {
        "extractor": {
            "kind": extractor.kind,
            "sha256": extractor.weights_hash(),
            "feature_layer": feature_layer,
            "logit_layer": logit_layer,
        },
        "reference": {"images": len(data.train_images), "sha256": reference, "split": "train"},
        "fingerprints": data.fingerprints,
        "pools": {
            name: {
                **pool.identity,
                "num_samples": len(pool.samples.labels_B),
                "images_sha256": pool.images_sha256(),
            }
            for name, pool in pools.items()
        },
        "fid": "torch-fidelity, float64 statistics",
        "inception_score": {"splits": NUM_SPLITS, "permutation_seed": PERMUTATION_SEED},
        "precision_recall": {"neighbourhood": NEIGHBOURHOOD},
        "judge": None if judge is None else {**asdict(config.judge), "kind": "svm-rbf", "images": judge.num_images},
        "rounding": config.rounding,
    }
