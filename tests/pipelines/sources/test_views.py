"""View policies of photographs: random crops, mirrored ones, ten crops; shifts and digits are in test_sources.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.decoding import decode_image
from pipelines.sources import SourceConfig, open_source
from pipelines.sources import views as source_views
from pipelines.sources.views import make_view

SIDE = 32


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A picture of 54 x 36, so that the shorter side already is 1.125 times 32."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (36, 54, 3), dtype=np.uint8))


def views(picture: Image.Image, count: int, policy: Any, **changes) -> list[np.ndarray]:
    config = SourceConfig(
        image_size=SIDE,
        image_channels=3,
        num_views=1 if policy == "fresh_crop" else count,
        view_policy=policy,
        **changes,
    )
    return [make_view(picture, config=config, key="a/b.jpg", view=view) for view in range(count)]


def square(picture: Image.Image, top: int, left: int) -> np.ndarray:
    return np.asarray(picture)[top : top + SIDE, left : left + SIDE]


def test_random_crops_are_the_crops_without_the_centre(picture):
    crops, random_crops = views(picture, 17, "crop"), views(picture, 16, "random_crop")
    assert np.array_equal(crops[0], square(picture, 2, 11))
    assert all(np.array_equal(one, other) for one, other in zip(crops[1:], random_crops, strict=True))
    assert len({crop.tobytes() for crop in random_crops}) > 12


@pytest.mark.parametrize("policy", ["crop", "random_crop", "fresh_crop"])
def test_flip_mirrors_about_half_of_the_random_crops_and_moves_none(picture, policy):
    count = 64
    plain, flipped = views(picture, count, policy), views(picture, count, policy, flip=True)
    mirrored = [np.array_equal(one, other[:, ::-1]) for one, other in zip(plain, flipped, strict=True)]
    same = [np.array_equal(one, other) for one, other in zip(plain, flipped, strict=True)]
    assert all(one != other for one, other in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48
    assert policy == "random_crop" or same[0]


def test_ten_crops_are_centre_and_corners_and_the_same_mirrored(picture):
    found = views(picture, 10, "ten_crop")
    corners = [(2, 11), (0, 0), (0, 22), (4, 0), (4, 22)]
    for view, (top, left) in enumerate(corners):
        assert np.array_equal(found[view], square(picture, top, left))
        assert np.array_equal(found[view + 5], square(picture, top, left)[:, ::-1])


def test_views_of_one_decoding_are_those_of_many(tmp_path, picture, monkeypatch):
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "b.png")
    source = open_source(
        SourceConfig(
            kind="folder", path=str(tmp_path), split="all", image_size=SIDE, image_channels=3,
            view_policy="random_crop", num_views=16,
        )
    )  # fmt: skip
    apart = [source.read(0, view) for view in (3, 0, 15)]
    decoded = []
    monkeypatch.setattr(
        source_views, "decode_image", lambda *args, **settings: decoded.append(1) or decode_image(*args, **settings)
    )
    together = source.read_views(0, [3, 0, 15])
    assert all(np.array_equal(one, other) for one, other in zip(together, apart, strict=True))
    assert len(decoded) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"view_policy": "ten_crop", "num_views": 11},
            "source.num_views is 11; expected 10 at most with source.view_policy=ten_crop",
        ),
        ({"view_policy": "center", "flip": True}, "source.flip is True; expected false with source.view_policy=center"),
        ({"view_policy": "shift", "flip": True}, "source.flip is True; expected false"),
    ],
)
def test_impossible_views_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        SourceConfig(**changes)
