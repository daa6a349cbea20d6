"""Class folders and tar shards of noise images, written for tests."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset.writer import TarWriter


def write_class_folders(root: Path, counts: dict[str, int], *, size: tuple[int, int] = (20, 14)) -> Path:
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03d}.png")
    return root


def png(value: int, size: int = 20) -> bytes:
    pixels = np.random.default_rng(value).integers(0, 256, (size, size), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def write_shards(
    root: Path, *, num_shards: int = 2, per_shard: int = 5, label_as: str = "cls", shift_labels: int = 0
) -> list[Path]:
    paths = []
    for shard in range(num_shards):
        path = root / f"train-{shard:03d}.tar"
        with TarWriter(str(path)) as writer:
            for row in range(per_shard):
                number = shard * per_shard + row
                label = (number + shift_labels) % 3
                labels = {"cls": str(label).encode(), "json": json.dumps({"label": label}).encode()}
                writer.write({"__key__": f"{number:05d}", "png": png(number), label_as: labels[label_as]})
        paths.append(path)
    return paths
