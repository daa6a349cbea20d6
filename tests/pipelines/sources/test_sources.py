"""Digits, class folders, views and splits."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
from image_sources import write_class_folders
from PIL import Image

from nvg.errors import UserError
from pipelines.precompute.config import PrecomputeConfig
from pipelines.sources import SourceConfig, load_images, open_source


def test_digit_splits_are_disjoint_stratified_and_fixed():
    parts = {name: open_source(SourceConfig(split=name)) for name in ("train", "judge", "test", "all")}
    sizes = {name: len(part) for name, part in parts.items()}
    assert sizes == {"train": 1000, "judge": 500, "test": 297, "all": 1797}
    keys = [set(parts[name].keys) for name in ("train", "judge", "test")]
    assert set.union(*keys) == set(parts["all"].keys)
    assert sum(map(len, keys)) == 1797
    for part in parts.values():
        shares = np.bincount(part.labels, minlength=10) / len(part)
        assert np.all(np.abs(shares - 0.1) < 0.01)
    assert open_source(SourceConfig(split="train", seed=5)).keys == parts["train"].keys


def test_digits_keep_their_picture_when_enlarged():
    from sklearn.datasets import load_digits

    source = open_source(SourceConfig(split="all", image_size=16))
    small = np.asarray(load_digits(return_X_y=True)[0])[7].reshape(8, 8) * (255 / 16)
    large = source.read(7, 0)[:, :, 0].astype(float)
    averaged = large.reshape(8, 2, 8, 2).mean(axis=(1, 3))
    assert large.shape == (16, 16)
    assert np.corrcoef(averaged.ravel(), small.ravel())[0, 1] > 0.98
    assert open_source(SourceConfig(split="all", image_channels=3)).read(7, 0).shape == (16, 16, 3)


def test_shifted_views_differ_and_view_0_is_centred():
    centred = open_source(SourceConfig(split="test"))
    shifted = open_source(SourceConfig(split="test", view_policy="shift", num_views=9))
    original = centred.read(3, 0)
    views = [shifted.read(3, view) for view in range(9)]
    assert np.array_equal(views[0], original)
    assert len({view.tobytes() for view in views}) == 9
    padded = np.pad(original, ((1, 1), (1, 1), (0, 0)))
    moved = {padded[r : r + 16, c : c + 16].tobytes() for r in range(3) for c in range(3)}
    for view in views[1:]:
        assert view.tobytes() in moved
    other_seed = open_source(SourceConfig(split="test", view_policy="shift", num_views=9, seed=1))
    assert any(not np.array_equal(other_seed.read(3, view), views[view]) for view in range(9))


def test_crops_are_seeded_squares_of_the_resized_picture(tmp_path):
    root = write_class_folders(tmp_path, {"a": 1}, size=(90, 60))
    config = SourceConfig(
        kind="folder", path=str(root), split="all", image_size=32, image_channels=3, view_policy="crop",
        num_views=6,
    )  # fmt: skip
    source, again = open_source(config), open_source(config)
    resized = np.asarray(Image.open(root / "a/000.png").resize((54, 36), Image.Resampling.LANCZOS))
    assert np.array_equal(source.read(0, 0), resized[2:34, 11:43])
    possible = {resized[r : r + 32, c : c + 32].tobytes() for r in range(5) for c in range(23)}
    views = [source.read(0, view) for view in range(6)]
    assert all(view.tobytes() in possible for view in views)
    assert len({view.tobytes() for view in views}) > 2
    assert all(np.array_equal(again.read(0, view), views[view]) for view in range(6))


def test_folder_classes_are_the_sorted_folder_names(tmp_path):
    root = write_class_folders(tmp_path, {"pear": 3, "apple": 2, "fig": 4})
    (root / "fig" / "deeper").mkdir()
    Image.new("L", (9, 30), 77).save(root / "fig" / "deeper" / "grey.jpg")
    (root / ".hidden").mkdir()
    (root / "pear" / ".DS_Store").write_bytes(b"x")
    source = open_source(SourceConfig(kind="folder", path=str(root), split="all", image_channels=3))
    assert source.class_names == ["apple", "fig", "pear"]
    assert np.bincount(source.labels).tolist() == [2, 5, 3]
    assert source.skipped == []
    images = load_images(source)
    assert images.images.shape == (10, 16, 16, 3)
    grey = source.keys.index("fig/deeper/grey.jpg")
    assert np.all(np.abs(images.images[grey].astype(int) - 77) <= 1)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK", "I;16"])
def test_every_colour_model_becomes_the_wanted_channels(tmp_path, mode):
    (tmp_path / "a").mkdir()
    suffix = "tif" if mode == "CMYK" else "png"
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 200 << 8, dtype=np.uint16))
    else:
        image = Image.new("RGB", (8, 8), (200, 200, 200))
        image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a" / f"image.{suffix}")
    for channels in (1, 3):
        config = SourceConfig(kind="folder", path=str(tmp_path), split="all", image_channels=channels)
        pixels = open_source(config).read(0, 0)
        assert pixels.shape == (16, 16, channels)
        assert pixels.dtype == np.uint8
        assert mode == "1" or abs(int(pixels[8, 8, 0]) - 200) <= 2


def test_fingerprint_follows_the_names(tmp_path):
    """What is in the files is compared by those who keep hashes of it: tests/pipelines/precompute/test_inputs.py."""
    root = write_class_folders(tmp_path, {"a": 3})
    config = SourceConfig(kind="folder", path=str(root), split="all")
    before = open_source(config)
    Image.new("L", (50, 50)).save(root / "a" / "000.png")
    assert open_source(config).fingerprint == before.fingerprint
    assert open_source(config).sized_fingerprint != before.sized_fingerprint
    (root / "a" / "000.png").rename(root / "a" / "x.png")
    assert open_source(config).fingerprint != before.fingerprint


def test_sources_travel_to_other_processes(tmp_path):
    root = write_class_folders(tmp_path, {"a": 2})
    for config in (SourceConfig(split="test"), SourceConfig(kind="folder", path=str(root), split="all")):
        source = open_source(config)
        copy = pickle.loads(pickle.dumps(source))
        assert np.array_equal(copy.read(1, 0), source.read(1, 0))


@pytest.mark.parametrize(
    ("kind", "path", "output"),
    [
        ("folder", "pets", "pets"),
        ("folder", "pets/", "pets/records"),
        ("folder", "pets", "pets/cat/deep/records"),
        ("folder", "pets", "elsewhere/../pets/records"),
        ("folder", "linked", "pets/records"),
        ("folder", "pets", "linked/records"),
        ("imagenet", "pets", "pets/train/records"),
        ("imagenet", "pets", "pets/val"),
        ("webdataset", "pets", "pets"),  # its index.json would be taken for that of the shards
        ("webdataset", "pets/a-{000..009}.tar", "linked"),
    ],
)
def test_results_may_not_lie_among_the_images(tmp_path, monkeypatch, kind, path, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets" / "train").mkdir(parents=True)
    (tmp_path / "linked").symlink_to("pets")
    for place in (path, f"file://{tmp_path / path}"):
        refuses(SourceConfig(kind=kind, path=place, split="train"), output, tmp_path / "pets")


def refuses(source, output, outer):
    found = re.escape(f"output is {output!r}; expected a place outside {outer}")
    with pytest.raises(UserError, match=found):
        source.keep_apart("output", output)
    with pytest.raises(UserError, match=found):
        PrecomputeConfig(source=source, tokenizer="t", output=output)


@pytest.mark.parametrize(
    ("kind", "path", "output"),
    [
        ("folder", "pets", "pets-records"),
        ("folder", "pets/cats", "pets"),
        ("imagenet", "pets", "pets/records"),
        ("webdataset", "pets", "pets/records"),
        ("folder", "s3://pets/train", "pets"),
        ("digits", None, "pets"),
    ],
)
def test_results_may_lie_beside_the_images(tmp_path, monkeypatch, kind, path, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    SourceConfig(kind=kind, path=path, split="train").keep_apart("output", output)
