"""Fashion-MNIST from Debian's package: fetched by name, or found where it is installed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from nvg.errors import UserError
from tools.datasets.fashion_mnist import FILES, find_fashion_mnist


def header(file: Path, num_numbers: int) -> list[int]:
    """The numbers that an IDX file begins with."""
    with gzip.open(file) as opened:
        return [int.from_bytes(opened.read(4), "big") for _ in range(num_numbers)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_package_is_found_or_unpacked(tmp_path) -> None:
    folder = tmp_path / "sets" / "fashion-mnist"
    find_fashion_mnist(folder, installed=tmp_path / "not here")
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)
    assert list((tmp_path / "sets").iterdir()) == [folder]
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        assert header(folder / f"{part}-images-idx3-ubyte.gz", 4) == [2051, count, 28, 28]
        assert header(folder / f"{part}-labels-idx1-ubyte.gz", 2) == [2049, count]
    assert find_fashion_mnist(folder) == "there already"


def test_an_installed_package_is_linked_to(tmp_path) -> None:
    installed = tmp_path / "installed"
    installed.mkdir()
    for name in FILES:
        (installed / name).write_bytes(name.encode())
    find_fashion_mnist(tmp_path / "new" / "folder", installed=installed)
    assert all((tmp_path / "new" / "folder" / name).read_bytes() == name.encode() for name in FILES)


def test_a_folder_of_something_else_is_left_alone(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="expected a folder that is not there yet, or one with the four files"):
        find_fashion_mnist(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_where_nothing_can_be_had_all_ways_are_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get there
    with pytest.raises(UserError) as error:
        find_fashion_mnist(tmp_path / "folder", installed=tmp_path / "not here")
    for way in ("apt-get install dataset-fashion-mnist", "apt-get update, then this command again", *FILES):
        assert way in str(error.value)
    assert not (tmp_path / "folder").exists()
