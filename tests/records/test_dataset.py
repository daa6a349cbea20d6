"""The NumPy reader against StreamingDataset, and what it says about damaged data sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_records import manifest_of

from nvg.errors import UserError
from nvg.records import RecordDataset, RecordLayout, ShardWriter

NUM_RECORDS = 300


def write_dataset(folder: Path, num_positions: int) -> list[dict]:
    """Random records in several shards."""
    layout = RecordLayout(num_positions)
    generator = np.random.default_rng(num_positions)
    records = [
        {
            "image": int(generator.integers(1 << 32)),
            "view": int(generator.integers(256)),
            "label": int(generator.integers(1000)),
            "content_ids": generator.integers(0, 4096, layout.num_tokens).astype(np.uint16),
            "structure": generator.permutation(num_positions).astype(layout.structure_dtype),
        }
        for _ in range(NUM_RECORDS)
    ]
    writer = ShardWriter(folder, layout.columns, shard_bytes=layout.bytes_per_record * 70)
    for record in records:
        writer.write(record)
    writer.finish()
    manifest = manifest_of(NUM_RECORDS, num_positions, 1000, codebook_size=4096)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return records


@pytest.fixture
def folder(tmp_path) -> Path:
    write_dataset(tmp_path / "data", 16)
    return tmp_path / "data"


def edit_manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.cluster
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("num_positions", [16, 256, 1024])
def test_gives_what_streaming_dataset_gives(tmp_path, num_positions, mapped):
    from streaming import StreamingDataset

    folder = tmp_path / "data"
    records = write_dataset(folder, num_positions)
    dataset = RecordDataset.open(folder, verify_hashes=True, mapped=mapped)
    stored = np.concatenate(dataset.shards)
    streaming = StreamingDataset(local=str(folder), batch_size=1)
    assert len(dataset) == len(streaming) == NUM_RECORDS
    for index in range(NUM_RECORDS):
        sample = streaming[index]
        for name in RecordLayout(num_positions).columns:
            ours = stored[name][index]
            assert np.array_equal(ours, sample[name])
            assert ours.dtype == sample[name].dtype
            assert np.array_equal(ours, records[index][name])


def test_batch_is_what_the_objectives_take(folder):
    dataset = RecordDataset.open(folder)
    batch = dataset.batch([5, 299, 5])
    assert {name: array.shape for name, array in batch.items()} == {
        "label": (3,), "content_ids": (3, 31), "structure": (3, 16)
    }  # fmt: skip
    assert all(array.dtype == np.int64 for array in batch.values())
    assert np.array_equal(batch["structure"][1], dataset.shards[-1]["structure"][-1])


@pytest.mark.parametrize("cut", [1, 700])
def test_truncated_shard_is_named_with_both_sizes(folder, cut):
    path = sorted(folder.glob("*.mds"))[2]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=rf"shard\.00002\.mds: found {size - cut} bytes, expected {size}.*truncated"):
        RecordDataset.open(folder)


def test_missing_shard_is_named(folder):
    (folder / "shard.00001.mds").unlink()
    with pytest.raises(UserError, match=r"shard\.00001\.mds: found no such file"):
        RecordDataset.open(folder)


def test_flipped_bit_is_found_on_demand(folder):
    path = folder / "shard.00001.mds"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    RecordDataset.open(folder)
    with pytest.raises(UserError, match=r"shard\.00001\.mds.*sha256"):
        RecordDataset.open(folder, verify_hashes=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_records": 301}, r"lists 300 records, manifest\.json states 301"),
        (
            {"num_positions": 64, "last_stage": 6, "canvas_scales": [1] * 8, "codebook_usage": [1] * 7},
            r"expected .*ndarray:uint8:64",
        ),
        ({"codebook_size": 8}, r"column content_ids holds \d+, but manifest\.json states codebook_size 8"),
        ({"num_classes": 2, "class_names": ["a", "b"], "class_histogram": [0, 0]}, r"column label holds \d+"),
    ],
)
def test_manifest_of_another_data_set_is_refused(folder, changes, message):
    edit_manifest(folder, **changes)
    with pytest.raises(UserError, match=message):
        RecordDataset.open(folder)


@pytest.mark.parametrize("name", ["index.json", "manifest.json"])
@pytest.mark.parametrize("content", [None, '{"version": 2, "sha', "{}"])
def test_damaged_json_is_named(folder, name, content):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        RecordDataset.open(folder)
