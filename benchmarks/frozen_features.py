"""EfficientNet-Lite0 as loading leaves it, folded and with channels last in memory, against timm's own form.

    .venv/bin/python benchmarks/frozen_features.py

Timed in turns: the tokenizer's feature loss with its backward pass (32 grey images of 32×32, shown at 64), and features
for scores (16 images at 224). Random weights cost what trained ones do.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable

import torch
from device_clock import seconds_of

from nvg.tokenizer import EfficientNetFeatures, FeatureDistance

LOSS, SCORES = "feature loss, forward and backward", "features for scores"
SCORES_SIDE, SCORES_BATCH = 224, 16


class AsInTimm(EfficientNetFeatures):
    """The baseline: channels first, every BatchNorm by itself."""

    def fold(self) -> None:
        """Leaves everything as it is."""


def main() -> None:
    """Prints milliseconds of both, and the same as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names: dict[str, type[EfficientNetFeatures]] = {"as in timm": AsInTimm, "folded": EfficientNetFeatures}
    calls = {(task, name): build(kind, given.device) for name, kind in names.items() for task, build in TASKS.items()}
    for call in calls.values():
        call()  # warm-up
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(given.repeats):
        for key, call in calls.items():
            seconds[key].append(seconds_of(call, given.device))
    rows = [
        {"task": task, "network": name, "fastest_ms": 1e3 * min(values), "median_ms": 1e3 * statistics.median(values)}
        for (task, name), values in sorted(seconds.items())
    ]
    for row in rows:
        sys.stdout.write(
            f"{row['task']:36s} {row['network']:12s} {row['fastest_ms']:8.1f} {row['median_ms']:8.1f} ms\n"
        )
    device = torch.cuda.get_device_name() if given.device == "cuda" else platform.processor()
    sys.stdout.write(json.dumps({**vars(given), "torch": torch.__version__, "device": device, "rows": rows}) + "\n")


def feature_loss(kind: type[EfficientNetFeatures], device: str) -> Callable[[], object]:
    """One loss and its gradient in the images."""
    distance = FeatureDistance(32)
    distance.network = filled(kind, distance.network.input_side)
    distance = distance.to(device)
    found, expected = (torch.rand(32, 1, 32, 32, device=device) * 2 - 1 for _ in range(2))
    found.requires_grad_()
    return lambda: torch.autograd.grad(distance(found, expected).mean(), found)


def features(kind: type[EfficientNetFeatures], device: str) -> Callable[[], object]:
    """One batch of pooled features."""
    network = filled(kind, SCORES_SIDE).to(device)
    images = torch.rand(SCORES_BATCH, 3, SCORES_SIDE, SCORES_SIDE, device=device) * 2 - 1
    return torch.no_grad()(lambda: network(images))


def filled(kind: type[EfficientNetFeatures], input_side: int) -> EfficientNetFeatures:
    """The network as loading leaves it."""
    network = kind(input_side)
    network.fold()
    return network


TASKS = {LOSS: feature_loss, SCORES: features}


if __name__ == "__main__":
    main()
