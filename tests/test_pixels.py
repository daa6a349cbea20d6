"""Bytes and the range of the networks: both ways, both roundings, both layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvg.pixels import scale_levels, to_model_range, to_uint8

EVERY = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


def test_model_range() -> None:
    images = np.array([0, 255], dtype=np.uint8).reshape(1, 1, 2, 1).repeat(2, axis=1)
    for planes in (False, True):
        values = to_model_range(images, planes=planes)
        assert values.shape == (1, 1, 2, 2)
        assert values.dtype == torch.float32
        assert values.min() == -1.0
        assert values.max() == 1.0


def test_every_level_is_the_formula_in_float32() -> None:
    expected = (EVERY.reshape(-1) / np.float32(127.5) - np.float32(1)).tolist()
    assert to_model_range(EVERY).flatten().tolist() == expected
    assert scale_levels(torch.from_numpy(EVERY.copy())).flatten().tolist() == expected


def test_the_layout_is_that_of_the_bytes_or_planes_and_the_values_are_the_same() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    as_bytes, planes = to_model_range(images), to_model_range(images, planes=True)
    assert as_bytes.is_contiguous(memory_format=torch.channels_last)
    assert planes.is_contiguous()
    assert torch.equal(as_bytes, planes)


def test_rounding_conventions() -> None:
    levels = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]).reshape(1, 1, 1, 6)
    assert to_uint8(levels, "release").reshape(-1).tolist() == [0, 0, 127, 254, 255, 255]
    assert to_uint8(levels, "round").reshape(-1).tolist() == [0, 0, 128, 255, 255, 255]


def test_bytes_survive_the_round_trip() -> None:
    assert (to_uint8(to_model_range(EVERY), "round") == EVERY).all()


def test_images_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        to_uint8(torch.full((1, 1, 2, 2), float("nan")))
    with pytest.raises(ValueError, match="rounding"):
        to_uint8(torch.zeros(1, 1, 2, 2), "floor")
    with pytest.raises(ValueError, match="expected uint8"):
        to_model_range(EVERY.astype(np.float32))  # pyright: ignore[reportArgumentType]
