"""The layout of ImageNet: its own division, labels of flat validation images, and what is wrong with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from image_sources import write_class_folders
from PIL import Image

from nvg.errors import UserError
from pipelines.sources import SourceConfig, load_images, open_source

CLASSES = ["n01", "n02", "n03"]
VALIDATION = {"val_3": "n03", "val_1": "n01", "val_2": "n02", "val_4": "n01"}


@pytest.fixture
def root(tmp_path) -> Path:
    """Three class folders in train/, four flat images in val/, whose grey value says their class."""
    write_class_folders(tmp_path / "train", {"n02": 2, "n01": 3, "n03": 2})
    (tmp_path / "val").mkdir()
    for name, folder in VALIDATION.items():
        Image.new("L", (20, 20), 50 * int(folder[1:])).save(tmp_path / "val" / f"{name}.JPEG")
    return tmp_path


def config(root: Path | str, split: str, **changes) -> SourceConfig:
    return SourceConfig(**{"kind": "imagenet", "path": str(root), "split": split, "image_channels": 1, **changes})


LABEL_FILES = {
    "LOC_val_solution.csv": "ImageId,PredictionString\n"
    + "".join(f"{name},{folder} 1 2 3 4 {folder} 5 6 7 8 \n" for name, folder in VALIDATION.items()),
    "val.txt": "".join(f"{name}.JPEG {CLASSES.index(folder)}\n" for name, folder in VALIDATION.items()),
}


@pytest.mark.parametrize("name", LABEL_FILES)
def test_flat_validation_images_get_the_labels_of_their_file(root, name):
    (root / name).write_text(LABEL_FILES[name])
    source = open_source(config(root, "test"))
    assert source.keys == [f"val/val_{number}.JPEG" for number in (1, 2, 3, 4)]
    loaded = load_images(source)
    assert np.array_equal(np.rint(loaded.images.mean(axis=(1, 2, 3)) / 50), source.labels + 1)
    assert open_source(config(root, "train")).class_names == source.class_names == CLASSES


def test_training_images_are_those_of_train(root):
    source = open_source(config(root, "train"))
    assert np.bincount(source.labels).tolist() == [3, 2, 2]
    assert all(key.startswith("train/n0") for key in source.keys)
    assert source.read(0, 0).shape == (16, 16, 1)


def test_validation_images_may_lie_in_class_folders(root):
    (root / "val.txt").write_text(LABEL_FILES["val.txt"])
    flat = open_source(config(root, "test"))
    for name, folder in VALIDATION.items():
        (root / "val" / folder).mkdir(exist_ok=True)
        shutil.move(root / "val" / f"{name}.JPEG", root / "val" / folder)
    (root / "val.txt").unlink()
    source = open_source(config(root, "test"))
    assert sorted(source.labels) == sorted(flat.labels)
    shutil.rmtree(root / "val" / "n03")
    with pytest.raises(UserError, match=r"val: its class folders are not those of train/ \(n03"):
        open_source(config(root, "test"))


def test_synset_mapping_names_the_classes(root):
    (root / "LOC_synset_mapping.txt").write_text("n01 tench, Tinca tinca\nn02 goldfish\nn03 shark\n")
    assert open_source(config(root, "train")).class_names == ["tench, Tinca tinca", "goldfish", "shark"]


def test_labels_are_part_of_the_fingerprint(root):
    prints = []
    for text in (LABEL_FILES["val.txt"], LABEL_FILES["val.txt"].replace("val_4.JPEG 0", "val_4.JPEG 1")):
        (root / "val.txt").write_text(text)
        prints.append(open_source(config(root, "test")).fingerprint)
    assert prints[0] != prints[1]


BAD_LABEL_FILES = {
    "ground truth": ("490\n361\n", r"line 1: found '490' alone, .*not in the order of the class folders"),
    "from one": (LABEL_FILES["val.txt"].replace(" 2\n", " 3\n"), r"found class '3', .* number from 0 to 2"),
    "other class": (LABEL_FILES["val.txt"].replace(" 2\n", " n09\n"), r"found class 'n09'"),
    "twice": (LABEL_FILES["val.txt"] + "val_1.JPEG 2\n", r"line 5: found image val_1 twice"),
    "too few": ("val_1.JPEG 0\n", r"found 3 images without a label \(val_2, val_3, val_4\)"),
    "too many": (LABEL_FILES["val.txt"] + "val_5.JPEG 0\n", r"found 1 labels without an image \(val_5\)"),
}


@pytest.mark.parametrize("name", BAD_LABEL_FILES)
def test_labels_that_do_not_fit_are_named(root, name):
    text, message = BAD_LABEL_FILES[name]
    (root / "val.txt").write_text(text)
    with pytest.raises(UserError, match=rf"val\.txt.*{message}"):
        open_source(config(root, "test"))


def test_missing_parts_are_named(root):
    with pytest.raises(UserError, match=r"no label file .* LOC_val_solution\.csv, val\.txt .* source\.label_file"):
        open_source(config(root, "test"))
    for text in LABEL_FILES:
        (root / text).write_text(LABEL_FILES[text])
    with pytest.raises(UserError, match=r"found LOC_val_solution\.csv and val\.txt, expected one label file"):
        open_source(config(root, "test"))
    assert len(open_source(config(root, "test", label_file=str(root / "val.txt")))) == 4
    shutil.rmtree(root / "val")
    with pytest.raises(UserError, match="val: found nothing, expected the validation images"):
        open_source(config(root, "test"))
    shutil.rmtree(root / "train")
    with pytest.raises(UserError, match="train: found nothing"):
        open_source(config(root, "train"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "judge"}, "source.split is 'judge'; expected train or test .* with source.kind=imagenet"),
        ({"split": "all"}, "source.split is 'all'; expected train or test"),
        ({"kind": "folder", "label_file": "x"}, "source.label_file is 'x'; expected null with source.kind=folder"),
    ],
)
def test_impossible_settings_are_named(root, changes, message):
    with pytest.raises(ValueError, match=message):
        config(root, **{"split": "train", **changes})


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
@pytest.mark.parametrize("flat", [True, False])
def test_an_image_in_both_splits_is_refused_from_either_side(root, link, flat):
    (root / "val.txt").write_text(LABEL_FILES["val.txt"] + "again.JPEG 0\n")
    if not flat:
        for folder in CLASSES:
            (root / "val" / folder).mkdir()
        for name, folder in VALIDATION.items():
            (root / "val" / f"{name}.JPEG").rename(root / "val" / folder / f"{name}.JPEG")
    real = next((root / "train" / "n01").iterdir())
    getattr(root / "val" / ("" if flat else "n01") / "again.JPEG", link)(real)
    for path, split in [(root, "train"), (root, "test"), (f"file://{root}", "train")]:
        with pytest.raises(UserError, match=r"found 1 image files in two class folders by links .*again\.JPEG"):
            open_source(config(path, split))
