"""`source.fit=pad`: images keep their pixels, on the middle of a black square."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_sources import write_class_folders
from PIL import Image

from nvg.errors import UserError
from pipelines.batches.images import memory_image_source
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.plan import DatasetFolder, make_plan
from pipelines.sources import BadImage, SourceConfig, load_images, open_source
from pipelines.sources.views import make_view


def config(**changes) -> SourceConfig:
    values = {"kind": "folder", "path": "p", "image_size": 32, "image_channels": 3, "fit": "pad", "split": "all"}
    return SourceConfig(**{**values, **changes})


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("width", "height"), [(28, 28), (32, 32), (1, 1), (31, 5), (27, 32)])
def test_the_middle_is_the_picture_and_the_rest_is_black(width, height):
    image = picture(width, height)
    view = make_view(image, config=config(), key="k", view=0)
    left, top = (32 - width) // 2, (32 - height) // 2
    assert np.array_equal(view[top : top + height, left : left + width], np.asarray(image))
    assert np.count_nonzero(view.any(axis=-1)) == width * height
    for policy in ("crop", "ten_crop", "fresh_crop"):  # their centre is the same
        assert np.array_equal(make_view(image, config=config(view_policy=policy), key="k", view=0), view)


@pytest.mark.parametrize(("policy", "num_views"), [("shift", 25), ("crop", 40), ("random_crop", 40), ("ten_crop", 10)])
def test_moved_pictures_stay_whole_inside_the_padding(policy, num_views):
    """28 pixels in 32 leave two on each side, as far as a shift of 32 pixels goes; crops are cut from 36."""
    image = picture(28, 28)
    views = config(view_policy=policy, num_views=num_views)
    places = set()
    for view in range(num_views):
        pixels = make_view(image, config=views, key="k", view=view)
        rows, columns = (np.flatnonzero(pixels.any(axis=(axis, 2))) for axis in (1, 0))
        found = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert np.array_equal(found, np.asarray(image)[:, :: -1 if policy == "ten_crop" and view >= 5 else 1])
        places.add((rows[0], columns[0]))
    assert len(places) == {"shift": 25, "ten_crop": 5}.get(policy, len(places))
    assert len(places) > 4


def test_larger_images_are_bad_inputs_by_name(tmp_path):
    root = write_class_folders(tmp_path, {"a": 2}, size=(28, 33))
    source = open_source(config(path=str(root)))
    with pytest.raises(
        BadImage, match=r"too large to pad: 28x33 pixels, expected at most 32 a side \(source\.fit=pad; re"
    ):
        source.read(0, 0)
    with pytest.raises(UserError, match=r"found 1 bad of 2 inputs(?s:.*)a/000\.png: too large to pad"):
        load_images(source)


def test_nothing_is_said_of_enlarging(tmp_path, caplog):
    root = write_class_folders(tmp_path, {"a": 1})
    open_source(config(path=str(root))).read(0, 0)
    assert not caplog.records
    open_source(config(path=str(root), fit="resize")).read(0, 0)
    assert len(caplog.records) == 1


def test_padded_records_and_trainings_are_others_and_the_default_is_what_it_was(tmp_path):
    root = write_class_folders(tmp_path / "images", {"a": 2})
    padded = config(path=str(root))
    resized = replace(padded, fit="resize")
    assert resized.decoding == {"pixels": "shown"}
    assert padded.decoding == {"fit": "pad", "pixels": "shown"}
    assert replace(padded, kind="digits").decoding == {"fit": "pad"}

    def plan(source: SourceConfig):
        job = PrecomputeConfig(source=source, tokenizer="t", output=str(tmp_path / "records"))
        return make_plan(job, open_source(source), "0" * 64)

    assert "fit" not in plan(resized).description
    folder = DatasetFolder(Path(tmp_path / "records"))
    folder.adopt(plan(resized))
    with pytest.raises(UserError, match=r"fit: 'resize' against 'pad'"):
        folder.adopt(plan(padded))
    one, other = (memory_image_source(open_source(source), "one").fingerprint for source in (resized, padded))
    assert {**one, "fit": "pad"} == other
