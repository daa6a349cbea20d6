"""A data set of 10^8 records that takes no disk: how long a rank opens it, what it holds, and how fast it reads.

    .venv/bin/python benchmarks/index_of_1e8.py
    .venv/bin/python benchmarks/index_of_1e8.py --loader mapped --records 10000000   # the way for smaller ones

Shards are sparse files of 64 MiB whose records are zeros, all of them links to one. Memory is the process's own beside
what it has before it opens anything: peak resident set, mapped pages included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cluster.ranks import Ranks
from nvg.records import RecordLayout
from pipelines.batches.config import DataConfig
from pipelines.batches.records import generator_source, open_records

LAYOUT = RecordLayout(256)
MIB = 2.0**20


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=100_000_000)
    parser.add_argument("--loader", default="indexed", choices=("indexed", "mapped"))
    parser.add_argument("--steps", type=int, default=100, help="batches of 768 over 64 ranks, of which one is read")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        num_shards = make(Path(folder), given.records)
        before_mib, start = _peak_mib(), time.perf_counter()
        config = DataConfig(path=folder, loader=given.loader, views_per_epoch="in_turn")
        records = open_records(config)
        opened_s, opened_mib = time.perf_counter() - start, _peak_mib() - before_mib
        start = time.perf_counter()
        batches = generator_source(records, config).batches(
            start_step=1000,
            global_batch=768,
            seed=0,
            ranks=Ranks(rank=5, world_size=64, local_rank=5, local_world_size=8),
        )
        next(batches)
        first_s, start = time.perf_counter() - start, time.perf_counter()
        for _ in range(given.steps):
            next(batches)
        step_ms = 1e3 * (time.perf_counter() - start) / given.steps
        held_mib = _peak_mib() - before_mib
    row = {
        "records": given.records, "shards": num_shards, "loader": given.loader, "open_s": round(opened_s, 2),
        "open_mib": round(opened_mib), "first_batch_s": round(first_s, 2), "batch_of_12_ms": round(step_ms, 2),
        "held_mib": round(held_mib),
    }  # fmt: skip
    sys.stdout.write(json.dumps(row) + "\n")


def make(folder: Path, num_records: int) -> int:
    """Shards, index and manifest; returns the number of shards."""
    of_a_shard = (1 << 26) // LAYOUT.bytes_per_record
    counts = [of_a_shard] * (num_records // of_a_shard)
    counts += [num_records % of_a_shard] if num_records % of_a_shard else []
    entries, first = [], {}
    for number, count in enumerate(counts):
        name = f"shard.{number:05d}.mds"
        if count in first:
            os.link(folder / first[count], folder / name)
        else:
            first[count] = name
            _write_sparse(folder / name, count)
        size = (folder / name).stat().st_size
        names, encodings = (list(part) for part in zip(*sorted(LAYOUT.columns.items()), strict=True))
        entries.append(
            {
                "format": "mds",
                "samples": count,
                "raw_data": {"basename": name, "bytes": size},
                "zip_data": None,
                "compression": None,
                "column_names": names,
                "column_encodings": encodings,
            }
        )
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
    from made_records import manifest_of  # the one place that knows a whole manifest

    manifest = manifest_of(num_records, 256, 1000, codebook_size=4096)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "num_images": num_records, "num_views": 1}))
    return len(counts)


def _write_sparse(path: Path, count: int) -> None:
    start = 4 * (count + 2)
    offsets = start + LAYOUT.dtype.itemsize * np.arange(count + 1)
    with path.open("wb") as file:
        np.array([count, *offsets], "<u4").tofile(file)
        file.truncate(int(offsets[-1]))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


if __name__ == "__main__":
    main()
