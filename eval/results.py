"""`results.json`, which every evaluation leaves behind: how it is written and timed, and what made its scores."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cluster.files import write_atomically
from cluster.manifest import library_versions
from eval.features.extractors import ExtractorSpec, layers_of
from eval.scores import frechet
from eval.scores.manifold import NEIGHBOURHOOD
from eval.scores.metrics import NUM_SPLITS, PERMUTATION_SEED

RESULTS_FILE = "results.json"


def write_results(folder: Path, results: dict[str, Any]) -> Path:
    """Write `results.json` into a folder; a number that is not finite is refused."""
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
    """How features became scores, as JSON values: extractor with its hash and layers, each metric, library versions."""
    layers = layers_of(extractor.kind)
    return {
        "extractor": {"kind": extractor.kind, "sha256": extractor.weights_hash(), **layers},
        "fid": frechet.METHOD,
        "inception_score": {"splits": NUM_SPLITS, "permutation_seed": PERMUTATION_SEED},
        "precision_recall": {"neighbourhood": NEIGHBOURHOOD, "precision": "float32", "layer": layers["feature_layer"]},
        "libraries": library_versions(),
    }
