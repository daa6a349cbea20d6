"""What holds for every kind of source, whatever its files are."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from image_sources import write_class_folders, write_hub_set, write_idx, write_parquet, write_shards

from nvg.errors import UserError
from pipelines.sources import ImageSource, SourceConfig, load_images, open_source
from pipelines.sources.keys import key_line
from pipelines.sources.opening import describe
from pipelines.sources.source import PARTS

NUM_IMAGES = 60


def folders(root: Path) -> dict[str, Any]:
    write_class_folders(root, {"a": 20, "b": 40})
    return {"kind": "folder"}


def folders_of_parts(root: Path) -> dict[str, Any]:
    for part, number in (("train", 20), ("judge", 4), ("test", 6)):
        write_class_folders(root / part, {"a": number, "b": number})
    return {"kind": "folder", "split_by": "folders"}


def imagenet(root: Path) -> dict[str, Any]:
    for part, number in (("train", 20), ("val", 10)):
        write_class_folders(root / part, {"a": number, "b": number})
    return {"kind": "imagenet"}


def tars(root: Path) -> dict[str, Any]:
    root.mkdir()
    write_shards(root, num_shards=3, per_shard=20)
    return {"kind": "webdataset"}


def idx(root: Path) -> dict[str, Any]:
    write_idx(root)
    return {"kind": "idx"}


def unpacked_idx(root: Path) -> dict[str, Any]:
    write_idx(root, packed=False)
    return {"kind": "idx", "fit": "pad", "image_size": 24}


def hub(root: Path) -> dict[str, Any]:
    write_hub_set(root)
    return {"kind": "parquet"}


def parquet(root: Path) -> dict[str, Any]:
    from image_sources import png

    labels = ["dog" if row % 3 else "cat" for row in range(NUM_IMAGES)]
    write_parquet(root / "pets.parquet", [png(row) for row in range(NUM_IMAGES)], labels, as_struct=False)
    return {"kind": "parquet"}


KINDS = [folders, folders_of_parts, imagenet, tars, idx, unpacked_idx, hub, parquet]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def config(request, tmp_path) -> SourceConfig:
    root = tmp_path / "images"
    return SourceConfig(**{"path": str(root), "split_seed": 1, **request.param(root)})


def parts_of(config: SourceConfig) -> dict[str, ImageSource]:
    names = ("train", "test") if config.kind == "imagenet" else PARTS
    return {name: open_source(replace(config, split=name)) for name in names}  # pyright: ignore[reportArgumentType]


def pixels(source: ImageSource) -> list[bytes]:
    return [source.read(index, 0).tobytes() for index in range(len(source))]


def test_every_image_is_in_one_part(config):
    parts = parts_of(config)
    keys = [key for part in parts.values() for key in part.keys]
    assert len(set(keys)) == len(keys) == NUM_IMAGES
    assert all(len(part) > 0 and not part.skipped for part in parts.values())
    assert all("\n" not in key and key_line(key) == key for key in keys)
    if config.kind != "imagenet":
        everything = open_source(replace(config, split="all"))
        assert sorted(everything.keys) == sorted(keys)
        assert everything.num_found == NUM_IMAGES
        label_of = dict(zip(everything.keys, everything.labels.tolist(), strict=True))
        for part in parts.values():
            assert part.labels.tolist() == [label_of[key] for key in part.keys]
    for part in parts.values():
        assert part.labels.dtype == np.int64
        assert describe(part).startswith(f"{config.path}, split {part.config.split}: {len(part)} images of ")


def test_opened_again_or_elsewhere_it_is_the_same(config):
    for part in parts_of(config).values():
        expected = pixels(part)
        for again in (open_source(part.config), pickle.loads(pickle.dumps(part))):
            assert again.keys == part.keys
            assert again.labels.tolist() == part.labels.tolist()
            assert again.class_names == part.class_names
            assert (again.fingerprint, again.sized_fingerprint) == (part.fingerprint, part.sized_fingerprint)
            assert pixels(again) == expected
        loaded = load_images(part)
        assert [image.tobytes() for image in loaded.images] == expected
        assert loaded.labels.tolist() == part.labels.tolist()


def test_images_may_be_read_in_any_order_and_by_many_threads(config):
    source = open_source(replace(config, split="train"))
    expected = pixels(source)
    order = np.random.default_rng(0).permutation(np.arange(len(source)).repeat(3)).tolist()
    again = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda index: again.read(index, 0).tobytes(), order))
    assert found == [expected[index] for index in order]


def test_files_written_again_have_other_stamps_and_are_the_same_images(config):
    before = open_source(replace(config, split="train"))
    stamps = before.stamps()
    assert stamps.dtype == np.uint64
    assert stamps.tolist() == open_source(before.config).stamps().tolist()
    assert len(stamps) == len(before)
    for path in filter(Path.is_file, Path(str(config.path)).rglob("*")):
        os.utime(path, (7, 7))
    after = open_source(before.config)
    assert (after.stamps() != stamps).all()
    assert (after.stamps() == before.stamps()).all()  # as it is now, whenever it was opened
    assert (after.fingerprint, after.sized_fingerprint) == (before.fingerprint, before.sized_fingerprint)


def test_a_store_gives_what_a_folder_gives(config, tmp_path):
    store, root = fsspec.filesystem("memory"), Path(str(config.path))
    try:
        for path in filter(Path.is_file, root.rglob("*")):
            store.pipe_file(f"/{tmp_path.name}/{path.relative_to(root).as_posix()}", path.read_bytes())
        for name, part in parts_of(config).items():
            there = open_source(replace(config, path=f"memory://{tmp_path.name}", split=name))  # pyright: ignore[reportArgumentType]
            assert there.keys == part.keys
            assert there.class_names == part.class_names
            assert (there.fingerprint, there.sized_fingerprint) == (part.fingerprint, part.sized_fingerprint)
            assert pixels(pickle.loads(pickle.dumps(there))) == pixels(part)
            assert there.stamps().tolist() == there.stamps().tolist()
    finally:
        store.store.clear()


def test_results_do_not_go_where_the_images_are(config):
    images = f"{config.path}/train" if config.kind == "imagenet" else str(config.path)
    with pytest.raises(UserError, match="expected a place outside"):
        config.keep_apart("output", images)
    config.keep_apart("output", f"{config.path}-records")


def test_nothing_there_is_said(config, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        open_source(replace(config, path=str(tmp_path / "nowhere")))
