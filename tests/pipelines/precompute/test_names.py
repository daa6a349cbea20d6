"""Names of any letters and bytes: of files, class folders, and the folder that is written."""

from __future__ import annotations

import json
import os

import pytest
from image_sources import png, write_class_folders

from nvg.records import RecordDataset
from pipelines.precompute.job import precompute
from pipelines.sources import SourceConfig, load_images, open_source


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_files_and_folders_whose_names_are_not_utf_8(case, tmp_path, kind):
    root = os.fsencode(tmp_path / "data") + (b"/train" if kind == "imagenet" else b"")
    names = [b"a/%d.png" % number for number in range(8)]
    for number, name in enumerate([*names, b"a/caf\xe9.png", b"a/\x1b[31mred.png", b"k\xe4se/x.png"]):
        os.makedirs(os.path.dirname(root + b"/" + name), exist_ok=True)
        with open(root + b"/" + name, "wb") as file:
            file.write(png(number, 16))
    source = SourceConfig(kind=kind, path=str(tmp_path / "data"), split="train", view_policy="crop", num_views=2)
    opened = open_source(source)
    assert opened.class_names == ["a", r"k\udce4se"]
    assert len(load_images(opened, (0, 1)).images) == 2 * len(opened)
    prepared = case.Prepared(case.job(tmp_path, source=source), opened)
    folder = prepared.run()
    lines = (folder / "sources.txt").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) if line.startswith('"') else line for line in lines] == opened.keys
    assert all(line.isprintable() for line in lines)
    assert len(RecordDataset.open(folder)) == 2 * len(opened)
    if kind == "imagenet":
        assert {r'"train/a/caf\udce9.png"', r'"train/a/\u001b[31mred.png"'} < set(lines)
    case.Prepared(case.job(tmp_path, source=source)).merge()  # as the same command again


@pytest.mark.cluster
def test_output_with_letters_that_are_not_ascii(ray_session, case, tmp_path):
    images = write_class_folders(tmp_path / "Bilder 😀 #1", {"Käse": 6, "猫": 6}, size=(16, 16))
    (images / "猫" / ".DS_Store").write_bytes(b"x")
    source = SourceConfig(kind="folder", path=str(images), split="all")
    folder = precompute(case.job(tmp_path, source=source, output=str(tmp_path / "datensätze 猫 [x]")))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["num_images"], manifest["class_names"]) == (12, ["Käse", "猫"])
    assert manifest["passed_over"] == {"hidden": 1}
