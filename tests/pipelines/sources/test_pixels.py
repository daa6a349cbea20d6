"""Pixels of unusual files: small, grey, CMYK, transparent, 16 bits."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipelines.sources import BadImage, SourceConfig, open_source
from pipelines.sources.views import decode_image


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_16_bits(pixels_HWC: np.ndarray) -> bytes:
    """A 16-bit PNG of 1 to 4 channels, which Pillow itself cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = pixels_HWC.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels_HWC)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_not_clipped(channels):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8, 1).repeat(channels, axis=2)
    found = np.asarray(decode_image(png_of_16_bits(ramp), 3)).astype(int)
    assert found.shape == (8, 8, 3)
    assert np.abs(found - ramp / 257.0).max() <= 1.0
    assert (found.min(), found.max()) == (0, 255)


def test_integers_beyond_16_bits_have_no_range_and_are_refused():
    pixels = np.full((4, 4), 70000, dtype=np.int32)
    with pytest.raises(BadImage, match="pixels from 70000 to 70000, expected 8 or 16 bits"):
        decode_image(encoded(Image.fromarray(pixels), "tiff"), 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white_and_opaque_ones_themselves(mode, channels):
    alpha = Image.fromarray(np.array([[0, 255, 128]], dtype=np.uint8))
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1, 1]], dtype=np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 40, 40, 40] + [0] * 762)
        data, middle = encoded(image, transparency=0), 40
    else:
        image = Image.new("L" if mode == "LA" else "RGB", (3, 1), 40 if mode == "LA" else (40, 40, 40))
        image.putalpha(alpha)
        data, middle = encoded(image), round(40 * 128 / 255 + 255 * 127 / 255)
    found = np.asarray(decode_image(data, channels)).reshape(3, -1)
    assert found.shape[1] == channels
    assert found[:2].min(axis=1).tolist() == found[:2].max(axis=1).tolist() == [255, 40]
    assert np.abs(found[2].astype(int) - middle).max() <= 1


def test_cmyk_photographs_keep_their_colours():
    colours = Image.new("RGB", (16, 16), (200, 60, 20))
    data = encoded(colours.convert("CMYK"), "jpeg", quality=98)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    found = np.asarray(decode_image(data, 3)).astype(int)
    assert np.abs(found - np.array([200, 60, 20])).max() <= 6


def test_grey_in_a_colour_run_has_three_equal_channels():
    grey = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
    found = np.asarray(decode_image(encoded(Image.fromarray(grey)), 3))
    assert np.array_equal(found, grey[..., None].repeat(3, axis=2))


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
