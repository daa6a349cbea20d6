"""Measures what the host does for a step of one rank: before it as it was, and beside it as it is.

    .venv/bin/python benchmarks/host_work.py --output docs/results/host_work.json

Rank 3 of 8 at a global batch of 768, records and JPEGs made up, the published sizes. "Serial" draws the noise of the
whole global batch, takes the rank's rows of it and decodes one JPEG after the other to floats, all before the step;
"ahead" is the real feed. The device is a sleep as long as a step of 96 images: like a GPU that is waited for, it
needs neither the interpreter nor a core. What a step takes longer than that is host work that is not hidden. Pinning
needs a GPU and is left out of both.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cluster.ranks import Ranks
from eval.decoding import decode_image
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.pixels import scale_levels
from nvg.records import JPEG_COLUMNS, JPEG_FOLDER, JpegDataset, RecordDataset, RecordLayout
from nvg.records.writer import ShardWriter
from nvg.tokenizer import Dequantizer, DequantizerConfig
from nvg.training import ContentObjective, GeneratorLossConfig, StructureObjective
from pipelines.batches.order import ArraySource, Batch
from pipelines.batches.records import stored_images
from pipelines.train.feed import Feed

GLOBAL_BATCH, RANKS, NUM_MICRO = 768, Ranks(rank=3, world_size=8, local_rank=3, local_world_size=8), 4
NUM_RECORDS, NUM_JPEGS = 4096, 64
TURN = 3  # steps of one way before the other's
DEVICE_S = {"content": 0.667, "structure": 0.384}  # a step of 96 images, compiled
DRAWS = {"the whole batch": slice(None), "own rows": slice(288, 384), "own rows, dealt in turns": slice(3, None, 8)}


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--side", type=int, default=256, help="of the JPEGs")
    parser.add_argument("--threads", type=int, default=2, help="that decode")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        records = made_records(Path(folder), given.side)
        figures: dict[str, Any] = {"draws_ms": draws_ms(), "load": load_before, "cores": os.cpu_count()}
        for kind, jpegs in (("structure", False), ("content", False), ("content", True)):
            name = f"{kind} with JPEGs" if jpegs else kind
            figures[name] = not_hidden_ms(kind, records, given.threads if jpegs else 0, given.rounds)
            sys.stdout.write(f"{name:20s} {json.dumps(figures[name])}\n")
            sys.stdout.flush()
    sys.stdout.write(json.dumps(figures) + "\n")
    if given.output is not None:
        given.output.write_text(json.dumps({"command": " ".join(sys.argv), **figures}, indent=1) + "\n")


def made_records(folder: Path, side: int) -> RecordDataset:
    """Records in memory, a JPEG beside each."""
    stream = np.random.Generator(np.random.Philox(key=[0, 0]))
    shard = np.zeros(NUM_RECORDS, RecordLayout(256).dtype)
    shard["image"] = np.arange(NUM_RECORDS)
    shard["content_ids"] = stream.integers(0, 4096, (NUM_RECORDS, 511))
    shard["structure"] = np.stack([stream.permutation(256) for _ in range(NUM_RECORDS)])
    jpegs = []
    for _ in range(NUM_JPEGS):
        levels = stream.normal(128, 60, (side // 8, side // 8, 3)).clip(0, 255).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(levels).resize((side, side), Image.Resampling.BICUBIC), np.float64)
        noisy = (smooth + stream.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(buffer := io.BytesIO(), "jpeg", quality=95)
        jpegs.append(buffer.getvalue())
    sys.stdout.write(f"JPEGs of {np.mean([len(jpeg) for jpeg in jpegs]) / 1000:.0f} kB\n")
    writer = ShardWriter(folder / JPEG_FOLDER, JPEG_COLUMNS, shard_bytes=1 << 26)
    for row in range(NUM_RECORDS):
        writer.write({"image": row, "view": 0, "jpeg": jpegs[row % NUM_JPEGS]})
    writer.finish()
    return RecordDataset(
        folder=folder,
        manifest={"num_positions": 256, "repa": {"store": JPEG_FOLDER}},
        image=shard["image"],
        view=shard["view"],
        label=shard["label"],
        shards=[shard],
    )


def objective_of(kind: str, **changes: Any) -> Any:
    """A published objective without storage: what it draws depends on its sizes alone."""
    with torch.device("meta"):
        dequantizer = Dequantizer(DequantizerConfig())
        if kind == "structure":
            network = StructureGenerator(StructureGeneratorConfig(**changes))
            return StructureObjective(network, dequantizer, GeneratorLossConfig())
        return ContentObjective(ContentGenerator(ContentGeneratorConfig(**changes)), dequantizer, GeneratorLossConfig())


def draws_ms() -> dict[str, dict[str, float]]:
    """Milliseconds of the noise of a step, the least of several."""
    objectives = {
        "structure": objective_of("structure"),
        "content": objective_of("content"),
        "content of a noised canvas": objective_of("content", content_input="noised_canvas"),
    }
    found: dict[str, dict[str, float]] = {name: dict.fromkeys(DRAWS, float("inf")) for name in objectives}
    for step in range(8):
        for name, objective in objectives.items():
            for what, rows in DRAWS.items():
                began = time.perf_counter()
                objective.draw_noise(seed=0, step=step, global_batch=GLOBAL_BATCH, rows=rows)
                found[name][what] = min(found[name][what], 1000 * (time.perf_counter() - began))
    return {name: {what: round(value, 2) for what, value in of.items()} for name, of in found.items()}


def not_hidden_ms(kind: str, records: RecordDataset, num_threads: int, num_rounds: int) -> dict[str, float]:
    """Milliseconds by which a step is longer than its device, the ways in turns of a few steps: median and least."""
    objective, device_s = objective_of(kind), DEVICE_S[kind]
    feed = Feed(objective, global_batch=GLOBAL_BATCH, num_micro=NUM_MICRO, ranks=RANKS)
    images = JpegDataset.open(records) if num_threads else None
    plain = source_of(records, 0).batches(start_step=0, global_batch=GLOBAL_BATCH, seed=0, ranks=RANKS)
    serial = serial_inputs(objective, plain, images)
    over: dict[str, list[float]] = {"serial": [], "ahead": []}
    source = source_of(records, num_threads)
    with feed.made_ahead(source, seed=0, first_step=0, last_step=num_rounds * TURN) as ahead:
        for _ in range(num_rounds):
            for name, stream in (("serial", serial), ("ahead", ahead)):
                for step in range(TURN):
                    began = time.perf_counter()
                    next(stream)
                    time.sleep(device_s)
                    if step:  # before the first the other way had its time
                        over[name].append(1000 * (time.perf_counter() - began - device_s))
    return {
        f"{name}, {what}": round(of(values), 2)
        for name, values in over.items()
        for what, of in (("median", statistics.median), ("least", min))
    }


def source_of(records: RecordDataset, num_threads: int) -> ArraySource:
    """Batches as a training has them, with the images beside the records or without."""
    beside = stored_images(records, num_threads) if num_threads else lambda rows: {}

    def fetch(rows: np.ndarray) -> dict[str, Tensor]:
        batch = {name: torch.from_numpy(values) for name, values in records.batch(rows).items()}
        return {**batch, **beside(rows)}

    return ArraySource(np.arange(NUM_RECORDS).reshape(-1, 1), fetch, {"name": "made up"})


def serial_inputs(objective: Any, batches: Iterator[Batch], images: JpegDataset | None) -> Iterator[None]:
    """The host's work as it was: when the step begins, for the whole batch, one image after the other."""
    for step, batch in enumerate(batches):
        tensors = dict(batch.tensors)
        if images is not None:
            decoded = [torch.from_numpy(np.array(decode_image(jpeg, 3))) for jpeg in images.batch(batch.sample_ids)]
            tensors["image"] = torch.stack([scale_levels(pixels.permute(2, 0, 1)) for pixels in decoded])
        whole = objective.draw_noise(seed=0, step=step, global_batch=GLOBAL_BATCH)
        noise = {name: value[batch.global_rows] for name, value in whole.items()}
        size = len(batch.sample_ids) // NUM_MICRO
        for first in range(0, len(batch.sample_ids), size):
            for value in (*tensors.values(), *noise.values()):
                value[first : first + size].to(RANKS.device)
        yield


if __name__ == "__main__":
    main()
