"""Tar shards: what the webdataset library writes is read back, damage is named."""

from __future__ import annotations

import functools
import gzip
import io
import json
import logging
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
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


def test_a_pattern_with_an_open_brace_is_named():
    with pytest.raises(
        UserError, match=r"shards/a-\{0\.\.3\.tar: .*; expected a pattern as shards/\{000\.\.099\}\.tar"
    ):
        open_source(SourceConfig(kind="webdataset", path="shards/a-{0..3.tar", split="all"))


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
        ({"png": png(0), "cls": b"bird"}, "no label: found 'bird', expected an integer"),
        ({"png": png(0), "json": b"{"}, "no label: .json is not JSON: Expecting"),
        ({"png": png(0), "cls": b"-1"}, "no label: found -1, expected 0 to 65535"),
        ({"png": png(0), "cls": b"1_0"}, "no label: found '1_0', expected an integer"),
        ({"png": png(0), "json": b"[" * 100_000}, "no label: .json is not JSON: maximum recursion depth"),
        ({"png": png(0), "json": b'{"caption": "a cat", "key": 3}'}, "no label: found ['caption', 'key'] in .json"),
        ({"png": png(0), "json": b'{"label": true}'}, "no label: found True, expected an integer"),
        ({"png": png(0), "jpg": png(0), "cls": b"1"}, "found 2 image members among"),
    ],
)
def test_half_samples_are_skipped_with_a_reason(tmp_path, members, reason):
    write_shards(tmp_path)
    with TarWriter(str(tmp_path / "half.tar")) as writer:
        writer.write({"__key__": "odd", **members})
    source = open_source(config(tmp_path, max_bad_fraction=0.2))
    assert len(source) == 10
    assert {item.key.partition(".png")[0].partition(".jpg")[0] for item in source.skipped} == {"half.tar/odd"}
    assert reason in source.skipped[0].reason
    with pytest.raises(UserError, match=r"found \d bad of 1\d inputs"):
        open_source(config(tmp_path))


