"""`results.json`: what every evaluation leaves behind.

Wall time of the parts of an evaluation, and the thread count that makes the driver's numbers repeatable.

How an evaluation was made, written beside its scores so that two of them can be compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.files import write_atomically
from cluster.manifest import library_versions
from eval.evaluation_config import EvaluationConfig, EvaluationData
from eval.features.extractors import ExtractorSpec, layers_of
from eval.pool.jobs import SamplePool
from eval.scores import frechet
from eval.scores.judge import Judge
from eval.scores.manifold import NEIGHBOURHOOD
from eval.scores.metrics import NUM_SPLITS, PERMUTATION_SEED

RESULTS_FILE = "results.json"


def write_results(folder: Path, results: dict[str, Any]) -> Path:
    """Write `results.json`; a number that is not finite is refused.

    Args:
        folder: where to.
        results: JSON values.

    Returns:
        The file.
    """
    path = folder / RESULTS_FILE
    write_atomically(path, f"{json.dumps(results, indent=2, allow_nan=False)}\n".encode())
    return path


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the body took, under a name."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """The same thread count as in a worker, so that the driver's numbers are as repeatable as theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def metric_protocol(extractor: ExtractorSpec) -> dict[str, Any]:
    """How features became scores.

    Args:
        extractor: where the features come from.

    Returns:
        JSON values: extractor with its hash and layers, each metric, library versions.
    """
    layers = layers_of(extractor.kind)
    return {
        "extractor": {"kind": extractor.kind, "sha256": extractor.weights_hash(), **layers},
        "fid": frechet.METHOD,
        "inception_score": {"splits": NUM_SPLITS, "permutation_seed": PERMUTATION_SEED},
        "precision_recall": {"neighbourhood": NEIGHBOURHOOD, "precision": "float32", "layer": layers["feature_layer"]},
        "libraries": library_versions(),
    }


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
    return {
        **metric_protocol(extractor),
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
        "judge": None if judge is None else {**asdict(config.judge), "kind": "svm-rbf", "images": judge.num_images},
        "rounding": config.rounding,
    }
