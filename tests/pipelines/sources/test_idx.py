"""The four files of MNIST and its relatives."""

from __future__ import annotations

import gzip
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_sources import idx_bytes, write_idx

from nvg.errors import UserError
from pipelines.configuration import load_config
from pipelines.precompute.config import PrecomputeConfig
from pipelines.sources import ImageSource, SourceConfig, idx, open_source
from pipelines.sources.opening import describe
from pipelines.sources.source import split_rule

NAMES = ["ankle boot", "bag", "coat"]


def opened(root: Path, split: str = "all", **changes: Any) -> ImageSource:
    values = {"kind": "idx", "path": str(root), "split": split, "image_size": 20, **changes}
    return open_source(SourceConfig(**values))


@pytest.fixture
def root(tmp_path):
    return write_idx(tmp_path / "fashion", packed=False)


def test_pixels_and_labels_are_those_of_the_files(root):
    content = {path.name: path.read_bytes() for path in root.iterdir()}
    source = opened(root)
    assert source.keys == [f"train/{row:05d}" for row in range(40)] + [f"t10k/{row:05d}" for row in range(20)]
    images, labels = content["t10k-images-idx3-ubyte"], content["t10k-labels-idx1-ubyte"]
    for row in (0, 7, 19):
        assert source.read_bytes(40 + row) == images[16 + 400 * row :][:400]
        assert np.array_equal(source.read(40 + row, 0)[..., 0].ravel(), list(source.read_bytes(40 + row)))
        assert source.labels[40 + row] == labels[8 + row]
    colour = opened(root, image_channels=3).read(3, 0)
    assert np.array_equal(colour, source.read(3, 0).repeat(3, axis=2))


def test_t10k_is_test_and_the_judge_has_a_share_of_train(tmp_path):
    root = write_idx(tmp_path, num_train=3000, num_test=20, side=2)
    parts = {split: opened(root, split, judge_fraction=0.1, split_seed=3) for split in ("train", "judge", "test")}
    assert parts["test"].keys == [f"t10k/{row:05d}" for row in range(20)]
    assert all(key.startswith("train/") for split in ("train", "judge") for key in parts[split].keys)
    assert len(parts["judge"]) / 3000 == pytest.approx(0.1, abs=0.02)
    assert len(parts["train"]) + len(parts["judge"]) == 3000
    assert len(opened(root, "train", judge_fraction=0.0)) == 3000
    assert split_rule(parts["train"].config) == {"split_rule": "t10k: test; else blake2b of 3/key; judge 0.1"}
    assert split_rule(opened(root, "train", judge_fraction=0.0).config) != {}


def test_gzipped_files_are_the_same_data_set_whatever_they_are_called(tmp_path):
    plain, packed = (write_idx(tmp_path / name, packed=name == "packed") for name in ("plain", "packed"))
    (packed / "train-images-idx3-ubyte.gz").rename(packed / "train-images.idx3-ubyte.gz")
    unpacked_by_the_browser = gzip.decompress((packed / "t10k-labels-idx1-ubyte.gz").read_bytes())
    (packed / "t10k-labels-idx1-ubyte.gz").write_bytes(unpacked_by_the_browser)
    for split in ("train", "judge", "test"):
        one, other = opened(plain, split), opened(packed, split)
        assert (one.keys, one.fingerprint, one.sized_fingerprint) == (
            other.keys,
            other.fingerprint,
            other.sized_fingerprint,
        )
        assert [one.read_bytes(row) for row in range(len(one))] == [other.read_bytes(row) for row in range(len(one))]


def test_another_data_set_of_the_same_form_is_another(tmp_path):
    """MNIST, Fashion-MNIST and KMNIST have the same names, counts and sizes."""
    first = write_idx(tmp_path / "first", packed=False)
    pixels, labels = (write_idx(tmp_path / name, packed=False) for name in ("pixels", "labels"))
    for path, place in ((pixels / "train-images-idx3-ubyte", 500), (labels / "train-labels-idx1-ubyte", 12)):
        data = bytearray(path.read_bytes())
        data[place] = (data[place] + 1) % 3
        path.write_bytes(data)
    train = opened(first, "train")
    assert opened(pixels, "train").fingerprint == train.fingerprint  # records compare the images themselves
    assert opened(pixels, "train").sized_fingerprint != train.sized_fingerprint
    assert opened(labels, "all").fingerprint != opened(first, "all").fingerprint
    for other in (pixels, labels):  # nothing of t10k has changed
        assert opened(other, "test").sized_fingerprint == opened(first, "test").sized_fingerprint


