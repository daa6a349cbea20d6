"""What sources say about data they cannot use."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvg.errors import UserError
from pipelines.precompute.config import PrecomputeConfig
from pipelines.sources import BadImage, SourceConfig, load_images, open_source


def folder_config(root: Path, **changes) -> SourceConfig:
    return SourceConfig(**{"kind": "folder", "path": str(root), "split": "all", **changes})


def good_png() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "video"}, "source.kind is 'video'; expected one of digits, folder, imagenet, webdataset"),
        ({"split": "valid"}, "source.split is 'valid'; expected one of train, judge, test, all"),
        ({"view_policy": "zoom"}, "source.view_policy is 'zoom'"),
        ({"image_channels": 4}, "source.image_channels is 4; expected one of 1, 3"),
        ({"kind": "folder"}, "source.path is None; expected the folder or files to read with source.kind=folder"),
        ({"num_views": 0}, "source.num_views is 0; expected a number from 1 to 256"),
        ({"num_views": 2}, "source.num_views is 2; expected 1 at most with source.view_policy=center"),
        ({"num_views": 2, "view_policy": "fresh_crop"}, "expected 1 at most with source.view_policy=fresh_crop"),
        ({"class_map": "names.txt"}, "source.class_map is 'names.txt'; expected null with source.kind=digits"),
        (
            {"view_policy": "shift", "num_views": 10},
            "expected 9 at most with source.view_policy=shift at source.image_size=16",
        ),
        ({"max_bad_fraction": 2.0}, "source.max_bad_fraction is 2.0; expected a number from 0 to 1"),
        (
            {"judge_fraction": 0.6, "test_fraction": 0.5},
            "source.judge_fraction is 0.6; expected below 1 with source.test_fraction=0.5",
        ),
    ],
)
def test_impossible_values_are_named(change, named):
    with pytest.raises(UserError, match="source") as caught:
        SourceConfig(**change)
    assert named in str(caught.value)


def test_views_that_are_never_the_same_again_cannot_become_records():
    source = SourceConfig(view_policy="fresh_crop")
    with pytest.raises(ValueError, match="is 'fresh_crop'; expected views that stay the same"):
        PrecomputeConfig(source=source, tokenizer="a", output="b")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: found nothing, expected a folder of class folders"):
        open_source(folder_config(tmp_path / "nowhere"))


def test_folder_without_class_folders_is_named(tmp_path):
    (tmp_path / "picture.png").write_bytes(good_png())
    with pytest.raises(UserError, match="found no class folders"):
        open_source(folder_config(tmp_path))


@pytest.mark.parametrize("content", [[], ["notes.txt"]])
def test_class_without_images_is_named(tmp_path, content):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(good_png())
    (tmp_path / "dog").mkdir()
    for name in content:
        (tmp_path / "dog" / name).write_text("no image")
    with pytest.raises(UserError, match=r"class folder .*dog: found \d files and no image"):
        open_source(folder_config(tmp_path))


BAD_FILES = {
    "empty.png": (b"", "empty file"),
    "garbage.jpg": (b"not an image at all" * 20, "not an image"),
    "truncated.png": (good_png()[:-100], "cannot be decoded|not an image"),
    "cut_header.png": (good_png()[:20], "cannot be decoded|not an image"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_corrupt_files_raise_a_reason(tmp_path, name):
    data, reason = BAD_FILES[name]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(data)
    source = open_source(folder_config(tmp_path))
    with pytest.raises(BadImage, match=reason):
        source.read(0, 0)


def test_elongated_picture_is_refused_instead_of_filling_the_memory(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("L", (60000, 1)).save(tmp_path / "a" / "line.png")
    with pytest.raises(BadImage, match="too elongated: 60000x1"):
        open_source(folder_config(tmp_path, image_size=256)).read(0, 0)


def test_bad_files_are_skipped_with_reasons_up_to_the_limit(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(96):
        (tmp_path / "a" / f"{number:03d}.png").write_bytes(good_png())
    for name, (data, _) in list(BAD_FILES.items())[:3]:
        (tmp_path / "a" / name).write_bytes(data)
    (tmp_path / "a" / "readme.txt").write_text("about")
    loaded = load_images(open_source(folder_config(tmp_path, max_bad_fraction=0.04)))
    assert len(loaded.images) == 96
    assert {item.key for item in loaded.skipped} == {
        "a/readme.txt", "a/empty.png", "a/garbage.jpg", "a/truncated.png"
    }  # fmt: skip
    with pytest.raises(UserError, match=r"found 4 bad of 100 inputs(?s:.*)a/readme\.txt: not an image by its"):
        load_images(open_source(folder_config(tmp_path, max_bad_fraction=0.03)))
    with pytest.raises(UserError, match=r"expected at most 1\.00% \(max_bad_fraction\)"):
        load_images(open_source(folder_config(tmp_path)))


def test_vanished_file_is_not_called_a_bad_image(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.png").write_bytes(good_png())
    source = open_source(folder_config(tmp_path))
    (tmp_path / "a" / "one.png").unlink()
    with pytest.raises(FileNotFoundError):
        source.read(0, 0)
