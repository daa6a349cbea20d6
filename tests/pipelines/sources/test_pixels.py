"""What a source makes of images that ask to be shown otherwise, that are small, or too large."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import decoding
from nvg.errors import UserError
from pipelines.configuration import load_config
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.plan import DatasetFolder, make_plan
from pipelines.sources import BadImage, SourceConfig, load_images, open_source
from pipelines.train.tokenizer import TokenizerRunConfig


@pytest.mark.parametrize(("policy", "side"), [("center", 32), ("crop", 36), ("fresh_crop", 36)])
def test_images_smaller_than_the_crop_are_enlarged_and_it_is_said_once(tmp_path, caplog, policy, side):
    (tmp_path / "a").mkdir()
    for name, width in (("small", 20), ("tiny", 1), ("large", side)):
        Image.new("RGB", (width, 40), (10, 200, 30)).save(tmp_path / "a" / f"{name}.png")
    config = SourceConfig(
        kind="folder", path=str(tmp_path), split="all", image_size=32, image_channels=3, view_policy=policy
    )
    source = open_source(config)
    for index in (0, 1, 2, 1):
        pixels = source.read(index, 0)
        assert pixels.shape == (32, 32, 3)
        assert np.array_equal(np.unique(pixels.reshape(-1, 3), axis=0), [[10, 200, 30]])
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"{tmp_path}: found images whose shorter side is below {side} pixels; they are enlarged"]


def phone_pictures(root: Path, *, turned: int, plain: int) -> SourceConfig:
    """Pictures, light above and dark below; the first ones lie on their side and say so."""
    (root / "a").mkdir(parents=True)
    upright = Image.fromarray(np.repeat(np.array([255, 0], np.uint8), 16)[:, None].repeat(32, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(turned + plain):
        image, tag = (
            (upright.transpose(Image.Transpose.ROTATE_90), exif) if number < turned else (upright, Image.Exif())
        )
        image.save(root / "a" / f"{number}.png", exif=tag)
    return SourceConfig(kind="folder", path=str(root), split="all", image_size=32)


def test_turned_images_are_upright_and_counted_once(tmp_path, caplog):
    config = phone_pictures(tmp_path, turned=3, plain=2)
    for _ in range(2):
        loaded = load_images(open_source(config))
    assert loaded.images[:, :16].min() == 255
    assert loaded.images[:, 16:].max() == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path} (all): 3 image(s) turned upright by their orientation tag; "
        "source.pixels=stored takes them as they lie"
    ]
    stored = load_images(open_source(replace(config, pixels="stored")))
    assert len({image.tobytes() for image in stored.images}) == 2
    assert len(caplog.records) == 1


def test_records_of_stored_pixels_are_no_records_of_shown_ones(tmp_path):
    config = phone_pictures(tmp_path / "images", turned=1, plain=1)
    job = PrecomputeConfig(source=config, tokenizer="t", output=str(tmp_path / "records"))
    old = replace(job, source=replace(config, pixels="stored"))

    def plan(job):
        return make_plan(job, open_source(job.source), "0" * 64)

    assert "pixels" not in plan(old).description  # as of versions that knew no other pixels: their records go on
    for first, second in ((old, job), (job, old)):
        folder = DatasetFolder(Path(job.output) / first.source.pixels)
        folder.adopt(plan(first))
        folder.adopt(plan(first))
        with pytest.raises(UserError, match=r"pixels: '(stored|shown)' against '(stored|shown)'"):
            folder.adopt(plan(second))
        assert json.loads((folder.parts / "plan.json").read_text()) == plan(first).description
    assert plan(replace(job, source=replace(config, kind="digits"))).description.keys().isdisjoint({"pixels"})


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        (PrecomputeConfig, "precompute/imagenet.yaml"),
        (PrecomputeConfig, "precompute/imagenet_one_view.yaml"),
        (TokenizerRunConfig, "tokenizer/f16.yaml"),
    ],
)
def test_the_imagenet_presets_read_pixels_as_stored(schema, name):
    assert load_config(schema, name).source.pixels == "stored"


def test_an_image_above_the_limit_is_a_bad_input_by_name(tmp_path):
    config = phone_pictures(tmp_path, turned=0, plain=1)
    with pytest.raises(BadImage, match=r"32×32 pixels are 0\.0 megapixels, expected at most 0\.001 \(max_megapixels\)"):
        open_source(replace(config, max_megapixels=0.001)).read(0, 0)
    with pytest.raises(UserError, match=r"source.max_megapixels is 500; expected a number from 0.001 to 178"):
        replace(config, max_megapixels=500)
    assert SourceConfig().max_megapixels == decoding.MAX_MEGAPIXELS
