"""Rows F2, F6, F7 and F9 of the fault matrix: units given up, bad images, a tar that changes, a merge that is killed.

The others: F1, F2 in test_actors.py, F4, F8 in test_units.py, F10 in test_verify.py and tests/records; F1, F3 and F5
with real kills in benchmarks/precompute_kills.py.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nvg.errors import UserError
from nvg.records import RecordDataset
from pipelines.precompute import merge
from pipelines.precompute.merge import merge_parts
from pipelines.precompute.plan import is_complete
from pipelines.precompute.verify import verify_records
from pipelines.sources import SourceConfig


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def black_png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header states a size that no memory holds; its checksum is right."""
    data = bytearray(encoded(Image.new("L", (1, 1)), "png"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


GOOD = {
    "cmyk.jpg": encoded(picture(1).convert("CMYK"), "jpeg"),
    "png_named.jpeg": encoded(picture(2), "png"),
    "palette.png": encoded(picture(3).convert("P"), "png"),
    "grey.png": encoded(picture(4).convert("L"), "png"),
    "turned.jpg": encoded(picture(6), "jpeg", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
}
BAD = {
    "truncated.jpg": encoded(picture(5), "jpeg")[:-200],
    "empty.png": b"",
    "garbage.png": b"no image" * 99,
    "huge.png": black_png_claiming(30_000, 30_000),
}


def test_f6_convertible_images_are_kept_and_bad_ones_listed_with_reasons(case, tmp_path):
    root = tmp_path / "images" / "a"
    root.mkdir(parents=True)
    for name, data in {**GOOD, **BAD}.items():
        (root / name).write_bytes(data)
    source = SourceConfig(kind="folder", path=str(root.parent), split="all", max_bad_fraction=0.5)
    prepared = case.Prepared(case.job(tmp_path, source=source, images_per_unit=3, batch_size=4))
    folder = prepared.run()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_records"] == len(GOOD)
    assert (manifest["pixels"], manifest["changed"]) == ("shown", {"turned": 1})
    names = (folder / "sources.txt").read_text().splitlines()
    assert {names[image] for image in RecordDataset.open(folder).image} == {f"a/{name}" for name in GOOD}
    reasons = {item["key"]: item["reason"] for item in manifest["skipped"]}
    assert set(reasons) == {f"a/{name}" for name in BAD}
    assert reasons["a/empty.png"] == "empty file"
    assert "more than 178 megapixels, expected at most 64 (max_megapixels)" in reasons["a/huge.png"]
    assert all(reasons.values())


def write_tar(path: Path, count: int) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            for name, data in ((f"{number:03d}.png", encoded(picture(number), "png")), (f"{number:03d}.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def test_f7_a_tar_cut_after_it_was_listed_fails_its_unit_by_name(case, tmp_path):
    """Cut before it is listed, it is refused at once (test_tars.py)."""
    path = tmp_path / "train-000.tar"
    write_tar(path, 20)
    source = SourceConfig(kind="webdataset", path=str(tmp_path), split="all")
    prepared = case.Prepared(case.job(tmp_path, source=source, images_per_unit=20))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match=r"train-000\.tar: got \d+ bytes at \d+, expected \d+; it changed while in use"):
        prepared.encode(0)
    assert not prepared.folder.committed(prepared.plan)
    with pytest.raises(UserError, match=r"train-000\.tar: truncated: got"):
        case.Prepared(prepared.config)
    path.write_bytes(data)
    assert len(RecordDataset.open(prepared.run())) == 20


class Killed(BaseException):
    """Stands for SIGKILL: nothing that follows runs."""


@pytest.mark.parametrize("step", ["_link", "save_weights", "write_manifest", "write_atomically"])
def test_f9_a_merge_killed_anywhere_leaves_no_index_and_can_be_repeated(case, finished, tmp_path, monkeypatch, step):
    prepared = case.Prepared(case.job(tmp_path))
    shutil.copytree(finished.folder.parts, prepared.folder.parts, dirs_exist_ok=True)
    reference = case.file_hashes(finished.folder.root)
    calls = []

    def kill(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if step != "write_atomically" or len(calls) == 2:  # sources.txt is written first, index.json last
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(merge, step, kill)
        with pytest.raises(Killed):
            prepared.merge()
    assert not (prepared.folder.root / "index.json").exists()
    assert not is_complete(prepared.folder, prepared.plan)
    for _ in range(2):
        prepared.merge()
        assert case.file_hashes(prepared.folder.root) == reference
    assert is_complete(prepared.folder, prepared.plan)


def test_f2_units_given_up_are_named_and_done_later(case, finished, tmp_path):
    """That they are given up after three tries, and nothing is merged unless it is allowed, is in test_actors.py."""
    prepared = case.Prepared(case.job(tmp_path))
    shutil.copytree(finished.folder.parts, prepared.folder.parts, dirs_exist_ok=True)
    shutil.rmtree(prepared.folder.part(4))
    parts = prepared.folder.committed(prepared.plan)
    merge_parts(
        prepared.folder, prepared.plan, parts, source=prepared.source, tokenizer=prepared.tokenizer,
        given_up={4: "the actor died"},
    )  # fmt: skip
    manifest = json.loads((prepared.folder.root / "manifest.json").read_text())
    assert manifest["missing_units"] == {"4": "the actor died"}
    assert manifest["num_records"] == len(RecordDataset.open(prepared.folder.root)) == 594 - 100
    verify_records(str(prepared.folder.root))
    assert is_complete(prepared.folder, prepared.plan, allow_partial=True)
    assert not is_complete(prepared.folder, prepared.plan)
    prepared.encode(4)
    prepared.merge()
    assert case.file_hashes(prepared.folder.root) == case.file_hashes(finished.folder.root)
