"""Measures how fast records of 16x16 latents are read back in one process: from memory, mapped, by StreamingDataset.

    .venv/bin/python benchmarks/record_reading.py --output docs/results/record_reading.json

Random records are written to a temporary folder first. Every way ends in int64 tensors of shuffled batches; the bare
loop is `dataset[i]` of the streaming library in a shuffled order and makes no tensors. For the streaming loader the
folder is a store (`data.remote`); each shard is copied in the first epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.ranks import Ranks
from nvg.records import RecordDataset, RecordLayout, ShardWriter
from pipelines.batches.config import DataConfig
from pipelines.batches.records import generator_source

LAYOUT = RecordLayout(256)
NUM_CLASSES, CODEBOOK_SIZE = 1000, 4096


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--read", type=int, default=5_000, help="records of one measurement through StreamingDataset")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the figures")
    given = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as root:
        folder, bare_folder = f"{root}/records", f"{root}/bare"
        write_records(Path(folder), given.records)
        os.symlink(folder, bare_folder)  # the library refuses to open one folder twice
        began = time.perf_counter()
        records = RecordDataset.open(folder)
        opening_s = time.perf_counter() - began
        ways = {
            "memory": source_reader(records, DataConfig(path=folder), given.batch, given.records),
            "mapped": source_reader(
                RecordDataset.open(folder, mapped=True),
                DataConfig(path=folder, loader="mapped"),
                given.batch,
                given.records,
            ),
            "bare dataset[i]": bare_loop(bare_folder, given.read),
            "streaming": source_reader(
                records,
                DataConfig(path=f"{root}/copies", remote=folder, loader="streaming", views_per_epoch="all"),
                given.batch,
                given.read,
            ),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(given.repeats):
            for name, way in ways.items():
                began = time.perf_counter()
                count = way()
                rates[name].append(count / (time.perf_counter() - began))
    ratios = [ours / bare for ours, bare in zip(rates["streaming"], rates["bare dataset[i]"], strict=True)]
    results: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load_before, 2),
        "opened_in_s": round(opening_s, 3),
        "records_per_s": {
            name: {"lowest": round(min(v)), "median": round(statistics.median(v)), "highest": round(max(v))}
            for name, v in rates.items()
        },
        "streaming_over_bare": {  # of each round, one way right after the other: the machine's pace changes in seconds
            "lowest": round(min(ratios), 3),
            "median": round(statistics.median(ratios), 3),
            "highest": round(max(ratios), 3),
        },
        "bytes_per_record": LAYOUT.bytes_per_record,
    }
    text = json.dumps(results, indent=2)
    sys.stdout.write(text + "\n")
    if given.output is not None:
        given.output.write_text(text + "\n")


def write_records(folder: Path, number: int) -> None:
    """Random records."""
    generator = np.random.default_rng(0)
    structure_NL = generator.permuted(np.tile(np.arange(256, dtype=np.uint8), (256, 1)), axis=1)
    ids_NT = generator.integers(0, CODEBOOK_SIZE, (256, LAYOUT.num_tokens)).astype(np.uint16)
    writer = ShardWriter(folder, LAYOUT.columns, shard_bytes=1 << 24)
    for row in range(number):
        ids_T, structure_L = ids_NT[row % 256], structure_NL[row % 256]
        label = row % NUM_CLASSES
        writer.write({"image": row, "view": 0, "label": label, "content_ids": ids_T, "structure": structure_L})
    writer.finish()
    manifest = {
        "num_positions": 256, "num_records": number, "num_classes": NUM_CLASSES, "codebook_size": CODEBOOK_SIZE
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))


def source_reader(records: RecordDataset, config: DataConfig, batch: int, number: int) -> Callable[[], int]:
    """A stretch of the batches that training gets."""
    source = generator_source(records, config)
    stream = source.batches(start_step=0, global_batch=batch, seed=0, ranks=Ranks())
    next(stream)

    def read() -> int:
        for _ in range(number // batch):
            next(stream)
        return number // batch * batch

    return read


def bare_loop(folder: str, number: int) -> Callable[[], int]:
    """The library alone, one record after the other."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=folder, batch_size=1)
    order = np.random.default_rng(0).permutation(len(dataset))[:number].tolist()

    def read() -> int:
        for index in order:
            dataset[index]
        return number

    return read


if __name__ == "__main__":
    main()
