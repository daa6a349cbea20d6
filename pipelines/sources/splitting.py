"""Seeded, stratified train/judge/test parts of a source that comes without any."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from pipelines.sources.config import SourceConfig


def select_split(keys: Sequence[str], labels: Sequence[int], config: SourceConfig) -> list[int]:
    """Choose the inputs of `config.split`.

    Within each class, inputs are ordered by a hash of (seed, key); the first `judge_fraction` of them are the
    judge's, the next `test_fraction` the test's, the rest is for training.

    Args:
        keys: Unique names of all inputs.
        labels: Class of each.
        config: Split, seed and fractions.

    Returns:
        Ascending indices of the chosen inputs. "train", "judge" and "test" are disjoint and cover "all". Of an
        "imagenet" source, which is listed by its own division, all inputs.
    """
    if config.split == "all" or config.kind == "imagenet":
        return list(range(len(keys)))
    label_N = np.asarray(labels, dtype=np.int64)
    chosen: list[int] = []
    for label in np.unique(label_N):
        members = [int(index) for index in np.flatnonzero(label_N == label)]
        members.sort(key=lambda index: hashlib.sha256(f"{config.seed}/{keys[index]}".encode()).digest())
        first = round(len(members) * config.judge_fraction)
        second = first + round(len(members) * config.test_fraction)
        parts = {"judge": members[:first], "test": members[first:second], "train": members[second:]}
        chosen += parts[config.split]
    return sorted(chosen)
