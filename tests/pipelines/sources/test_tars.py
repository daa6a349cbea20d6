"""Tar shards: what the webdataset library writes is read back, damage is named."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from image_sources import png, write_shards
from PIL import Image
from webdataset.compat import WebDataset
from webdataset.writer import TarWriter

from nvg.errors import UserError
from pipelines.sources import SourceConfig, load_images, open_source


def config(path: Path | str, **changes) -> SourceConfig:
    return SourceConfig(**{"kind": "webdataset", "path": str(path), "split": "all", "image_size": 20, **changes})


@pytest.mark.parametrize("label_as", ["cls", "json"])
def test_gives_what_the_webdataset_library_gives(tmp_path, label_as):
    paths = write_shards(tmp_path, label_as=label_as)
    source = open_source(config(tmp_path))
    reference = WebDataset([str(path) for path in paths], shardshuffle=False)
    pixels, labels = [], []
    for sample in reference:
        pixels.append(np.asarray(Image.open(io.BytesIO(sample["png"]))))
        value = json.loads(sample[label_as])
        labels.append(value["label"] if label_as == "json" else value)
    assert source.labels.tolist() == labels
    assert source.class_names == ["0", "1", "2"]
    assert np.array_equal(load_images(source).images[:, :, :, 0], np.stack(pixels))


def test_brace_pattern_and_class_names(tmp_path):
    write_shards(tmp_path, num_shards=3)
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    source = open_source(config(tmp_path / "train-{000..001}.tar"))
    assert len(source) == 10
    assert source.class_names == ["ant", "bee", "cat"]
    (tmp_path / "classes.txt").write_text("ant\nbee\x1bwasp\ncat\n")
    with pytest.raises(UserError, match=r"found the class name 'bee\\x1bwasp'"):
        open_source(config(tmp_path))


def test_members_in_any_order_make_whole_samples(tmp_path):
    members = {}
    for path in write_shards(tmp_path, num_shards=1):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                members[member.name] = file.read()
        expected = load_images(open_source(config(tmp_path))).images
        with tarfile.open(path, "w") as archive:
            for name in sorted(members, key=lambda name: name.rsplit(".")[1]):
                info = tarfile.TarInfo(name)
                info.size = len(members[name])
                archive.addfile(info, io.BytesIO(members[name]))
    assert np.array_equal(load_images(open_source(config(tmp_path))).images, expected)


@pytest.mark.parametrize("keep", [0.5, 0.97, "half a header", "end marker missing", "nothing"])
def test_truncated_shard_is_named_with_both_sizes(tmp_path, keep):
    path = write_shards(tmp_path)[1]
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    lengths = {
        "half a header": last.offset + 100,
        "end marker missing": last.offset_data + 512,
        "nothing": 0,
    }
    cut = lengths[keep] if isinstance(keep, str) else min(int(len(data) * keep), last.offset_data + 100)
    path.write_bytes(data[:cut])
    with pytest.raises(UserError, match=rf"train-001\.tar: truncated: got {cut} bytes, expected at least \d+"):
        open_source(config(tmp_path))


def test_count_is_compared_with_the_index_beside_the_shards(tmp_path):
    write_shards(tmp_path)
    index = {"shardlist": [{"url": "train-000.tar", "nsamples": 5}, {"url": "train-001.tar", "nsamples": 6}]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"train-001\.tar: got 5 samples, expected 6"):
        open_source(config(tmp_path))


def test_no_shards_missing_shard_and_foreign_file_are_named(tmp_path):
    with pytest.raises(UserError, match=r"found no \*\.tar files"):
        open_source(config(tmp_path))
    with pytest.raises(UserError, match=r"gone\.tar: found no such file"):
        open_source(config(tmp_path / "gone.tar"))
    (tmp_path / "foreign.tar").write_bytes(b"x" * 5000)
    with pytest.raises(UserError, match=r"foreign\.tar: found no tar archive"):
        open_source(config(tmp_path))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"png": png(0)}, "expected a label"),
        ({"cls": b"1"}, "found 0 image members"),
        ({"png": png(0), "cls": b"bird"}, "found label 'bird', expected an integer"),
        ({"png": png(0), "json": b"{"}, "Expecting"),
        ({"png": png(0), "cls": b"-1"}, "found label -1"),
    ],
)
def test_half_samples_are_skipped_with_a_reason(tmp_path, members, reason):
    write_shards(tmp_path)
    with TarWriter(str(tmp_path / "half.tar")) as writer:
        writer.write({"__key__": "odd", **members})
    source = open_source(config(tmp_path, max_bad_fraction=0.1))
    assert len(source) == 10
    assert [item.key for item in source.skipped] == ["half.tar/odd"]
    assert reason in source.skipped[0].reason
    with pytest.raises(UserError, match="found 1 bad of 11 inputs"):
        open_source(config(tmp_path))
