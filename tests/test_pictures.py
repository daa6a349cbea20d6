"""The library's cut of a picture is the one of the training sources, to the bit, with NumPy alone."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from nvg.errors import UserError
from nvg.pictures import Cut, cut_labels, cut_mask, cut_picture
from pipelines.sources import SourceConfig
from pipelines.sources.views import make_views

SIDES = st.integers(1, 90)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pillows(picture: Image.Image, size: int, channels: int, cut: Cut, resample=Image.Resampling.LANCZOS) -> np.ndarray:
    how = {"fit": "pad"} if cut == "pad" else {"view_policy": cut}
    config = replace(SourceConfig(), image_size=size, image_channels=channels, **how)
    return make_views(picture, config=config, key="", views=[0], resample=resample)[0]


@settings(max_examples=80, deadline=None)
@given(SIDES, SIDES, st.sampled_from([1, 3]), st.sampled_from([4, 16, 37, 64]), st.sampled_from(["center", "crop"]))
def test_a_picture_is_cut_as_a_source_cuts_it(height, width, channels, size, cut):
    pixels = noise(height, width, channels, seed=height)
    expected = pillows(Image.fromarray(pixels[..., 0] if channels == 1 else pixels), size, channels, cut)
    assert np.array_equal(cut_picture(pixels, size, channels, cut), expected)


@settings(max_examples=80, deadline=None)
@given(SIDES, SIDES, st.sampled_from([4, 16, 37, 64]), st.sampled_from(["center", "crop"]))
def test_labels_are_cut_as_a_source_cuts_them(height, width, size, cut):
    labels = noise(height, width, seed=width)
    expected = pillows(Image.fromarray(labels), size, 1, cut, Image.Resampling.NEAREST)
    assert np.array_equal(cut_labels(labels.astype(np.int64), size, cut), expected[..., 0])


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 9), (1, 1), (16, 16)])
def test_a_small_picture_is_padded_as_a_source_pads_it(height, width):
    pixels = noise(height, width)
    assert np.array_equal(cut_picture(pixels, 16, 1, "pad"), pillows(Image.fromarray(pixels), 16, 1, "pad"))
    assert np.array_equal(cut_labels(pixels, 16, "pad"), pillows(Image.fromarray(pixels), 16, 1, "pad")[..., 0])


def test_large_pictures_too():
    pixels = noise(1200, 1700, 3)
    assert np.array_equal(cut_picture(pixels, 256, 3, "crop"), pillows(Image.fromarray(pixels), 256, 3, "crop"))


def test_colours_become_grey_and_transparency_white_as_pillow_makes_them():
    every = noise(64, 64, 3)
    assert np.array_equal(cut_picture(every, 64, 1, "center")[..., 0], np.asarray(Image.fromarray(every).convert("L")))
    grey = noise(64, 64)
    assert np.array_equal(cut_picture(grey, 64, 3, "center"), np.asarray(Image.fromarray(grey).convert("RGB")))
    clear = noise(256, 256, 4)
    white = Image.alpha_composite(Image.new("RGBA", (256, 256), "white"), Image.fromarray(clear)).convert("RGB")
    assert np.array_equal(cut_picture(clear, 256, 3, "center"), np.asarray(white))


def test_pictures_of_pillow_come_in_through_the_array_protocol():
    pixels = noise(20, 30, 3)
    assert np.array_equal(cut_picture(Image.fromarray(pixels), 16, 3, "crop"), cut_picture(pixels, 16, 3, "crop"))
    assert "PIL" not in sys.modules["nvg.pictures"].__dict__


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4)), r"found float64 array of shape \(4, 4\); expected uint8"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"shape \(1, 4, 4, 3\)"),
        ("digit.png", "found a str"),
        (None, "found a NoneType"),
        (np.zeros((1, 1 << 24), np.uint8), "too elongated: 16777216x1"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message):
    with pytest.raises(UserError, match=message):
        cut_picture(picture, 16, 1, "center", name="structure_from")


def test_a_picture_too_large_to_pad_is_refused_with_the_way_out():
    with pytest.raises(UserError, match=r'too large to pad: 16x17 pixels, expected at most 16.*cut="center"'):
        cut_picture(noise(17, 16), 16, 1, "pad")
    with pytest.raises(UserError, match="cut is 'left'; expected one of center, crop, pad"):
        cut_picture(noise(17, 16), 16, 1, "left")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="labels: found float64"):
        cut_labels(np.zeros((4, 4)), 16, "center")


def black_box(height: int, width: int, top: int, left: int, size: int) -> np.ndarray:
    keep = np.ones((height, width), bool)
    keep[top : top + size, left : left + size] = False
    return keep


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(1, 4), st.sampled_from([4, 16, 37]), st.sampled_from(["center", "crop"]), st.data())
def test_what_a_mask_marks_is_marked_where_its_picture_is_cut(height, width, scale, size, cut, data):
    """Held against labels, which are cut by the nearest pixel: black may spread, it never shrinks."""
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    keep = black_box(height, width, top, left, 2)
    assume(not keep.all() and keep.any())
    found = cut_mask(keep.repeat(scale, 0).repeat(scale, 1), np.zeros((height, width), np.uint8), size, cut)
    assert found.shape == (size, size)
    assert not found[cut_labels(keep.astype(np.int64), size, cut) == 0].any()


def test_a_mask_over_a_picture_of_the_models_size_is_taken_as_it_is():
    keep, picture = black_box(16, 16, 3, 5, 4), noise(16, 16, 1)
    assert np.array_equal(cut_mask(keep, picture, 16, "center"), keep)
    assert np.array_equal(cut_mask(keep.repeat(8, 0).repeat(8, 1), picture, 16, "center"), keep)
    assert np.array_equal(cut_mask(keep * 0.3 + 0.2, picture, 16, "pad"), keep)
    assert np.array_equal(cut_mask(Image.fromarray(np.uint8(255) * keep).convert("RGB"), picture, 16, "pad"), keep)


def test_a_line_thinner_than_a_pixel_marks_it():
    keep = np.ones((512, 512), bool)
    keep[100] = False
    found = cut_mask(keep, noise(16, 16, 1), 16, "center")
    assert (~found).nonzero()[0].tolist() == [3] * 16


def test_what_is_padded_around_a_picture_is_kept():
    found = cut_mask(black_box(8, 8, 0, 0, 8) | np.eye(8, dtype=bool), noise(8, 8, 1), 16, "pad")
    assert found.sum() == 16 * 16 - 64 + 8
