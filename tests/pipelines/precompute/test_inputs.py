"""Records know the bytes they were made of: changed images are told or encoded again, touched and moved ones not."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sources import write_class_folders, write_shards
from PIL import Image
from rich.console import Console

from nvg.errors import UserError
from pipelines.precompute.inputs import (
    INPUTS_FILE,
    content_hash,
    describe_changed,
    find_changed,
    input_rows,
    read_inputs,
)
from pipelines.precompute.job import precompute
from pipelines.precompute.verify import verify_records
from pipelines.sources import SourceConfig, open_source

EDITS = ("touch", "write", "restore", "remove", "swap")


def write_bmp(path: Path, colour: int) -> None:
    """Every colour has the same number of bytes, and a time of its own."""
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (16, 16), colour).save(path, "bmp")
    os.utime(path, (colour, colour))


def source_config(root: Path | str, **changes: Any) -> SourceConfig:
    return SourceConfig(**{"kind": "folder", "path": str(root), "split": "all", **changes})


@pytest.fixture
def job(case, tmp_path):
    """A finished data set of twelve pictures in three units, and what was said by asking for it again."""
    root = tmp_path / "images"
    root.mkdir()
    for number in range(12):
        write_bmp(root / "ab"[number % 2] / f"{number:02d}.bmp", 20 * number)
    config = case.job(tmp_path, source=source_config(root), images_per_unit=4)
    case.Prepared(config).run()
    return config


def ask_again(config) -> str:
    console = Console(record=True, width=400)
    assert precompute(config, console=console) == Path(config.output)
    return console.export_text()


def noted(config) -> np.ndarray:
    return read_inputs(Path(config.output), 12)


def test_same_size_other_pixels_are_told(job):
    root, before = Path(job.source.path), noted(job)
    changed = sorted(root.rglob("*.bmp"))[3:5]
    for path in changed:
        write_bmp(path, 255)
    names = ", ".join(path.relative_to(root).as_posix() for path in changed)
    with pytest.raises(
        UserError, match=rf"2 of 12 images in .* have changed \({names}\) since these records were made"
    ):
        precompute(job)
    assert np.array_equal(noted(job), before)
    verify_records(job.output)


def test_a_repaired_and_a_vanishing_image_are_changes(case, tmp_path):
    root = write_class_folders(tmp_path / "images", {"a": 40})
    whole = (root / "a/007.png").read_bytes()
    (root / "a/007.png").write_bytes(b"damaged")
    config = case.job(tmp_path, source=source_config(root, max_bad_fraction=0.1))
    prepared = case.Prepared(config)
    prepared.run()
    (root / "a/007.png").write_bytes(whole)
    with pytest.raises(UserError, match=r"1 of 40 images .* \(a/007\.png\)"):
        precompute(config)
    rows = read_inputs(Path(config.output), 40)
    (root / "a/009.png").unlink()
    assert find_changed(rows, np.arange(40), prepared.source, prepared.source.stamps()) == [7, 9]


def test_touched_copied_and_moved_images_are_the_same(job, tmp_path):
    root = Path(job.source.path)
    for path in root.rglob("*.bmp"):
        os.utime(path, (1000, 1000))
    first = noted(job)
    assert "complete, nothing to do" in ask_again(job)
    assert (noted(job)["stamp"] != first["stamp"]).all()
    assert np.array_equal(noted(job)["content"], first["content"])
    copy = shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copy)
    assert "nothing to do" in ask_again(replace(job, source=source_config(copy)))
    store = fsspec.filesystem("memory")
    store.put(str(root), f"/{tmp_path.name}", recursive=True)
    in_store = replace(job, source=source_config(f"memory://{tmp_path.name}"))
    assert "nothing to do" in ask_again(in_store)
    after = noted(job)["stamp"]
    assert "nothing to do" in ask_again(in_store)  # nothing is read: the store's stamps are known now
    assert np.array_equal(noted(job)["stamp"], after)
    store.pipe_file(f"/{tmp_path.name}/a/00.bmp", (root / "b/01.bmp").read_bytes())
    with pytest.raises(UserError, match=r"1 of 12 images in memory://.*\(a/00\.bmp\)"):
        ask_again(in_store)


@settings(max_examples=40, deadline=2000, derandomize=True)
@given(edits=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(EDITS), st.integers(0, 2)), max_size=12))
def test_changed_are_those_whose_bytes_are_others_whatever_was_done_to_the_files(edits):
    """Files are touched, written again as they were, changed, changed back, removed, swapped with others."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "caf\udce9").mkdir()
        paths = [root / "caf\udce9" / f"{number}.png" for number in range(6)]
        first = [bytes([number]) * 9 for number in range(6)]
        for path, data in zip(paths, first, strict=True):
            path.write_bytes(data)
            os.utime(path, (1, 1))
        source = open_source(source_config(root))
        rows = input_rows(6)
        rows["stamp"] = source.stamps()
        for index in range(6):
            content = content_hash(source.read_bytes(index), int(source.labels[index]))
            rows["content"][index] = np.frombuffer(content, np.uint8)
        for clock, (number, edit, value) in enumerate(edits, start=2):
            path = paths[number]
            if edit == "remove":
                path.unlink(missing_ok=True)
            elif edit == "swap" and value != number and path.exists() and paths[value].exists():
                path.rename(root / "aside")
                paths[value].rename(path)
                (root / "aside").rename(paths[value])
            elif edit == "write":
                path.write_bytes(bytes([value]) * 9)
            elif edit == "restore":
                path.write_bytes(first[number])
            if edit != "swap" and path.exists() and value:
                os.utime(path, (clock if value == 1 else 1, 1))  # some tools set times back
        expected = [n for n in range(6) if not paths[n].exists() or paths[n].read_bytes() != first[n]]
        assert find_changed(rows, np.arange(6), source, source.stamps()) == expected
        assert "\\udce9" in describe_changed([0], source)


