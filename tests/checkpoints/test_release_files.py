"""A Lightning checkpoint gives its tensors and nothing else: no class of it is looked up, no call of it is made."""

from __future__ import annotations

import argparse
import collections
import enum
import functools
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from released_checkpoints import save_lightning
from torch import nn

from nvg.checkpoints.release_files import read_release_file
from nvg.errors import UserError


class Reduces:
    """Loaded by pickle, it would run a shell command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


class SetsState:
    """Loaded by pickle, it would write a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __setstate__(self, state):
        Path(state["trace"]).touch()


class Nested:
    class Colour(enum.Enum):
        RED = 1


def foreign_objects() -> list[object]:
    """What Lightning files hold beside tensors: every way a pickle makes or fills an object."""
    mapping = collections.defaultdict(list)
    mapping["a"].append(3)
    return [
        argparse.Namespace(lr=1e-4),
        functools.partial(max, 3),
        collections.Counter("abca"),
        collections.deque([1, 2]),
        mapping,
        {1, 2},
        frozenset([3]),
        Nested.Colour.RED,
        Path("somewhere"),
        torch.device("cpu"),
        torch.float16,
        torch.Size([3]),
        complex(1, 2),
        b"bytes",
        nn.Linear(2, 2),
    ]


def test_tensors_come_as_torch_saved_them(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "float": base,
        "view": base[1:, ::2].t(),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "ids": torch.arange(5),
        "flag": torch.tensor([True, False]),
        "number": torch.tensor(3.0, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.randn(3, 2)),
    }
    found = read_release_file(save_lightning(tmp_path / "a.ckpt", tensors))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert type(found[name]) is torch.Tensor
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("wrapped", [torch.compile, nn.DataParallel])
def test_names_of_wrapped_networks_are_those_of_the_networks(tmp_path, wrapped):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    inside = nn.Sequential(nn.Linear(2, 2), wrapped(nn.Linear(2, 1)))
    expected = list(model.state_dict())
    for network in (wrapped(model), inside, wrapped(inside)):
        assert list(network.state_dict()) != expected
        assert list(read_release_file(save_lightning(tmp_path / "a.ckpt", network.state_dict()))) == expected
    with pytest.raises(UserError, match=r"a\.ckpt holds 4 tensors twice, once below one of .*_orig_mod"):
        read_release_file(save_lightning(tmp_path / "a.ckpt", {**model.state_dict(), **wrapped(model).state_dict()}))


def test_writing_into_what_was_read_leaves_the_file_alone(tmp_path):
    path = save_lightning(tmp_path / "a.ckpt", {"a": torch.zeros(3)})
    read_release_file(path)["a"].add_(1)
    assert torch.equal(read_release_file(path)["a"], torch.zeros(3))


@pytest.mark.parametrize("foreign", [Reduces, SetsState])
@pytest.mark.parametrize("protocol", [2, 4])
def test_foreign_classes_are_not_executed(tmp_path, foreign, protocol):
    trace = tmp_path / "trace"
    checkpoint = {"state_dict": {"a": torch.ones(2)}, "callbacks": {"x": [foreign(trace)]}}
    torch.save(checkpoint, tmp_path / "a.ckpt", pickle_protocol=protocol)
    assert torch.equal(read_release_file(tmp_path / "a.ckpt")["a"], torch.ones(2))
    assert not trace.exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)  # the trap works: an ordinary load springs it
    assert trace.exists()


def test_foreign_modules_are_not_imported(tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    (tmp_path / "foreign_module.py").write_text(f"open({str(trace)!r}, 'a').close()\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import foreign_module  # pyright: ignore[reportMissingImports]

    save_lightning(tmp_path / "a.ckpt", {"a": torch.ones(2)}, callbacks=foreign_module.Thing())
    trace.unlink()
    del sys.modules["foreign_module"]
    assert torch.equal(read_release_file(tmp_path / "a.ckpt")["a"], torch.ones(2))
    assert "foreign_module" not in sys.modules
    assert not trace.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("number", range(len(foreign_objects())))
def test_whatever_lies_beside_the_tensors_is_read_over(tmp_path, number, protocol):
    checkpoint = {"rest": [foreign_objects()[number], "after"], "state_dict": {"a": torch.ones(2)}}
    torch.save(checkpoint, tmp_path / "a.ckpt", pickle_protocol=protocol)
    assert torch.equal(read_release_file(tmp_path / "a.ckpt")["a"], torch.ones(2))


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    with pytest.raises(UserError, match=r"a\.ckpt is no file"):
        read_release_file(path)
    for data in (b"", b"a text\n" * 30, pickle.dumps({"state_dict": {}})):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"is no archive of torch\.save"):
            read_release_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("array.npy", b"12")
    with pytest.raises(UserError, match=r"a zip archive, but none of torch\.save"):
        read_release_file(path)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([torch.ones(2)], "holds no dictionary; expected a Lightning checkpoint"),
        ({"weights": 1, "epoch": 2}, r"holds a dictionary of \['epoch', 'weights'\]"),
        ({"state_dict": [1, 2]}, "expected a Lightning checkpoint"),
        ({"state_dict": {}}, "expected a Lightning checkpoint"),
        (
            {"state_dict": {f"n{i}": i for i in range(12)}},
            r"12 entries of 'state_dict' are no plain tensors \(n0, .*n9\)",
        ),
        ({"state_dict": {"a": argparse.Namespace()}}, r"1 entries of 'state_dict' are no plain tensors \(a\)"),
        (argparse.Namespace(state_dict=1), "holds no dictionary"),
    ],
    ids=range(7),
)
def test_a_pickle_that_is_no_state_dict_is_refused(tmp_path, saved, message):
    torch.save(saved, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=message):
        read_release_file(tmp_path / "a.ckpt")


def test_damaged_files_are_refused(tmp_path):
    path = save_lightning(tmp_path / "a.ckpt", {"a": torch.randn(3000)})
    whole = path.read_bytes()
    for length in (3, 100, 5000, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"is cut off or damaged|is no archive"):
            read_release_file(path)
    _rewrite(whole, path, "data/0", lambda data: data[:-4])
    with pytest.raises(UserError, match=r"a: its bytes are missing or of another length"):
        read_release_file(path)
    _rewrite(whole, path, "data.pkl", lambda data: data[:-9])
    with pytest.raises(UserError, match=r"its pickle is damaged"):
        read_release_file(path)
    _rewrite(whole, path, "byteorder", lambda data: b"big")
    with pytest.raises(UserError, match=r"big-endian"):
        read_release_file(path)


def test_a_shape_beyond_its_bytes_is_refused(tmp_path):
    path = save_lightning(tmp_path / "a.ckpt", {"a": torch.randn(77)})
    _rewrite(path.read_bytes(), path, "data.pkl", lambda data: data.replace(b"K\x4d\x85", b"K\x4e\x85"))
    with pytest.raises(UserError, match=r"a: shape \(78,\) does not fit its bytes"):
        read_release_file(path)


def _rewrite(whole: bytes, path: Path, member: str, change) -> None:
    """The archive with one member changed and everything else, checksums included, in order."""
    source = path.with_suffix(".whole")
    source.write_bytes(whole)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith(f"/{member}") else data)
