"""Measures how fast the tokenizer's training gets its images, lazily and from memory, and what limits it.

    .venv/bin/python benchmarks/image_loading.py --threads 1 2 --output docs/results/image_loading.json

Class folders of photograph-like JPEGs are made in a temporary folder; nothing consumes the batches but this clock.
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
import torch
from PIL import Image

from cluster.ranks import Ranks
from pipelines.batches.config import ImageLoadingConfig
from pipelines.batches.images import LazyImageSource, memory_image_source
from pipelines.batches.order import BatchSource
from pipelines.sources import ImageSource, SourceConfig, open_source
from pipelines.sources.views import decode_image, make_view

BATCH = 32
PARTS_MEASURED = 64  # images
NUM_CLASSES = 8


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--width", type=int, default=500, help="of the JPEGs; ImageNet's mean is 473 x 406")
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--size", type=int, default=256, help="of the crop")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = make_folders(Path(folder), given.images, given.width, given.height)
        source = open_source(source_config(folder, given.size, "fresh_crop"))
        parts = seconds_of_parts(source, Path(folder))
        rates = {
            f"lazy, {threads} thread(s)": rate(lazily(source, threads), given.repeats, given.images)
            for threads in given.threads
        }
        began = time.perf_counter()
        memory = memory_image_source(open_source(source_config(folder, given.size, "center")), "one")
        filling_s = time.perf_counter() - began
        rates["memory"] = rate(memory, given.repeats, given.images)
    results: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load_before, 2),
        "file_bytes": round(num_bytes / given.images),
        "milliseconds_per_image": {name: round(1e3 * seconds, 2) for name, seconds in parts.items()},
        "images_per_s": rates,
        "memory_filled_in_s": round(filling_s, 2),
        "limit": limit(parts, rates, given.threads, load_before),
    }
    text = json.dumps(results, indent=2)
    sys.stdout.write(text + "\n")
    if given.output is not None:
        given.output.write_text(text + "\n")


def source_config(folder: str, size: int, view_policy: Any) -> SourceConfig:
    """All images of the made folders."""
    return SourceConfig(
        kind="folder", path=folder, split="all", image_size=size, image_channels=3, view_policy=view_policy
    )


def make_folders(root: Path, num_images: int, width: int, height: int) -> int:
    """Writes JPEGs with the spectrum of photographs (amplitude 1/f); returns their bytes."""
    generator = np.random.default_rng(0)
    field = photograph_like(2 * height, 2 * width, generator)
    num_bytes = 0
    for number in range(num_images):
        top, left = generator.integers(0, height), generator.integers(0, width)
        path = root / f"class{number % NUM_CLASSES}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(field[top : top + height, left : left + width]).save(path, quality=90)
        num_bytes += path.stat().st_size
    return num_bytes


def photograph_like(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """A random colour picture, uint8 (height, width, 3), whose amplitudes fall with frequency as photographs' do."""
    frequency = np.hypot(*np.meshgrid(np.fft.rfftfreq(width), np.fft.fftfreq(height)))
    frequency[0, 0] = np.inf
    planes = [
        np.fft.irfft2(np.exp(2j * np.pi * generator.random(frequency.shape)) / frequency, s=(height, width))
        for _ in range(3)
    ]
    return np.stack([np.clip(128 + 50 * plane / plane.std(), 0, 255) for plane in planes], axis=-1).astype(np.uint8)


def seconds_of_parts(source: ImageSource, root: Path) -> dict[str, float]:
    """Median seconds an image takes to be read, decoded, and resized and cut, in one thread."""
    seconds: dict[str, list[float]] = {"read": [], "decode": [], "resize and crop": []}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = run()
        seconds[name].append(time.perf_counter() - began)
        return result

    for key in source.keys[:PARTS_MEASURED]:
        data = timed("read", (root / key).read_bytes)
        image = timed("decode", lambda data=data: decode_image(data, 3))
        timed("resize and crop", lambda image=image, key=key: make_view(image, config=source.config, key=key, view=1))
    return {name: statistics.median(values) for name, values in seconds.items()}


def lazily(source: ImageSource, num_threads: int) -> LazyImageSource:
    """The lazy loader with a number of threads."""
    return LazyImageSource(source, "one", ImageLoadingConfig(loader="lazy", num_threads=num_threads))


def rate(source: BatchSource, repeats: int, num_images: int) -> dict[str, float]:
    """Images a second over an epoch once the stream runs: lowest, median and highest of the repeats."""
    stream = source.batches(start_step=0, global_batch=BATCH, seed=0, ranks=Ranks())
    num_batches = max(1, num_images // BATCH)
    found: list[float] = []
    for _ in range(2):
        next(stream)
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(num_batches):
            next(stream)
        found.append(num_batches * BATCH / (time.perf_counter() - began))
    return {
        "lowest": round(min(found), 1),
        "median": round(statistics.median(found), 1),
        "highest": round(max(found), 1),
    }


def limit(parts: dict[str, float], rates: dict[str, dict[str, float]], threads: list[int], load: float) -> str:
    """What the figures say limits the lazy loader."""
    alone = sum(parts.values())
    name, seconds = max(parts.items(), key=lambda item: item[1])
    text = f"{name}, {seconds / alone:.0%} of the {1e3 * alone:.1f} ms an image takes one thread"
    first, last = (rates[f"lazy, {count} thread(s)"]["median"] for count in (min(threads), max(threads)))
    if max(threads) > min(threads):
        text += f"; {max(threads)} threads give {last / first:.2f} times the images of {min(threads)}"
    if load > 0.5:
        text += f"; the machine was not quiet (load {load:.1f}), so these figures are lower bounds"
    return text


if __name__ == "__main__":
    main()
