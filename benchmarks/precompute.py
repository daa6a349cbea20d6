"""Measures precompute: two Ray actors of one thread against two processes started by hand, and the bytes of a record.

    .venv/bin/python benchmarks/precompute.py --output docs/results/precompute.json

Class folders of photograph-like JPEGs are made in a temporary folder and encoded with a random tokenizer, f16 at
`--size`; both ways do the same units, in turns. What is timed is the work: the views a second of each worker from its
first unit begun to its last one committed, added up; the start of processes is left out.
On a GPU: `--device cuda --base-width 128 --size 256 --actors 1`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from device_clock import wait_for
from image_loading import make_folders
from random_tokenizer import write_tokenizer

from cluster.session import SessionConfig, cluster_session
from nvg.checkpoints import load_network, weights_hash
from nvg.granularity import cluster_latents
from nvg.pixels import to_model_range
from nvg.records import read_index
from nvg.tokenizer import Tokenizer, TokenizerConfig
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.job import precompute
from pipelines.precompute.plan import DatasetFolder, make_plan
from pipelines.precompute.unit import encode_unit
from pipelines.sources import SourceConfig, open_source


def main() -> None:
    """Measures, prints, writes; with `--by-hand` it is one of the processes started by hand."""
    given = arguments()
    if given.by_hand is not None:
        encode_by_hand(job(given, given.root, "by-hand"), given.by_hand)
        return
    load_before = os.getloadavg()[0]
    rates: dict[str, list[float]] = {"actors": [], "processes by hand": []}
    with tempfile.TemporaryDirectory() as folder:
        given.root = Path(folder)
        make_folders(given.root / "images", given.images, 500, 375)
        write_tokenizer(given.root / "tokenizer", TokenizerConfig(image_size=given.size, base_width=given.base_width))
        session = SessionConfig(address="local", num_cpus=given.actors, num_gpus=int(given.device == "cuda"))
        with cluster_session(session):
            for repeat in range(given.repeats):
                config = job(given, given.root, f"actors-{repeat}")
                rates["actors"].append(rate_of_actors(config))
                rates["processes by hand"].append(rate_by_hand(given))
        records = given.root / "actors-0"
        num_bytes = sum(entry["raw_data"]["bytes"] for entry in read_index(records))
        num_records = sum(entry["samples"] for entry in read_index(records))
        parts = milliseconds_of_parts(job(given, given.root, "parts"))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    results: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load_before, 2),
        "views_per_s": {name: [round(value, 2) for value in values] for name, values in rates.items()},
        "actors_over_processes_by_hand": round(medians["actors"] / medians["processes by hand"], 3),
        "bytes_per_record": round(num_bytes / num_records, 1),
        "ms_a_view_one_thread": parts,
    }
    text = json.dumps(results, indent=2)
    sys.stdout.write(text + "\n")
    if given.output is not None:
        given.output.write_text(text + "\n")


def arguments() -> argparse.Namespace:
    """The command line; `--root` and `--by-hand` are for the processes that this script starts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--size", type=int, default=256, help="of the views, pixels")
    parser.add_argument("--base-width", type=int, default=32, help="128 is the published tokenizer")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the figures")
    parser.add_argument("--root", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--by-hand", type=int, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def job(given: argparse.Namespace, root: Path, output: str) -> PrecomputeConfig:
    """Eight units an actor."""
    return PrecomputeConfig(
        source=SourceConfig(
            kind="folder", path=str(root / "images"), split="all", image_size=given.size, image_channels=3,
            view_policy="random_crop", num_views=given.views,
        ),
        tokenizer=str(root / "tokenizer"),
        output=str(root / output),
        num_actors=given.actors,
        gpus_per_actor=1.0 / given.actors if given.device == "cuda" else 0.0,
        batch_size=16 if given.device == "cpu" else 64,
        images_per_unit=max(1, given.images // (8 * given.actors)),
    )  # fmt: skip


def rate_of_actors(config: PrecomputeConfig) -> float:
    """Views a second, added up over the actors."""
    began: dict[int, float] = {}
    ended: dict[int, float] = {}
    num_records: Counter[int] = Counter()

    def note(event: Any) -> None:
        if event.kind == "started":
            began.setdefault(event.pid, time.time())
        if event.kind == "committed":
            ended[event.pid] = time.time()
            num_records[event.pid] += event.result["num_records"]

    precompute(config, on_event=note)
    return sum(num_records[pid] / (ended[pid] - began[pid]) for pid in ended)


def rate_by_hand(given: argparse.Namespace) -> float:
    """Views a second of processes that share nothing, each with every n-th unit, added up."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, *sys.argv, "--root", str(given.root), "--by-hand", str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(given.actors)
    ]
    return sum(json.loads(process.communicate()[0]) for process in processes)


def encode_by_hand(config: PrecomputeConfig, number: int) -> None:
    """Encodes every n-th unit in this process and prints its views a second."""
    torch.set_num_threads(config.threads_per_actor)
    source, folder = open_source(config.source), DatasetFolder(Path(config.output) / str(os.getpid()))
    tokenizer = load_network(Tokenizer, config.tokenizer).to(config.device)
    plan = make_plan(config, source, weights_hash(config.tokenizer, "ema"))
    folder.adopt(plan)
    began, num_records = time.time(), 0
    for unit in range(number, len(plan.units), config.num_actors):
        part = encode_unit(
            unit, plan.units[unit], source=source, tokenizer=tokenizer, config=config, folder=folder,
            plan_fingerprint=plan.fingerprint,
        )  # fmt: skip
        num_records += part["num_records"]
    sys.stdout.write(json.dumps(num_records / (time.time() - began)))


def milliseconds_of_parts(config: PrecomputeConfig) -> dict[str, float]:
    """Milliseconds of one view in one thread: read and decode, encode, cluster, cluster and quantise."""
    torch.set_num_threads(1)
    source = open_source(config.source)
    tokenizer = load_network(Tokenizer, config.tokenizer).to(config.device).requires_grad_(False)
    spent: dict[str, float] = {}

    def timed(name: str, run: Callable[..., Any], *inputs: Any) -> Any:
        wait_for(config.device)
        began = time.perf_counter()
        result = run(*inputs)
        wait_for(config.device)
        spent[name] = round(1e3 * (time.perf_counter() - began) / config.batch_size, 3)
        return result

    def read() -> np.ndarray:
        return np.stack([source.read(index, 0) for index in range(config.batch_size)])

    for _ in range(2):  # the second round counts
        images = to_model_range(timed("read and decode", read), planes=True).to(config.device)
        latent = timed("encode", tokenizer.encode, images)
        timed("cluster", cluster_latents, latent)
        timed("cluster and quantise", tokenizer.tokenize_latent, latent)
    return spent


if __name__ == "__main__":
    main()