def test_a_gzipped_file_is_unpacked_once_in_a_process_and_not_sent_around(tmp_path, monkeypatch):
    root = write_idx(tmp_path, num_train=2000, side=28)
    source = opened(root, "train", fit="pad", image_size=32)
    monkeypatch.setattr(idx, "_content", lambda file: pytest.fail("unpacked again"))
    assert len(pickle.dumps(source)) < 200_000  # its 1.6 MB of pixels stay here
    source.read(5, 0)
    monkeypatch.undo()
    copy = pickle.loads(pickle.dumps(source))
    idx._contents.clear()  # as in another process
    assert copy.read_bytes(5) == source.read_bytes(5)


def test_files_that_change_while_in_use_are_no_bad_images(tmp_path):
    for packed in (True, False):
        root = write_idx(tmp_path / str(packed), packed=packed)
        source = pickle.loads(pickle.dumps(opened(root, "train")))
        idx._contents.clear()
        write_idx(root, num_train=30, packed=packed)
        with pytest.raises(OSError, match="changed while in use"):
            source.read(len(source) - 1, 0)


def test_names_are_in_the_settings_in_a_file_or_numbers(root, tmp_path, caplog):
    assert opened(root).class_names == ["0", "1", "2"]
    assert opened(root, class_names=NAMES).class_names == NAMES
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    assert opened(root, class_map=str(tmp_path / "names.txt")).class_names == NAMES
    (root / "classes.txt").write_text("a\nb\nb\n")
    assert opened(root).class_names == ["a", "b (1)", "b (2)"]
    assert opened(root, class_names=NAMES).class_names == NAMES
    config = load_config(
        PrecomputeConfig,
        None,
        [
            "tokenizer=t",
            "output=o",
            "source.kind=idx",
            "source.path=p",
            "source.class_names=[ankle boot, bag, T-shirt/top]",
        ],
    )
    assert config.source.class_names == ["ankle boot", "bag", "T-shirt/top"]
    assert isinstance(hash(config.source), int)


def test_labels_with_gaps_are_told(tmp_path):
    root = write_idx(tmp_path, packed=False)
    for part, number in (("train", 40), ("t10k", 20)):
        labels = (1 + np.arange(number) % 2 * 2).astype(np.uint8)
        (root / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    assert "so 4 classes, of which 2 have no image (0, 2)" in describe(opened(root))
    assert "note" not in describe(opened(root, class_names=["-", "a", "-", "b"]))


def test_what_lies_beside_the_files_is_told(root):
    (root / "readme.txt").write_text("x")
    (root / ".DS_Store").write_text("x")
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress((root / "train-images-idx3-ubyte").read_bytes()))
    (root / "train-labels-idx1-ubyte").chmod(0o644)
    assert describe(opened(root)).endswith(
        "passed over: 1 hidden (.DS_Store), 1 none of the four files (readme.txt), "
        "1 repeated (train-images-idx3-ubyte.gz: train-images-idx3-ubyte is the same unpacked)"
    )


def cut(data: bytes) -> bytes:
    return data[:-100]


def images(array: np.ndarray, **options: Any) -> Any:
    return lambda data: idx_bytes(array, **options)


PIXELS = np.zeros((40, 20, 20), np.uint8)
DAMAGED = [
    (
        "train-images-idx3-ubyte",
        cut,
        r"found 15,916 bytes, expected 16,016 for 40 images of 20×20 pixels; it is cut off",
    ),
    (
        "train-images-idx3-ubyte",
        lambda data: data + b"x",
        r"found at least 16,017 bytes, .* longer than its header says",
    ),
    ("train-images-idx3-ubyte", lambda data: data[:9], r"found 9 bytes, expected IDX images; it is cut off"),
    ("train-images-idx3-ubyte", lambda data: b"", r"found 0 bytes, expected IDX images"),
    ("t10k-labels-idx1-ubyte", cut, r"found \d+ bytes, expected (28 for 20 labels|IDX labels)"),
    (
        "train-images-idx3-ubyte",
        images(PIXELS, kind=13),
        r"found the magic number 3331, expected 2051 \(IDX images in uns",
    ),
    ("train-images-idx3-ubyte", images(PIXELS[..., None]), r"found the magic number 2052, expected 2051"),
    (
        "train-images-idx3-ubyte",
        lambda data: b"<html>no such file</html>",
        r"found the magic number 1013478509, expected",
    ),
    ("train-images-idx3-ubyte", images(PIXELS[:0]), r"holds 0 images of 20×20 pixels, expected one or more"),
    (
        "train-images-idx3-ubyte",
        images(PIXELS[:39]),
        r"holds 39 images .*, and train-labels-idx1-ubyte\S* holds 40 labels; exp",
    ),
    (
        "t10k-labels-idx1-ubyte",
        images(np.zeros(21, np.uint8)),
        r"holds 20 images .*, and t10k-labels-idx1-ubyte\S* holds 21 lab",
    ),
]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize(("name", "change", "message"), DAMAGED)
def test_damaged_files_are_named(tmp_path, packed, name, change, message):
    root = write_idx(tmp_path, packed=False)
    path = root / name
    data = change(path.read_bytes())
    if packed:
        path.unlink()
        path = path.with_name(f"{name}.gz")
        data = gzip.compress(data)
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{re.escape(str(root))}/\S*: {message}"):
        opened(root)


