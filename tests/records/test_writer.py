"""Our writer against the streaming library's: the same files, byte for byte."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvg.records import JPEG_COLUMNS, FeatureLayout, RecordLayout, ShardWriter

COLUMNS = {
    "records": RecordLayout(16).columns,
    "wide records": RecordLayout(1024).columns,
    "features": FeatureLayout(num_tokens=4, width=6).columns,
    "jpeg": JPEG_COLUMNS,
    "two of bytes": {"z": "bytes", "number": "uint64", "a": "bytes"},
}


def random_samples(columns: dict[str, str], number: int) -> list[dict[str, Any]]:
    generator = np.random.default_rng(number)

    def value(encoding: str) -> Any:
        kind, *rest = encoding.split(":")
        if kind == "bytes":
            return generator.bytes(int(generator.integers(0, 40)))
        if kind == "ndarray":
            shape = tuple(map(int, rest[1].split(",")))
            return generator.integers(0, 100, shape).astype(rest[0])
        return int.from_bytes(generator.bytes(np.dtype(kind).itemsize))

    return [{name: value(encoding) for name, encoding in columns.items()} for _ in range(number)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def written(folder: Path, columns: dict[str, str], samples: list[dict[str, Any]], shard_bytes: int) -> dict[str, bytes]:
    writer = ShardWriter(folder, columns, shard_bytes=shard_bytes)
    for sample in samples:
        writer.write(sample)
    writer.finish()
    return files(folder)


@pytest.mark.slow
@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS.keys())
def test_files_are_those_of_the_streaming_library(tmp_path, columns):
    from streaming import MDSWriter  # heavy import

    counts = set()
    for case, (number, shard_bytes) in enumerate(itertools.product((0, 1, 2, 57), (1, 700, 4096, (1 << 32) - 1))):
        samples, theirs = random_samples(columns, number), tmp_path / f"theirs{case}"
        with MDSWriter(columns=columns, out=str(theirs), hashes=["sha256"], size_limit=shard_bytes) as writer:
            for sample in samples:
                writer.write(sample)
        found = written(tmp_path / f"ours{case}", columns, samples, shard_bytes)
        assert found == files(theirs)
        counts.add(len(found) - 1)
    assert {0, 1} <= counts  # shards
    assert len(counts) > 3


def test_integers_may_be_numpys_own(tmp_path):
    plain = written(tmp_path / "plain", JPEG_COLUMNS, [{"image": 7, "view": 3, "jpeg": b"x"}], 99)
    sample = {"image": np.int64(7), "view": np.uint8(3), "jpeg": b"x"}
    assert written(tmp_path / "own", JPEG_COLUMNS, [sample], 99) == plain


@pytest.mark.parametrize("bad", [np.zeros(15, np.uint8), np.zeros(16, np.int64), np.zeros((4, 4), np.uint8)])
def test_array_of_another_type_or_shape_is_named(tmp_path, bad):
    sample = {**random_samples(COLUMNS["records"], 1)[0], "structure": bad}
    with pytest.raises(ValueError, match=r"column structure has .*; expected uint8 \(16,\)"):
        ShardWriter(tmp_path, COLUMNS["records"], shard_bytes=4096).write(sample)


def test_number_beyond_its_column_is_refused(tmp_path):
    with pytest.raises(OverflowError):
        ShardWriter(tmp_path, {"view": "uint8"}, shard_bytes=4096).write({"view": 256})


@pytest.mark.parametrize("encoding", ["int", "str", "ndarray", "ndarray:uint8", "jpeg"])
def test_other_encodings_are_refused_before_anything_is_written(tmp_path, encoding):
    with pytest.raises(ValueError, match=f"column encoding is '{encoding}'; expected uint8, "):
        ShardWriter(tmp_path, {"image": encoding}, shard_bytes=4096)


@pytest.mark.parametrize("shard_bytes", [0, 1 << 32])
def test_impossible_size_is_refused(tmp_path, shard_bytes):
    with pytest.raises(ValueError, match=f"shard_bytes is {shard_bytes}"):
        ShardWriter(tmp_path, JPEG_COLUMNS, shard_bytes=shard_bytes)
