"""Records of IDX and parquet files: the same bytes however they are made, and changed images are named."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from image_sources import png, write_idx, write_parquet

from nvg.errors import UserError
from nvg.records import read_manifest
from pipelines.precompute.job import precompute
from pipelines.sources import SourceConfig, open_source, parquet


def idx(root: Path) -> SourceConfig:
    write_idx(root, side=12)
    return SourceConfig(kind="idx", path=str(root), fit="pad", view_policy="shift", num_views=3)


def hub(root: Path) -> SourceConfig:
    for part, number in (("train", 45), ("test", 10)):
        data: list[bytes | None] = [png(row, size=16) for row in range(number)]
        data[2] = b"no image"
        write_parquet(root / f"{part}.parquet", data, [row % 3 for row in range(number)], names=["cat", "dog", "owl"])
    return SourceConfig(kind="parquet", path=str(root), max_bad_fraction=0.1)


@pytest.fixture(params=[idx, hub], ids=lambda kind: kind.__name__)
def job(request, case, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_KEPT_BYTES", 1000)  # so that row groups are read one after the other
    return case.job(tmp_path, source=request.param(tmp_path / "images"), images_per_unit=10, batch_size=8)


def test_the_same_bytes_whoever_makes_the_units_and_in_which_order(case, job, tmp_path):
    first = case.Prepared(job)
    first.run()
    other = case.Prepared(type(job)(**{**vars(job), "output": str(tmp_path / "other")}))
    for unit in reversed(range(len(other.plan.units))):
        other.source = pickle.loads(pickle.dumps(other.source))  # each unit on an actor of its own
        other.encode(unit)
    other.merge()
    assert case.file_hashes(other.folder.root) == case.file_hashes(first.folder.root)
    manifest = read_manifest(first.folder.root)
    assert manifest["num_images"] == len(first.source) - len(manifest["skipped"])
    assert [item["key"] for item in manifest["skipped"]] == [key for key in first.source.keys if key.endswith("#00002")]
    assert ("fit" in manifest) == (job.source.kind == "idx")
    assert precompute(job) == first.folder.root  # nothing to do


def test_a_changed_image_is_named(case, job):
    case.Prepared(job).run()
    root = Path(job.source.path)
    source = open_source(job.source)
    if job.source.kind == "idx":
        write_idx(root, side=12, packed=False)
        for path in root.glob("*.gz"):
            path.unlink()
        assert precompute(job)  # the same images, unpacked
        path = root / "train-images-idx3-ubyte"
        data = bytearray(path.read_bytes())
        data[16 + 144 * int(source.keys[3].split("/")[1])] ^= 1
        path.write_bytes(data)
    else:
        rows = [source.read_bytes(index) for index in range(len(source))]
        row = int(source.keys[3].split("#")[1])
        data = [png(number, size=16) for number in range(45)]
        data[2], data[row] = b"no image", png(999, size=16)
        assert rows[3] == png(row, size=16)
        write_parquet(root / "train.parquet", data, [number % 3 for number in range(45)], names=["cat", "dog", "owl"])
    with pytest.raises(UserError, match=rf"1 of {len(source)} images in .* have changed \({source.keys[3]}\)"):
        precompute(job)


@pytest.mark.cluster
def test_two_actors_write_what_one_writes(case, tmp_path, ray_session, monkeypatch):
    monkeypatch.setattr(parquet, "_KEPT_BYTES", 1000)
    source = hub(tmp_path / "images")
    reference = case.Prepared(case.job(tmp_path / "one", source=source, images_per_unit=10))
    assert reference.source.groups is not None
    assert len(np.unique(reference.source.groups)) == 7
    reference.run()
    folder = precompute(case.job(tmp_path / "two", source=source, images_per_unit=10, num_actors=2))
    assert case.file_hashes(folder) == case.file_hashes(reference.folder.root)