def test_images_and_labels_swapped_are_named(root):
    one, other = root / "train-images-idx3-ubyte", root / "train-labels-idx1-ubyte"
    one.rename(root / "x")
    other.rename(one)
    (root / "x").rename(other)
    with pytest.raises(
        UserError, match=r"images-idx3-ubyte: found the magic number 2049 \(IDX labels\), .* are swapped"
    ):
        opened(root)


@pytest.mark.parametrize("how", ["cut", "flipped", "header"])
def test_gzip_that_is_damaged_half_way_is_named(tmp_path, how):
    root = write_idx(tmp_path)
    path = root / "train-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[: len(data) // 2]
    elif how == "flipped":
        data[len(data) // 2] ^= 0xFF
    else:
        data = data[:6]
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"train-images-idx3-ubyte\.gz: cannot be read beyond byte .* damaged or cut off"
    ):
        opened(root, "train")


def test_a_header_that_promises_too_much_allocates_nothing(tmp_path):
    root = write_idx(tmp_path)
    head = bytes([0, 0, 8, 3]) + np.array([40, 1 << 12, 1 << 13], ">u4").tobytes()
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head))
    with pytest.raises(UserError, match=r"found 16 bytes, expected 1,342,177,296 for 40 images of 4096×8192 pixels"):
        opened(root, "train")
    head = bytes([0, 0, 8, 3]) + np.array([40, 1 << 16, 1 << 16], ">u4").tobytes()
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head))
    with pytest.raises(
        UserError, match=r"need 160\.0 GiB; a gzipped or remote file is held in memory, expected at most 2 GiB"
    ):
        opened(root, "train")


def test_missing_and_doubled_files_are_named(root):
    (root / "train-images.idx3-ubyte").write_bytes((root / "train-images-idx3-ubyte").read_bytes())
    with pytest.raises(UserError, match=r"found train-images-idx3-ubyte and train-images\.idx3-ubyte, expected one"):
        opened(root)
    (root / "train-images.idx3-ubyte").unlink()
    (root / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"found none among 3 files, expected one t10k-labels-idx1-ubyte or .*\.gz"):
        opened(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"class_names": ["a", "b"]},
            r"source\.class_names: found 2 class names, expected at least 3: the files hold label 2",
        ),
        ({"class_names": ["a", "", "c"]}, r"source\.class_names\[1\]: found the class name ''"),
        (
            {"class_names": ["a"], "class_map": "names.txt"},
            r"is \['a'\]; expected no names beside source\.class_map=names",
        ),
        (
            {"class_map": "names.json"},
            r"source\.class_map is 'names\.json'; expected a text file with a name in each line",
        ),
        (
            {"test_fraction": 0.2},
            r"source\.test_fraction is 0\.2; expected 0\.15, which nothing reads with source\.kind=idx",
        ),
        (
            {"fit": "pad", "image_size": 16},
            r"source\.image_size is 16; expected 20 or more with source\.fit=pad: .*images-idx3",
        ),
        ({"split_by": "folders"}, r"source\.split_by is 'folders'; expected hash with source\.kind=idx"),
        ({"label_column": "label"}, r"source\.label_column is 'label'; expected null with source\.kind=idx"),
    ],
)
def test_settings_that_do_not_fit_are_named(root, change, message):
    with pytest.raises(UserError, match=message):
        opened(root, **change)


@pytest.mark.parametrize("kind", ["digits", "folder", "imagenet"])
def test_names_by_number_are_for_labels_that_are_numbers(kind):
    with pytest.raises(UserError, match=rf"source\.class_names is \['a'\]; expected no names with source\.kind={kind}"):
        SourceConfig(kind=kind, path="p", class_names=["a"])
