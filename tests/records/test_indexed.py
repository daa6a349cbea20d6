"""Records opened by their index alone are those that are held, and what is wrong with them is told when it is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_records import manifest_of

from nvg.errors import UserError
from nvg.records import IndexedDataset, RecordDataset, RecordLayout, ShardWriter
from pipelines.batches.config import DataConfig
from pipelines.batches.records import generator_source, open_records

LAYOUT, NUM_IMAGES, NUM_VIEWS = RecordLayout(16), 30, 3


def write(folder: Path, **changes: int) -> None:
    """Three views of each image in shards of seven records; `changes` replace values of record 40."""
    generator = np.random.default_rng(0)
    writer = ShardWriter(folder, LAYOUT.columns, shard_bytes=LAYOUT.bytes_per_record * 7)
    for row in range(NUM_IMAGES * NUM_VIEWS):
        record = {
            "image": row // NUM_VIEWS,
            "view": row % NUM_VIEWS,
            "label": int(generator.integers(10)),
            "content_ids": generator.integers(0, 16, LAYOUT.num_tokens).astype(np.uint16),
            "structure": generator.permutation(16).astype(np.uint8),
        }
        writer.write({**record, **(changes if row == 40 else {})})
    writer.finish()
    manifest = manifest_of(NUM_IMAGES * NUM_VIEWS, num_images=NUM_IMAGES, num_views=NUM_VIEWS)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path / "data")
    return tmp_path / "data"


def test_gives_what_the_held_records_give(folder):
    held, indexed = RecordDataset.open(folder), IndexedDataset.open_index(folder)
    assert len(held) == len(indexed) == 90
    assert not indexed._opened
    rows = [5, 89, 5, 40]
    for name, values in held.batch(rows).items():
        assert np.array_equal(indexed.batch(rows)[name], values)
        assert indexed.batch(rows)[name].dtype == values.dtype
    assert len(indexed._opened) == 3 < len(indexed.entries)
    for name in ("image", "view", "label"):
        assert np.array_equal(np.asarray(getattr(indexed, name)), getattr(held, name))
        assert getattr(indexed, name)[40] == getattr(held, name)[40]
    with pytest.raises(IndexError):
        indexed.batch([90])


def test_a_training_reads_them_in_an_order_of_their_own(folder):
    config = DataConfig(path=str(folder), loader="indexed", views_per_epoch="in_turn")
    source = generator_source(open_records(config), config)
    assert source.num_images == NUM_IMAGES
    assert source.fingerprint["order"] == "feistel network of (seed, epoch)"
    assert source.fingerprint["loader"] == "indexed"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label": 10}, "column label holds 10, but manifest.json states num_classes 10"),
        ({"view": 0}, "record 40 is view 0 of its image; expected 1 for data.loader=indexed; set data.loader=mapped"),
    ],
)
def test_a_wrong_record_is_named_when_it_is_read(tmp_path, changes, says):
    write(tmp_path / "data", **changes)
    records = IndexedDataset.open_index(tmp_path / "data")
    records.batch([39, 41])
    with pytest.raises(UserError, match=says):
        records.batch([39, 40])


def test_images_of_different_views_and_cut_shards_are_refused_at_the_start(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "num_images": 29}))
    with pytest.raises(UserError, match=r"90 records of 29 images; expected 3 of each .* set data.loader=mapped"):
        IndexedDataset.open_index(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    shard = sorted(folder.glob("*.mds"))[3]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="the shard is truncated"):
        IndexedDataset.open_index(folder)