def test_nothing_is_read_while_nothing_was_written(job, monkeypatch):
    from pipelines.sources.folders import FolderSource

    monkeypatch.setattr(FolderSource, "read_bytes", lambda *_: pytest.fail("read"))
    assert "nothing to do" in ask_again(job)


def test_images_of_rewritten_tars_are_compared_by_their_bytes(case, tmp_path):
    root = tmp_path / "shards"
    root.mkdir()
    shards = write_shards(root, per_shard=6)
    config = case.job(tmp_path, source=source_config(root, kind="webdataset"), images_per_unit=5)
    case.Prepared(config).run()
    write_shards(root, per_shard=6)
    os.utime(shards[1], (5, 5))
    assert "nothing to do" in ask_again(config)
    data = bytearray(shards[1].read_bytes())
    place = data.index(b"IHDR", len(data) // 3)
    data[place + 30] ^= 1
    shards[1].write_bytes(data)
    with pytest.raises(UserError, match=r"1 of 12 images .*\(train-001\.tar/0000\d\)"):
        precompute(config)
    write_shards(root, per_shard=6, shift_labels=1)  # the same pictures
    with pytest.raises(UserError, match=r"12 of 12 images"):
        precompute(config)


def bytes_beside_stamps(case, folder: Path) -> dict[str, str]:
    return {name: found for name, found in case.file_hashes(folder).items() if not name.endswith(INPUTS_FILE)}


def test_an_unfinished_job_does_the_units_of_changed_images_again(case, job, tmp_path, monkeypatch):
    """On Ray in test_actors.py; here each missing unit is done in this process."""
    prepared = case.Prepared(job)
    prepared.folder.open_again()
    victim = prepared.plan.units[1][2]
    write_bmp(Path(job.source.path) / prepared.source.keys[victim], 255)
    done: list[int] = []

    def encode(_config, plan, parts, *_rest):
        for unit in range(len(plan.units)):
            if unit not in parts:
                parts[unit] = prepared.encode(unit)
                done.append(unit)
        return {}

    monkeypatch.setattr("pipelines.precompute.job._encode_missing", encode)
    said = ask_again(job)
    assert done == [1]
    assert f"unit 1 is encoded again: 1 of 12 images in {job.source.path} have changed" in said
    fresh = case.Prepared(replace(job, output=str(tmp_path / "fresh"))).run()
    expected = bytes_beside_stamps(case, fresh)
    assert bytes_beside_stamps(case, Path(job.output)) == expected
    # The same in a finished one, where it is asked for.
    write_bmp(Path(job.source.path) / prepared.source.keys[victim], 254)
    with pytest.raises(UserError, match="encode_changed=true"):
        precompute(job)
    assert "unit 1 is encoded again" in ask_again(replace(job, encode_changed=True))
    assert bytes_beside_stamps(case, Path(job.output)) != expected
    verify_records(job.output)
    shutil.rmtree(Path(job.output) / "parts")
    write_bmp(Path(job.source.path) / prepared.source.keys[victim], 255)
    prepared.folder.parts.mkdir()
    ask_again(replace(job, encode_changed=True))
    assert done == [1, 1, 0, 1, 2]
    assert bytes_beside_stamps(case, Path(job.output)) == expected


def test_records_of_an_earlier_version_stay_complete_and_say_what_they_do_not_know(case, tmp_path):
    """Their fingerprint has the sizes of the files in it, and no hashes lie beside them."""
    root = write_class_folders(tmp_path / "images", {"a": 5, "b": 5})
    config = case.job(tmp_path, source=source_config(root))
    source = open_source(config.source)
    source.fingerprint = source.sized_fingerprint
    folder = case.Prepared(config, source=source).run()
    edit_manifest(folder, lambda values: values.pop("source_content", None))
    (folder / INPUTS_FILE).unlink()
    said = ask_again(config)
    assert "complete, nothing to do" in said
    assert "of 10 of 10 images it was not noted which bytes they had" in said
    verify_records(str(folder))


def edit_manifest(folder: Path, change) -> None:
    for path in (folder / "manifest.json", folder / "parts" / "plan.json"):
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))


def test_records_of_the_former_split_are_refused_by_name(case, tmp_path):
    root = write_class_folders(tmp_path / "images", {"a": 30, "b": 30})
    config = case.job(tmp_path, source=source_config(root, split="train"))
    folder = case.Prepared(config).run()
    assert json.loads((folder / "manifest.json").read_text())["split_rule"].startswith("blake2b of 0/key; judge 0.2")
    with pytest.raises(UserError, match=r"split_rule: 'blake2b of 0/key;.* against 'blake2b of 1/key;"):
        precompute(replace(config, source=replace(config.source, split_seed=1)))
    edit_manifest(folder, lambda values: (values.pop("split_rule"), values.update(plan="of then")))
    with pytest.raises(UserError, match=r"divided as an earlier version did(.|\n)*choose another output"):
        precompute(config)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), r"inputs\.bin: found 0 bytes; expected 288, 24 for each image"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), r"inputs\.bin: found 289 bytes"),
        (lambda path: path.unlink(), "the manifest has the digest"),
        (lambda path: path.write_bytes(b"\x01" + path.read_bytes()[1:]), "the manifest has the digest"),
    ],
)
def test_damaged_hashes_are_named(job, damage, message):
    damage(Path(job.output) / INPUTS_FILE)
    with pytest.raises(UserError, match=message):
        verify_records(job.output)
