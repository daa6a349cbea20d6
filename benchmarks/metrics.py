"""Time and memory of the scores at their published size: 50,000 samples, 2,048 features, 10,000 real images.

    .venv/bin/python benchmarks/metrics.py --threads 2
    .venv/bin/python benchmarks/metrics.py --samples 5000 --real 1000     # small

Each score runs in a process of its own, so that its peak memory is its own. `half` also decides precision and recall
from distances in float16, as ADM's script does, and says how far that moves them on these features.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from eval.scores.frechet import frechet, gather
from eval.scores.manifold import manifold_hits
from eval.scores.metrics import inception_score

PARTS = ("nothing", "fid", "inception_score", "precision_recall", "half")
NUM_FEATURES, NUM_LOGITS = 2048, 1008


def main() -> None:
    """Runs every part in a process of its own and prints one line each, then all as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--real", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--part", choices=PARTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.part:
        sys.stdout.write(json.dumps(measure(given.part, given.samples, given.real)))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "OPENBLAS_NUM_THREADS": str(given.threads)}
    results = {}
    for part in PARTS:
        command = [sys.executable, __file__, "--part", part, "--samples", str(given.samples), "--real", str(given.real)]
        done = subprocess.run(
            [*command, "--threads", str(given.threads)], capture_output=True, env=environment, check=True
        )
        results[part] = json.loads(done.stdout)
        line = (
            f"{part:18s} {results[part]['seconds']:8.1f} s {results[part]['peak_GB']:6.2f} GB  {results[part]['found']}"
        )
        sys.stdout.write(line + "\n")
    facts = {**vars(given), "machine": platform.processor(), "torch": torch.__version__}
    sys.stdout.write(json.dumps({"settings": facts, "results": results}) + "\n")


def measure(part: str, num_samples: int, num_real: int) -> dict[str, object]:
    """Seconds and peak memory of one score, features included."""
    samples, real = features(num_samples, 0), features(num_real, 1)
    logits = features(num_samples, 2, NUM_LOGITS) if part == "inception_score" else None
    began = time.perf_counter()
    found: object = None
    if part == "fid":
        found = frechet(gather([samples]).gaussian(), gather([real]).gaussian())
    elif part == "inception_score":
        assert logits is not None
        found = inception_score(logits)
    elif part == "precision_recall":
        hits = manifold_hits(samples, real)
        found = (hits.precision, hits.recall)
    elif part == "half":
        few, some = samples[:10_000], real[:5_000]
        whole = manifold_hits(few, some)
        found = {"float32": (whole.precision, whole.recall), "float16": half_precision_recall(few, some)}
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": round(seconds, 2), "peak_GB": round(peak, 2), "found": found}


def features(count: int, seed: int, width: int = NUM_FEATURES) -> np.ndarray:
    """Float32 rows that look like pool features: non-negative, correlated, mean far from zero."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(64, width)).astype(np.float32)
    rows = random.standard_normal((count, 64), dtype=np.float32) @ mixing / 16
    rows += 0.3 * random.standard_normal((count, width), dtype=np.float32)
    return np.abs(rows, out=rows)


def half_precision_recall(samples: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Precision and recall from squared distances that were rounded to float16, features too."""
    pair = [torch.from_numpy(rows).half().float() for rows in (samples, real)]
    radii = [
        torch.cat([_half_distances(block, rows).topk(4, largest=False).values[:, -1] for block in rows.split(1000)])
        for rows in pair
    ]
    inside = [
        torch.cat([(_half_distances(block, pair[1 - n]) <= radii[1 - n]).any(1) for block in pair[n].split(1000)])
        for n in (0, 1)
    ]
    return float(inside[0].float().mean()), float(inside[1].float().mean())


def _half_distances(block: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    first, second = (side.square().sum(1).half().float() for side in (block, rows))
    return (first[:, None] - (2 * (block @ rows.T).half().float()) + second).half().float().clamp_min(0)


if __name__ == "__main__":
    main()
