"""Records in a store: what describes them is copied, other records are refused."""

import json

import fsspec
import pytest
from made_records import manifest_of

from nvg.errors import UserError
from pipelines.batches.config import DataConfig
from pipelines.batches.records import DESCRIPTION, open_records

MANIFEST = manifest_of(3)
SHARD = {"raw_data": {"basename": "shard.00000.mds", "bytes": 9}, "format": "mds"}
INDEX = {"version": 2, "shards": [{"samples": 3, **SHARD, "column_names": [], "column_encodings": []}]}


@pytest.fixture
def remote():
    """Folder of the description of three records in fsspec's store in memory."""
    system = fsspec.filesystem("memory")
    contents = dict.fromkeys(DESCRIPTION, b"weights")
    contents |= {"manifest.json": json.dumps(MANIFEST).encode(), "index.json": json.dumps(INDEX).encode()}
    for name, content in contents.items():
        system.pipe_file(f"/records/{name}", content)
    yield "memory://records"
    system.rm("/records", recursive=True)


def config(remote, path):
    return DataConfig(path=str(path), remote=remote, loader="streaming", views_per_epoch="all")


def test_description_is_copied_and_has_no_records(remote, tmp_path):
    for _ in range(2):  # the copy is there the second time
        records = open_records(config(remote, tmp_path / "new" / "copied"))
        assert (len(records), records.manifest) == (0, MANIFEST)
    assert sorted(path.name for path in (tmp_path / "new" / "copied").iterdir()) == sorted(DESCRIPTION)


def test_folder_of_other_records_is_refused_and_stays(remote, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest.json is not that of data.remote memory://records; choose another"):
        open_records(config(remote, tmp_path))
    assert (tmp_path / "manifest.json").read_text() == "{}"


def test_absent_remote_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data.remote: memory://nothing/manifest.json cannot be read"):
        open_records(config("memory://nothing", tmp_path / "copied"))
    assert not (tmp_path / "copied").exists()


def test_remote_needs_the_streaming_loader(tmp_path):
    with pytest.raises(UserError, match=r"data.loader is 'memory'; expected streaming for data.remote 's3://a/b'; set"):
        DataConfig(path=str(tmp_path), remote="s3://a/b")


def test_streaming_is_for_remote_records_only(tmp_path):
    with pytest.raises(UserError, match=r"data.loader is 'streaming'; expected memory or mapped, .* use mapped"):
        DataConfig(path=str(tmp_path), loader="streaming", views_per_epoch="all")


def test_streaming_goes_over_all_views(tmp_path):
    with pytest.raises(UserError, match=r"data.views_per_epoch is 'one'; expected all, which data.loader=streaming"):
        DataConfig(path=str(tmp_path), loader="streaming", remote="s3://a/b")
