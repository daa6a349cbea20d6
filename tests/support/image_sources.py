"""Class folders, tar shards, IDX and parquet files of noise images, written for tests."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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


def write_idx(
    root: Path, *, num_train: int = 40, num_test: int = 20, side: int = 20, packed: bool = True, num_classes: int = 3
) -> Path:
    """The four files of a data set of noise; label of row r is r modulo the number of classes."""
    root.mkdir(parents=True, exist_ok=True)
    for part, number in (("train", num_train), ("t10k", num_test)):
        pixels = np.random.default_rng(number).integers(0, 256, (number, side, side), dtype=np.uint8)
        labels = (np.arange(number) % num_classes).astype(np.uint8)
        for what, array in (("images", pixels), ("labels", labels)):
            path = root / f"{part}-{what}-idx{array.ndim}-ubyte"
            data = idx_bytes(array)
            path.with_name(path.name + ".gz" * packed).write_bytes(gzip.compress(data) if packed else data)
    return root


def idx_bytes(array: np.ndarray, *, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[Any],
    *,
    names: Sequence[str] = (),
    rows_per_group: int = 7,
    image: str = "image",
    label: str = "label",
    as_struct: bool = True,
    **columns: Any,
) -> Path:
    """A file as the hub stores it: encoded bytes, labels, and the class names in the file's own metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [None if data is None else {"bytes": data, "path": None} for data in images] if as_struct else list(images)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if as_struct else pa.binary()
    table = pa.table({image: pa.array(rows, kind), label: labels, **columns})
    features: dict[str, Any] = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=rows_per_group)
    return path


def write_hub_set(root: Path, *, num_train: int = 40, num_test: int = 20) -> Path:
    """`data/train-…` in two files and `data/test-…`, of three classes with names."""
    for name, first, number in (
        ("train-00000-of-00002", 0, num_train // 2),
        ("train-00001-of-00002", num_train // 2, num_train - num_train // 2),
        ("test-00000-of-00001", num_train, num_test),
    ):
        rows = range(first, first + number)
        labels = [row % 3 for row in rows]
        write_parquet(
            root / "data" / f"{name}.parquet", [png(row) for row in rows], labels, names=["cat", "dog", "owl"]
        )
    return root
