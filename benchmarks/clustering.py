"""Measures the clustering of 256 x 32 latents: compiled, in rounds, and the sequential greedy loop in torch.

    .venv/bin/python benchmarks/clustering.py --output docs/results/clustering.json

All of them in one run and in turns. The loop is greedy as the paper writes it, for a whole batch at a time: one argmin
over the flat distance matrix for each pair, L/2 for a level. `--device cuda` compares the loop, the rounds and Triton's
kernel there, and the compiled kernel of the CPU with the copies to it and back.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from device_clock import seconds_of
from torch import Tensor

from nvg.granularity.clustering import merge_compiled, merge_in_rounds

LEVELS = 8


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--agreement", type=int, default=1024, help="latents compared with the library's distances")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the figures")
    given = parser.parse_args()
    torch.manual_seed(0)
    load_before = os.getloadavg()[0]
    ours = merge_compiled if given.device == "cpu" else in_triton
    ways = {"sequential loop": sequential_loop, "rounds": merge_in_rounds, "ours": ours}
    if given.device != "cpu":
        ways["on the CPU and back"] = through_cpu
    random = torch.randn(given.batch, 256, 32, device=given.device)
    together = milliseconds_per_image(ways, random, given.threads, given.repeats)
    kinds = {name: make(random) for name, make in KINDS.items()}
    alone = {
        name: milliseconds_per_image({"ours": ours}, latent, 1, given.repeats)["ours"] for name, latent in kinds.items()
    }
    results: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load_before, 2),
        "device": given.device if given.device == "cpu" else torch.cuda.get_device_name(),
        f"ms_per_image_{given.threads}_threads": together,
        "times_the_loop": {
            name: round(together["sequential loop"]["median"] / times["median"], 1) for name, times in together.items()
        },
        "ms_per_image_1_thread": alone,
        "slowest_kind_over_random": round(
            max(times["median"] for times in alone.values()) / alone["random"]["median"], 2
        ),
        **agreement(ours, given.agreement, given.device),
    }
    text = json.dumps(results, indent=2)
    sys.stdout.write(text + "\n")
    if given.output is not None:
        given.output.write_text(text + "\n")


def half_constant(latent_BLC: Tensor, alike: slice) -> Tensor:
    """A white background: some positions hold one vector."""
    changed = latent_BLC.clone()
    changed[:, alike] = changed[:, :1]
    return changed


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda latent: latent,
    "constant": lambda latent: torch.zeros_like(latent),
    "first half constant": lambda latent: half_constant(latent, slice(128)),
    "last half constant": lambda latent: half_constant(latent, slice(128, 256)),
    "every other constant": lambda latent: half_constant(latent, slice(0, 256, 2)),
}


def sequential_loop(latent_BLC: Tensor, num_levels: int) -> Tensor:
    """Greedy with one argmin over the flat matrix for each pair, a batch at a time; members as `merge_in_rounds`."""
    num_images, num_points, _ = latent_BLC.shape
    rows_B = torch.arange(num_images, device=latent_BLC.device)
    members_BNM = torch.arange(num_points, device=latent_BLC.device).expand(num_images, -1)[:, :, None]
    for _ in range(num_levels):
        means_BNC = latent_BLC[rows_B[:, None, None], members_BNM].mean(2)
        number = means_BNC.shape[1]
        open_BNN = torch.cdist(means_BNC, means_BNC, compute_mode="donot_use_mm_for_euclid_dist")
        open_BNN.masked_fill_(torch.ones(number, number, device=latent_BLC.device).tril().bool(), torch.inf)
        pairs_BP2 = torch.empty(num_images, number // 2, 2, dtype=torch.int64, device=latent_BLC.device)
        for pair in range(number // 2):
            chosen_B = open_BNN.flatten(1).argmin(1)
            ends_B2 = torch.stack([chosen_B // number, chosen_B % number], dim=1)
            pairs_BP2[:, pair] = ends_B2
            open_BNN[rows_B[:, None], ends_B2] = torch.inf
            open_BNN[rows_B[:, None], :, ends_B2] = torch.inf
        members_BNM = members_BNM[rows_B[:, None, None], pairs_BP2].flatten(2)
    return members_BNM


def in_triton(latent_BLC: Tensor, num_levels: int) -> Tensor:
    """Triton's kernel; members as `merge_in_rounds`."""
    from nvg.granularity.triton_clustering import merge_in_triton

    return merge_in_triton(latent_BLC, num_levels)[0]


def through_cpu(latent_BLC: Tensor, num_levels: int) -> Tensor:
    """The compiled kernel for latents of another device."""
    return merge_compiled(latent_BLC.cpu(), num_levels).to(latent_BLC.device)


def milliseconds_per_image(
    ways: dict[str, Callable[[Tensor, int], Tensor]], latent_BLC: Tensor, threads: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Lowest, median and highest milliseconds an image of each way, the ways taken in turns."""
    torch.set_num_threads(threads)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):  # the first round warms up
        for name, way in ways.items():
            seconds = seconds_of(partial(way, latent_BLC, LEVELS), latent_BLC.device)
            if repeat:
                found[name].append(1e3 * seconds / len(latent_BLC))
    return {
        name: {
            "lowest": round(min(times), 3),
            "median": round(statistics.median(times), 3),
            "highest": round(max(times), 3),
        }
        for name, times in found.items()
    }


def agreement(ours: Callable[[Tensor, int], Tensor], number: int, device: str) -> dict[str, float]:
    """Share of random latents whose map is another one when the library sums the distances: near-ties, nothing else."""
    different = 0
    for _ in range(number // 64):
        latent_BLC = torch.randn(64, 256, 32, device=device)
        different += int((ours(latent_BLC, LEVELS) != sequential_loop(latent_BLC, LEVELS)).flatten(1).any(1).sum())
    return {"latents_compared": 64 * (number // 64), "share_with_near_ties": different / max(1, 64 * (number // 64))}


if __name__ == "__main__":
    main()
