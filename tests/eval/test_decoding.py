"""Pixels of unusual files: grey, CMYK, transparent, 16 bits, turned, of other colours, damaged, too large."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from eval import decoding
from eval.decoding import decode_image, read_header
from nvg.errors import BadImage


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of(width: int, height: int, depth: int, kind: int, rows: bytes, transparent: bytes = b"") -> bytes:
    """A PNG chunk by chunk, of the kinds that Pillow itself cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    rest = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + rest + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_of_16_bits(pixels_HWC: np.ndarray) -> bytes:
    """A 16-bit PNG of 1 to 4 channels."""
    height, width, channels = pixels_HWC.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels_HWC)
    return png_of(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows)


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


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png_of(8, 1, 1, 0, b"\0\xf0", struct.pack(">H", 0)), [255] * 8),
        (png_of(4, 1, 2, 0, b"\0\x1b", struct.pack(">H", 2)), [0, 85, 255, 255]),
        (png_of(2, 1, 4, 0, b"\0\x5a", struct.pack(">H", 5)), [255, 170]),
        (png_of(2, 1, 8, 0, b"\0\x00\x28", struct.pack(">H", 0)), [255, 40]),
        (png_of(2, 1, 16, 0, b"\0" + struct.pack(">HH", 0, 40000), struct.pack(">H", 0)), [255, 156]),
        (
            png_of(2, 1, 16, 2, b"\0" + struct.pack(">6H", 9, 9, 9, *[40000] * 3), struct.pack(">3H", 9, 9, 9)),
            [255, 156],
        ),
    ],
    ids=["1 bit", "2 bits", "4 bits", "8 bits", "16 bits", "16 bits, colour"],
)
def test_a_transparent_value_of_any_depth_is_white(data, expected):
    for channels in (1, 3):
        found = np.asarray(decode_image(data, channels)).reshape(len(expected), channels)
        assert found.tolist() == [[value] * channels for value in expected]


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "avif", "mpo"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tags_turn_images_upright(kind, orientation):
    corner = np.zeros((24, 40, 3), np.uint8)
    corner[:12, :20] = 255  # the light quarter is at the top left
    back = {2: 0, 3: 1, 4: 2, 5: 3, 6: 4, 7: 5, 8: 6}
    stored_as = [
        Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270,
    ]  # fmt: skip
    upright, exif = Image.fromarray(corner), Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(stored_as[back[orientation]]) if orientation > 1 else upright
    data = encoded(stored, kind, exif=exif)
    found, header = decode_image(data, 3), read_header(data)
    assert np.abs(np.asarray(found).astype(int) - corner).mean() < 8
    assert (header.width, header.height) == found.size == (40, 24)
    assert tuple(found.info) == header.changes == (() if orientation == 1 else ("turned",))
    as_it_lies = decode_image(data, 3, pixels="stored")
    assert as_it_lies.size == (found.size if kind == "tiff" else stored.size)  # Pillow turns that one by itself
    assert not as_it_lies.info


def profile(*, swapped: bool) -> bytes:
    """sRGB, or a profile with red and blue exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    table = [struct.unpack(">4sII", data[132 + 12 * n : 144 + 12 * n]) for n in range(int.from_bytes(data[128:132]))]
    place = {name: slice(start, start + size) for name, start, size in table}
    if swapped:
        red, blue = bytes(data[place[b"rXYZ"]]), bytes(data[place[b"bXYZ"]])
        data[place[b"rXYZ"]], data[place[b"bXYZ"]] = blue, red
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_converted_unless_the_numbers_are_wanted(mode):
    image = Image.new("RGB", (8, 8), (204, 51, 51)).convert(mode)
    data = encoded(image, icc_profile=profile(swapped=True))
    shown, stored = decode_image(data, 3), decode_image(data, 3, pixels="stored")
    assert np.abs(np.asarray(shown).astype(int) - (51, 51, 204)).max() <= 3
    assert np.asarray(stored)[0, 0].tolist() == [204, 51, 51]
    assert (shown.info, stored.info) == ({"recoloured": True}, {})


@pytest.mark.parametrize("icc", [profile(swapped=False), b"no profile at all", profile(swapped=True)[:200]])
def test_srgb_and_damaged_profiles_change_nothing(icc):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found = decode_image(encoded(Image.fromarray(pixels), icc_profile=icc), 3)
    assert np.array_equal(np.asarray(found), pixels)
    assert not found.info


def test_a_profile_of_another_colour_model_changes_nothing_and_grey_stays_grey():
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    found = np.asarray(decode_image(encoded(grey, icc_profile=profile(swapped=True)), 3))
    assert np.array_equal(found, np.asarray(grey)[..., None].repeat(3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I"])
@pytest.mark.parametrize("channels", [1, 3])
def test_bands_of_a_large_image_are_those_of_the_whole(monkeypatch, mode, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 23, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode.startswith("I"):
        image = Image.fromarray(pixels[..., 0].astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    else:
        image = Image.merge("LAB", image.split()) if mode == "LAB" else image.convert(mode)
    data = encoded(image, "tiff")
    whole = np.asarray(decode_image(data, channels))
    monkeypatch.setattr("eval.decoding._BAND_PIXELS", 100)
    assert np.array_equal(np.asarray(decode_image(data, channels)), whole)


def test_a_tiff_of_32_bits_that_would_be_black_at_16_is_refused_and_a_black_one_is_not():
    ramp = np.arange(256, dtype=np.int32).reshape(16, 16)
    with pytest.raises(BadImage, match="32-bit pixels of at most 255: black, or of 8 bits"):
        decode_image(encoded(Image.fromarray(ramp), "tiff"), 1)
    assert not np.asarray(decode_image(encoded(Image.fromarray(0 * ramp), "tiff"), 1)).any()
    assert np.array_equal(np.asarray(decode_image(encoded(Image.fromarray(257 * ramp), "tiff"), 1)), ramp)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "jpeg"])
def test_a_tiff_in_ycbcr_has_its_colours(compression):
    image = Image.new("RGB", (16, 16), (200, 60, 20)).convert("YCbCr")
    found = decode_image(encoded(image, "tiff", compression=compression), 3)
    assert np.abs(np.asarray(found).astype(int) - (200, 60, 20)).max() <= 3


def test_large_images_are_refused_by_their_header_and_pillow_says_nothing(recwarn):
    warnings.simplefilter("always")
    decoding._ignore_warnings.cache_clear()  # once in a process; pytest has its own filters for each test
    for width, height, found in (
        (10000, 9000, "10000×9000 pixels are 90.0 megapixels"),
        (30000, 20000, "more than 178"),
    ):
        rows = png_of(width, height, 8, 0, b"")  # nothing behind the header: it must not be looked at
        for look in (read_header, lambda data: decode_image(data, 3)):
            with pytest.raises(BadImage, match=rf"{found}.*expected at most 64 \(max_megapixels\)"):
                look(rows)
    with pytest.raises(BadImage, match=r"expected at most 0\.0001"):
        decode_image(encoded(Image.new("L", (20, 20))), 1, max_megapixels=1e-4)
    assert not list(recwarn)


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp", "tiff", "webp", "avif", "ico", "dds", "tga", "ppm"])
def test_whatever_damage_does_is_a_reason_never_a_trace(kind):
    rng = random.Random(kind)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(pixels), kind)
    for _ in range(120):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(min(len(data), rng.choice([64, 400, 1 << 20])))] = rng.randrange(256)
        try:
            assert decode_image(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]), 3).mode == "RGB"
        except BadImage:
            continue
