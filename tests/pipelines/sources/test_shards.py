"""Tar shards: whatever happened to one, each of its images is read, named with a reason, or the shard is refused."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_sources import png
from PIL import Image

from nvg.errors import UserError
from pipelines.sources import ImageSource, SourceConfig, load_images, open_source
from pipelines.sources.shards import index_tar

BLOCK = tarfile.BLOCKSIZE
PICTURES = [png(number, size=8) for number in range(60)]
PIXELS = {np.asarray(Image.open(io.BytesIO(data))).tobytes() for data in PICTURES}
NAMES = {
    tarfile.USTAR_FORMAT: "train/{:04d}",
    tarfile.PAX_FORMAT: "d" * 60 + "/ü中" + "-{:04d}",
    tarfile.GNU_FORMAT: "d" * 70 + "/" + "e" * 70 + "/{:04d}",
}
FORMATS = pytest.mark.parametrize("form", NAMES, ids=["ustar", "pax", "gnu"])


def opened(folder: Path, **changes) -> ImageSource:
    options = {"kind": "webdataset", "split": "all", "image_size": 8, "max_bad_fraction": 1.0, **changes}
    return open_source(SourceConfig(path=str(folder), **options))


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


def write_shard(path: Path, numbers: range, form: int = tarfile.USTAR_FORMAT) -> bytes:
    with tarfile.open(path, "w", format=form) as archive:
        for number in numbers:
            name = NAMES[form].format(number)
            add(archive, f"{name}.png", PICTURES[number], mtime=1.5)
            add(archive, f"{name}.cls", b"0", mtime=1.5)
    return path.read_bytes()


def headers(data: bytes) -> list[int]:
    """Offsets of all header blocks, those of long names and pax among them."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        starts = [(member.offset, member.offset_data) for member in archive]
    places = [at for start, end in starts for at in range(start, end, BLOCK)]
    return [at for at in places if data[at + 257 : at + 262] == b"ustar"]


def is_sound(header: bytearray) -> bool:
    """Whether the checksum still reads as it did, with another blank around it."""
    with contextlib.suppress(tarfile.TarError, ValueError):
        return bool(tarfile.TarInfo.frombuf(bytes(header), "utf-8", "surrogateescape"))
    return False


def num_accounted(
    folder: Path, refusals: tuple[str, ...] = ("damaged at byte", "truncated", "at byte 0")
) -> int | None:
    """Images read, right to the pixel, and inputs named; None where the shard is refused by name."""
    try:
        source = opened(folder)
        loaded = load_images(source)
    except UserError as error:
        text = str(error)
        assert "no image could be read" in text or "holds no image" in text or any(part in text for part in refusals)
        assert ".tar" in text or "source" in text or str(folder) in text
        return None
    assert all(image.tobytes() in PIXELS for image in loaded.images[..., 0])
    assert all(item.reason for item in [*loaded.skipped, *source.passed_over])
    return len(loaded.images) + len(loaded.skipped)