def write_tar(path: Path, members: Mapping[str, bytes | tuple[bytes, str]]) -> None:
    """Members by name: content, or the type and target of a link."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def samples(*names: str, label: int = 0) -> dict[str, bytes]:
    return {f"{name}.{end}": data for name in names for end, data in (("png", png(0)), ("cls", str(label).encode()))}


def reasons(source) -> dict[str, str]:
    return {item.key: item.reason for item in [*source.skipped, *source.passed_over]}


def test_linked_folder_written_by_tar(tmp_path):
    """Labels that are links count as what they link to; an image met again is the same image, also for the split."""
    folder = tmp_path / "linked"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.png").write_bytes(png(number))
    (folder / "00.cls").write_text("0")
    for number in range(1, 12):
        os.link(folder / "00.cls", folder / f"{number:02d}.cls")
    os.link(folder / "03.png", folder / "12.png")
    os.symlink("12.png", folder / "13.png")
    for name in ("12.cls", "13.cls"):
        os.symlink("00.cls", folder / name)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in sorted(os.listdir(folder)):
            archive.add(folder / name, name)
    source = open_source(config(tmp_path / "a.tar"))
    assert source.keys == [f"a.tar/{number:02d}" for number in range(12)]
    assert reasons(source) == {f"a.tar/{name}": "repeated: the same image as 03" for name in ("12", "13")}
    pixels = [np.asarray(Image.open(io.BytesIO(png(number)))) for number in range(12)]
    assert np.array_equal(load_images(source).images[..., 0], np.stack(pixels))
    write_tar(tmp_path / "b.tar", {**samples("a"), "b.png": (tarfile.LNKTYPE, "a.png"), "b.cls": b"1"})
    with pytest.raises(UserError, match=r"image of a \(label 0\) again in b \(label 1\).*expected one label"):
        open_source(config(tmp_path / "b.tar"))


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/data/a.png"),
        (tarfile.LNKTYPE, "gone.png"),
        (tarfile.SYMTYPE, "x.png"),
        (tarfile.SYMTYPE, "d"),
    ],
)
def test_links_to_no_file_of_the_archive_are_bad_inputs(tmp_path, kind, target):
    write_tar(tmp_path / "a.tar", {**samples("a"), "d/": (tarfile.DIRTYPE, ""), "x.png": (kind, target), "x.cls": b"0"})
    source = open_source(config(tmp_path, max_bad_fraction=0.5))
    assert source.keys == ["a.tar/a"]
    assert reasons(source) == {"a.tar/x": f"link to no file of the archive: x.png to {target}"}


def test_dots_in_names_are_as_many_bad_inputs_as_images(tmp_path):
    names = [f"IMG v1.{number}" for number in range(50)]
    write_tar(tmp_path / "a.tar", samples(*map(str, range(150)), *names))
    with pytest.raises(
        UserError, match=r"found 50 bad of 200 inputs(?s:.*)merged sample: one of 50 images.* up to the f"
    ):
        open_source(config(tmp_path))
    write_tar(tmp_path / "a.tar", {**samples("a", "a.2", "b", "c"), "b.seg.png": png(1), "c.seg.json": b"{}"})
    source = open_source(config(tmp_path, max_bad_fraction=0.5))
    assert source.keys == ["a.tar/b", "a.tar/c"]
    assert set(reasons(source)) == {"a.tar/a.png", "a.tar/a.2.png", "a.tar/b.seg.png"}


def test_hidden_and_outer_members_are_bad_inputs_and_junk_is_passed_over(tmp_path):
    hidden = samples("../data/0", ".cache/1", "d/.2")
    junk = {"._a.png": b"x", "d/.DS_Store": b"x", "d/Thumbs.db": b"x", "d/@eaDir/a.jpg": png(0), "__index__": b"x"}
    write_tar(tmp_path / "a.tar", {**samples("./a", "d.v1/b"), **hidden, **junk, "README": b"x"})
    source = open_source(config(tmp_path, max_bad_fraction=0.9))
    assert source.keys == ["a.tar/./a", "a.tar/d.v1/b"]
    assert {item.key.removeprefix("a.tar/") for item in source.passed_over} == set(junk)
    bad = {item.key.removeprefix("a.tar/"): item.reason for item in source.skipped}
    assert set(bad) == {"../data/0", ".cache/1", "d/.2.png", "d/.2.cls", "README"}
    assert bad["../data/0"].startswith("hidden or outside: a part of its name begins with a dot")
    assert bad["README"] == "no single image: found 0 image members among [''], expected one"


def test_what_lies_beside_the_shards_is_named(tmp_path):
    write_shards(tmp_path, num_shards=1)
    (tmp_path / "more").mkdir()
    write_shards(tmp_path / "more", num_shards=2)
    for name in ("notes.md", "train-000.tar.md5", "Thumbs.db"):
        (tmp_path / name).write_text("x")
    os.symlink(tmp_path / "train-000.tar", tmp_path / "train-009.tar")
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    write_tar(tmp_path / "none.TAR", {})
    source = open_source(config(tmp_path))
    assert len(source) == 5
    assert reasons(source) == {
        "more/train-000.tar": "shard in a folder below",
        "more/train-001.tar": "shard in a folder below",
        "notes.md": "not a shard by its name",
        "none.TAR": "shard without samples",
        "train-000.tar.md5": "not a shard by its name",
        "train-009.tar": "repeated: the same file as train-000.tar",
        "Thumbs.db": "left by other programs",
    }
    assert len(open_source(config(f"file://{tmp_path}"))) == 5
    (tmp_path / "train-000.tar").unlink()
    with pytest.raises(UserError, match=r"train-009\.tar: dangling link: to .*expected a webdataset shard; repair or"):
        open_source(config(tmp_path))
    (tmp_path / "train-009.tar").unlink()
    (tmp_path / "none.TAR").unlink()
    with pytest.raises(UserError, match=r"found no \*\.tar files.*it has shards in more: give one of these"):
        open_source(config(tmp_path))


@pytest.mark.parametrize("name", ["b.tar.gz", "b.tgz", "b.TAR.ZST", "b.tar.xz", "b.tbz2"])
def test_compressed_shards_are_refused(tmp_path, name):
    write_shards(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"found compressed shards \({name}\), expected uncompressed tars.*unpack"):
        open_source(config(tmp_path))


def test_compressed_content_under_another_name_is_named(tmp_path):
    data = write_shards(tmp_path, num_shards=1)[0].read_bytes()
    (tmp_path / "a.tar").write_bytes(gzip.compress(data))
    with pytest.raises(UserError, match=r"a\.tar: found no tar archive at byte 0 \(its content is gzip; unpack it\)"):
        open_source(config(tmp_path))


def test_sparse_images_are_bad_inputs(tmp_path):
    """GNU's sparse format holds the bytes of a file in pieces."""
    write_tar(tmp_path / "a.tar", samples("a", "b"))
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[156:157] = tarfile.GNUTYPE_SPARSE
    data[148:156] = f"{sum(data[:148]) + 8 * 32 + sum(data[156:512]):06o}\0 ".encode()
    (tmp_path / "a.tar").write_bytes(data)
    source = open_source(config(tmp_path, max_bad_fraction=0.5))
    assert reasons(source) == {"a.tar/a": "no regular file: a.png is a sparse file"}


