"""Sources behind a URL give what the same files give on this machine."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import fsspec
import numpy as np
import pytest
from image_sources import write_class_folders, write_shards

from eval.locations import location_of, walk
from nvg.errors import UserError
from pipelines.sources import ImageSource, SourceConfig, open_source


@pytest.fixture(params=["file", "memory"])
def url_of(request, tmp_path):
    """From a local folder to the URL of the same files."""
    system = fsspec.filesystem(request.param)

    def publish(folder: Path) -> str:
        if request.param == "file":
            return f"file://{folder}"
        for path in filter(Path.is_file, folder.rglob("*")):
            system.pipe_file(f"/{tmp_path.name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"memory://{tmp_path.name}"

    yield publish
    if request.param == "memory":
        system.store.clear()


def opened(path: Path | str, **changes) -> ImageSource:
    return open_source(
        SourceConfig(**{"kind": "folder", "path": str(path), "split": "all", "image_channels": 3, **changes})
    )


def assert_same_images(found: ImageSource, expected: ImageSource) -> None:
    assert found.keys == expected.keys
    assert found.fingerprint == expected.fingerprint
    assert found.class_names == expected.class_names
    copy = pickle.loads(pickle.dumps(found))
    for index in range(len(expected)):
        assert np.array_equal(copy.read(index, 0), expected.read(index, 0))


def test_class_folders(tmp_path, url_of):
    write_class_folders(tmp_path, {"pear": 2, "fig": 3})
    (tmp_path / "fig" / "deeper").mkdir()
    (tmp_path / "fig" / "000.png").rename(tmp_path / "fig" / "deeper" / "x.png")
    (tmp_path / "pear" / ".hidden").write_bytes(b"x")
    (tmp_path / "classes.txt").write_text("pear Pyrus\nfig Ficus\n")
    assert_same_images(opened(url_of(tmp_path)), opened(tmp_path))


def test_tar_shards(tmp_path, url_of):
    write_shards(tmp_path)
    options = {"kind": "webdataset", "image_channels": 1}
    url = url_of(tmp_path)
    assert_same_images(opened(url, **options), opened(tmp_path, **options))
    assert opened(f"{url}/train-{{000..000}}.tar", **options).keys == opened(url, **options).keys[:5]


def test_truncated_tar_is_named_with_its_place(tmp_path, url_of):
    path = write_shards(tmp_path)[1]
    path.write_bytes(path.read_bytes()[:3000])
    url = url_of(tmp_path)
    shard = re.escape(f"{location_of(url)}/train-001.tar")
    with pytest.raises(UserError, match=rf"^{shard}: truncated: got 3000 bytes, expected at least \d+"):
        opened(url, kind="webdataset")


def test_a_file_url_is_the_path_it_names(tmp_path):
    assert location_of(f"file://{tmp_path}/") == str(tmp_path)
    assert location_of("memory://a/b/") == "memory://a/b"


def test_nothing_behind_a_url_is_named(tmp_path, url_of):
    (tmp_path / "note").write_text("x")
    url = url_of(tmp_path)
    nowhere = re.escape(f"{location_of(url)}/nowhere")
    with pytest.raises(UserError, match=rf"^{nowhere}: found nothing, expected a folder of class folders"):
        opened(f"{url}/nowhere")
    assert [(name, size) for name, size, _ in walk(url).files] == [("note", 1)]


def test_a_store_without_its_package_is_named():
    with pytest.raises(UserError, match=r"nowhere://x: cannot be opened: .*nowhere"):
        opened("nowhere://x")