@FORMATS
def test_a_bit_of_every_header(tmp_path, form):
    """Nothing changes where it stands past the end of the checksum's text."""
    path = tmp_path / "a.tar"
    data = write_shard(path, range(4), form)
    places = headers(data)
    assert len(places) >= 8
    generator = np.random.default_rng(0)
    num_refused = 0
    for at in places:
        for bit in generator.choice(8 * BLOCK, 12, replace=False):
            flipped = bytearray(data)
            flipped[at + bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            found = num_accounted(tmp_path)
            assert found is None or (found == 4 and 148 <= bit // 8 < 156)
            num_refused += found is None
    assert num_refused >= 11 * len(places)


def test_bits_of_every_byte_of_a_header(tmp_path):
    path = tmp_path / "a.tar"
    data = write_shard(path, range(3))
    at = headers(data)[2]
    for bit in range(0, 8 * BLOCK, 3):
        flipped = bytearray(data)
        flipped[at + bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        if flipped[at + 148 : at + 156] != data[at + 148 : at + 156] and is_sound(flipped[at : at + BLOCK]):
            assert len(index_tar(str(path)).samples) == 3
            continue
        with pytest.raises(UserError, match=rf"a\.tar: damaged at byte {at}: found no header after 2 members"):
            index_tar(str(path))


@FORMATS
def test_every_block_zeroed_overwritten_or_cut_off(tmp_path, form):
    path = tmp_path / "a.tar"
    data = write_shard(path, range(4), form)
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + BLOCK
    noise = np.random.default_rng(0).bytes(BLOCK)
    for at in range(0, end, BLOCK):
        for content in (bytes(BLOCK), noise, noise[:100] + bytes(BLOCK - 100)):
            path.write_bytes(data[:at] + content + data[at + BLOCK :])
            found = num_accounted(tmp_path, ("damaged at byte", "truncated", "at byte 0", "appears twice"))
            assert found is None or found >= 4
    for length in itertools.chain(range(0, end + BLOCK, BLOCK), range(100, end, 777)):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"a\.tar: (truncated|found no tar)"):
            opened(tmp_path)
    for length in range(end + BLOCK, len(data), BLOCK):
        path.write_bytes(data[:length])
        assert num_accounted(tmp_path) == 4
    path.write_bytes(data[:end] + bytes(5 * BLOCK) + b"x" + bytes(BLOCK))
    with pytest.raises(UserError, match=rf"damaged at byte {end}: found zeros after 8 members and then other data"):
        opened(tmp_path)


@FORMATS
def test_joined_archives_are_refused_and_rightly_joined_ones_read(tmp_path, form):
    path = tmp_path / "a.tar"
    second = write_shard(path, range(10, 13), form)
    first = write_shard(path, range(4), form)
    path.write_bytes(first + second)
    with pytest.raises(UserError, match=rf"archive at byte {len(first)}: two archives joined; .* tar --concatenate"):
        opened(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        last = archive.getmembers()[-1]
    path.write_bytes(first[: last.offset_data + BLOCK] + second)  # as tar --concatenate does
    assert num_accounted(tmp_path) == 7


def test_zeros_that_are_more_than_padding_are_told(tmp_path, caplog):
    path = tmp_path / "a.tar"
    data = write_shard(path, range(20))
    with tarfile.open(path) as archive:
        middle = archive.getmembers()[10].offset
    for num_bytes, told in ((1 << 16, False), ((1 << 20) + 512, True)):  # with records of 64 KiB; with none
        path.write_bytes(data.ljust(num_bytes, b"\0"))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert num_accounted(tmp_path) == 20
        assert ("a copy that was broken off can look so" in caplog.text) is told
    path.write_bytes(data[:middle].ljust(len(data), b"\0"))
    with caplog.at_level(logging.WARNING):
        assert num_accounted(tmp_path) == 5
    assert f"after the last of 10 members (at byte {middle})" in caplog.text


FIELDS = {
    "name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "checksum": (148, 8), "type": (156, 1),
    "linkname": (157, 100), "magic": (257, 8), "device": (329, 16), "prefix": (345, 155),
}  # fmt: skip
VALUES = [b"", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\x80" + bytes(11), b"7" * 12, b"-1", b"0x12", b"../a", b"\n\xfe"]
TYPES = [b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"D", b"K", b"L", b"M", b"N", b"S", b"V", b"X", b"g", b"x", b"?"]


@FORMATS
@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_a_header_with_a_right_checksum(tmp_path, form, field):
    """What no checksum shows: nonsense in a field ends in a message, or every image is accounted for."""
    path = tmp_path / "a.tar"
    data = write_shard(path, range(2), form)
    start, length = FIELDS[field]
    for at, value in itertools.product(headers(data)[:4], TYPES if field == "type" else VALUES):
        header = bytearray(data[at : at + BLOCK])
        header[start : start + length] = value[:length].ljust(length, b"\0")
        if field != "checksum":
            total = sum(header[:148]) + 8 * 32 + sum(header[156:])
            header[148:156] = f"{total:06o}\0 ".encode()
        path.write_bytes(data[:at] + header + data[at + BLOCK :])
        found = num_accounted(tmp_path, ("damaged at byte", "truncated", "at byte 0", "appears twice", "again in"))
        assert found is None or found >= 2, (at, value)


@pytest.mark.parametrize(
    "records",
    [b"0 path=a\n", b"99999999 path=a.png\n", b"-5 path=a\n", b"24 hdrcharset=\xff\xfe\xfd\n", b"\0" * 30,
     b"16 size=-10000\n", b"18 GNU.sparse.map\n22 GNU.sparse.map=a,b\n", b"13 size=1e9\n", b"30 GNU.sparse.major=1\n"],
)  # fmt: skip
def test_nonsense_in_a_pax_header(tmp_path, records):
    path = tmp_path / "a.tar"
    data = bytearray(write_shard(path, range(3), tarfile.PAX_FORMAT))
    with tarfile.open(path) as archive:
        at = archive.getmembers()[2].offset + BLOCK
    data[at : at + BLOCK] = records.ljust(BLOCK, b"\0")
    path.write_bytes(data)
    found = num_accounted(tmp_path, ("damaged at byte", "truncated", "appears twice"))
    assert found is None or found >= 3


def test_a_chain_of_headers_without_end(tmp_path):
    path = tmp_path / "a.tar"
    header = tarfile.TarInfo("pax")
    header.type = tarfile.XHDTYPE
    data = write_shard(path, range(1))
    path.write_bytes(data[: 4 * BLOCK] + header.tobuf() * 3000 + data[4 * BLOCK :])
    with pytest.raises(UserError, match=r"a\.tar: damaged at byte"):
        opened(tmp_path)


Writer = Callable[[tarfile.TarFile, str, int], int]


def plain(archive: tarfile.TarFile, name: str, number: int) -> int:
    add(archive, f"{name}.png", PICTURES[number])
    add(archive, f"{name}.cls", b"0")
    return 1


def linked(kind: bytes) -> Writer:
    def write(archive: tarfile.TarFile, name: str, number: int) -> int:
        plain(archive, f"{name}a", number)
        add(
            archive, f"{name}b.png", type=kind, linkname=f"{name}a.png" if kind == tarfile.LNKTYPE else f"{number}a.png"
        )
        add(
            archive, f"{name}b.cls", type=kind, linkname=f"{name}a.cls" if kind == tarfile.LNKTYPE else f"{number}a.cls"
        )
        return 2

    return write


def dangling(archive: tarfile.TarFile, name: str, number: int) -> int:
    add(archive, f"{name}.png", type=tarfile.SYMTYPE, linkname="/data/nowhere.png")
    add(archive, f"{name}.cls", b"0")
    return 1


def below(folder: str) -> Writer:
    return lambda archive, name, number: plain(archive, f"{folder}/{name}", number)


def dotted(archive: tarfile.TarFile, name: str, number: int) -> int:
    for part in "abc":
        plain(archive, f"{name} v1.{part}", number)
    return 3


def merged_into_a_plain_one(archive: tarfile.TarFile, name: str, number: int) -> int:
    plain(archive, name, number)
    plain(archive, f"{name}.2", number)
    return 2


def with_mask(archive: tarfile.TarFile, name: str, number: int) -> int:
    plain(archive, name, number)
    add(archive, f"{name}.seg.png", PICTURES[number])
    return 2


def device(archive: tarfile.TarFile, name: str, number: int) -> int:
    add(archive, f"{name}.png", type=tarfile.FIFOTYPE)
    add(archive, f"{name}.cls", b"0")
    return 1


def no_extension(archive: tarfile.TarFile, name: str, number: int) -> int:
    add(archive, name, PICTURES[number])
    return 1


def junk(archive: tarfile.TarFile, name: str, number: int) -> int:
    add(archive, f"._{name.rpartition('/')[2]}.png", b"junk")
    add(archive, "@eaDir/x/thumb.jpg" if number % 2 else f"{number}/Thumbs.db", PICTURES[number])
    return 2


def folder(archive: tarfile.TarFile, name: str, number: int) -> int:
    add(archive, name, type=tarfile.DIRTYPE)
    return 0


WRITERS: list[Writer] = [
    plain, linked(tarfile.LNKTYPE), linked(tarfile.SYMTYPE), dangling, below(".."), below(".cache"), below("a.b"),
    dotted, merged_into_a_plain_one, with_mask, device, no_extension, junk, folder,
]  # fmt: skip


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.sampled_from(range(len(WRITERS))), min_size=1, max_size=12),
    form=st.sampled_from(sorted(NAMES)),
    num_shards=st.integers(1, 3),
    prefix=st.sampled_from(["", "./", "deep/er/", "ü"]),
)
def test_what_is_there_is_read_or_named(tmp_path_factory, kinds, form, num_shards, prefix):
    root = tmp_path_factory.mktemp("shards")
    num_images = 0
    for shard in range(num_shards):
        with tarfile.open(root / f"{shard}.tar", "w", format=form) as archive:
            for number, kind in enumerate(kinds):
                # a repeated junk file of one name is one thing twice, as in a folder extracted over itself
                num_images += WRITERS[kind](archive, f"{prefix}{number}", number)
    if not parts_with_images(root, "all"):
        return
    source = opened(root)
    loaded = load_images(source)
    assert len(loaded.images) + len(loaded.skipped) + len(source.passed_over) == num_images
    named = [item.key for item in [*loaded.skipped, *source.passed_over]] + source.keys
    assert len(named) == num_images
    parts = [opened(root, split=split).keys for split in parts_with_images(root, "train", "judge", "test")]
    assert sorted(key for keys in parts for key in keys) == sorted(source.keys)


def parts_with_images(root: Path, *splits: str) -> list[str]:
    """Those of `splits` that are not refused as empty."""
    found: list[str] = []
    for split in splits:
        with contextlib.suppress(UserError):
            opened(root, split=split)
            found.append(split)
    return found