@pytest.mark.parametrize(
    ("labels", "told"),
    [((0, 1, 2), None), ((1, 2, 3), "3 labels from 1 to 3, so 4 classes, of which 1 have no image (0)"),
     ((3, 60000), "2 labels from 3 to 60000, so 60001 classes, of which 59999 have no image (0, 1, 2, …)")],
)  # fmt: skip
def test_labels_with_gaps_are_told(tmp_path, caplog, labels, told):
    members: dict[str, bytes] = {}
    for label in labels:
        members |= samples(f"of{label}", label=label)
    write_tar(tmp_path / "a.tar", members)
    with caplog.at_level(logging.WARNING):
        assert len(open_source(config(tmp_path), tell=True).class_names) == labels[-1] + 1
    assert (told in caplog.text) if told else "note" not in caplog.text
    if labels[-1] < 10:
        (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
        assert not open_source(config(tmp_path)).notes


def test_samples_of_links_alone_are_not_counted_by_the_index(tmp_path):
    """The webdataset library, which writes it, sees regular files only."""
    link = {"b.png": (tarfile.LNKTYPE, "a.png"), "b.cls": (tarfile.LNKTYPE, "a.cls")}
    write_tar(tmp_path / "a.tar", {**samples("a"), **link})
    (tmp_path / "index.json").write_text(json.dumps({"shardlist": [{"url": "a.tar", "nsamples": 1}]}))
    assert list(reasons(open_source(config(tmp_path)))) == ["a.tar/b"]


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize(
    "options",
    ["--format=v7", "--format=oldgnu", "--format=gnu", "--format=ustar", "--format=posix", "-b 64", "-V volume", "-S",
     "-g snapshot", "--format=posix --pax-option=globexthdr.name=x,comment=y"],
)  # fmt: skip
def test_whatever_gnu_tar_writes(tmp_path, options, caplog):
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    for number in range(6):
        place = pictures / ("deep" if number % 2 else "") / f"{number}.png"
        place.write_bytes(png(number))
        place.with_suffix(".cls").write_text("0")
    tar = functools.partial(subprocess.run, check=True, cwd=tmp_path)
    tar(["tar", *options.split(), "--sort=name", "-cf", "a.tar", "-C", "pictures", "."])
    assert sorted(key[-1] for key in open_source(config(tmp_path / "a.tar")).keys) == list("012345")
    tar(["tar", "-cf", "b.tar", "-C", "pictures", "--transform=s/^/more-/", "4.png", "4.cls"])
    tar(["tar", "--concatenate", "--file=a.tar", "b.tar"])
    tar(["tar", "--delete", "--file=a.tar", "./2.png", "./2.cls"])
    tar(["tar", "-rf", "a.tar", "--transform=s/^/late-/", "-C", "pictures", "0.png", "0.cls"])
    assert sorted(key[-1] for key in open_source(config(tmp_path / "a.tar")).keys) == list("0013445")
    assert not caplog.text
