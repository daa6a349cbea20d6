"""Images in files: what comes back, what is mapped, what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.image_files import FolderImages, NpzImages, open_images, read_npz_array, write_npz, write_png_folder
from nvg.errors import UserError


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (11, 12, 12, 3), dtype=np.uint8)


def test_a_written_file_is_what_numpy_writes(images: np.ndarray, tmp_path: Path) -> None:
    write_npz(tmp_path / "ours.npz", {"mu": np.arange(3.0)}, (11, iter([images[:4], images[4:10], images[10:]])))
    with np.load(tmp_path / "ours.npz") as found:
        assert found.files == ["mu", "arr_0"]
        assert np.array_equal(found["arr_0"], images)
        assert np.array_equal(found["mu"], np.arange(3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["ours.npz"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_are_read_by_row(images: np.ndarray, tmp_path: Path, save) -> None:
    path = str(tmp_path / "theirs.npz")
    save(path, images, labels=np.arange(11))
    reader = pickle.loads(pickle.dumps(open_images(path)))
    assert isinstance(reader, NpzImages)
    assert len(reader) == 11
    assert isinstance(reader.images, np.memmap) == (save is np.savez)
    found, readable = reader.read(np.array([7, 0, 7]))
    assert np.array_equal(found, images[[7, 0, 7]])
    assert readable.all()


def test_grey_images_are_written_as_rgb(tmp_path: Path) -> None:
    grey = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
    write_npz(tmp_path / "grey.npz", {}, (2, [grey]))
    assert np.array_equal(open_images(str(tmp_path / "grey.npz")).read(np.arange(2))[0], grey.repeat(3, axis=-1))


def test_a_folder_comes_back_in_order(images: np.ndarray, tmp_path: Path) -> None:
    write_png_folder(tmp_path / "samples", 11, [images[:4], images[4:]])
    reader = pickle.loads(pickle.dumps(open_images(str(tmp_path / "samples"))))
    assert isinstance(reader, FolderImages)
    assert len(reader) == 11
    assert np.array_equal(reader.read(np.arange(11))[0], images)
    assert reader.identity()["shape"] == [11, 12, 12, 3]
    assert reader.identity()["files"] == [".png"]


def test_what_cannot_be_read_is_named(images: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, images)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"images\.npz: cannot be read as an npz file .*cut off"):
        len(open_images(str(path)))
    np.savez(path, images.astype(np.float32) * np.nan)
    with pytest.raises(UserError, match=r"found float32 array of shape .* rounded to bytes"):
        len(open_images(str(path)))
    np.savez(path, samples=images)
    with pytest.raises(UserError, match="found the arrays samples, expected arr_0"):
        len(open_images(str(path)))
    np.savez(path, np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="arr_0 cannot be read"):
        read_npz_array(str(path), "arr_0")
    with pytest.raises(UserError, match="found nothing at"):
        open_images(str(tmp_path / "nowhere.npz"))


def test_odd_files_of_a_folder_are_named(images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("none")
    with pytest.raises(UserError, match=r"found no image in .*1 not an image by its name: notes\.txt"):
        open_images(str(tmp_path / "empty"))
    folder = tmp_path / "samples"
    write_png_folder(folder, 2, [images[:2]])
    Image.fromarray(images[0][:6]).save(folder / "small.png")
    with pytest.raises(UserError, match=r"small\.png of \(6, 12\) pixels, expected \(12, 12\)"):
        open_images(str(folder))
    (folder / "small.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with pytest.raises(UserError, match=r"small\.png, which cannot be read as an image"):
        open_images(str(folder))
    (folder / "small.png").write_bytes((folder / "000000.png").read_bytes()[:-60])
    with pytest.raises(UserError, match=r"small\.png, which cannot be read as an image \(cannot be decoded"):
        open_images(str(folder)).read(np.arange(3))


def test_a_folder_of_samples_holds_those_of_one_run(images: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    assert write_png_folder(folder, 11, [images]) == 0
    assert write_png_folder(folder, 5, [images[:5]]) == 11
    assert len(open_images(str(folder))) == 5
    (folder / "000003.png").unlink()  # stopped half-way: the same command goes on
    assert write_png_folder(folder, 5, [images[:5]]) == 4
    assert len(open_images(str(folder))) == 5


@pytest.mark.parametrize("name", ["000001.png", "mine.JPG", "below/deep/a.webp", "a.tiff"])
def test_images_of_another_origin_are_refused_before_any_is_written(
    name: str, images: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=f"samples_folder is .*, which holds {name}, .* change samples_folder, or empty"
    ):
        write_png_folder(tmp_path, 11, [images])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path(name).name]


@pytest.mark.parametrize(
    "listing", ["", "[]", '{"files": 3}', '{"files": ["../other.png"]}', '{"files": [[]]}', "\xff"]
)
def test_a_damaged_list_of_samples_lets_nothing_be_removed(listing: str, images: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    other = tmp_path / "other.png"
    other.touch()
    (folder / "samples.json").write_bytes(listing.encode("latin-1"))
    assert write_png_folder(folder, 2, [images[:2]]) == 0
    assert other.is_file()


def test_all_kinds_of_images_are_read_and_what_is_passed_over_is_named(images: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    (folder / "b").mkdir(parents=True)
    names = ["a.PNG", "b.tiff", "b/c.TIF", "b/d.gif", "b/e.avif", "f.Jpeg", "caf\udce9.png"]
    for name in names:
        Image.fromarray(images[0]).save(folder / name)
    (folder / "@eaDir" / "a.PNG").mkdir(parents=True)
    Image.fromarray(images[0]).save(folder / "@eaDir" / "a.PNG" / "SYNOPHOTO_THUMB_M.jpg")
    for name in ("log.txt", "meta.json", "b/more.json", ".DS_Store", ".thumb.png", "Thumbs.db"):
        (folder / name).write_text("no image")
    (folder / ".cache").mkdir()
    write_png_folder(folder / ".cache", 2, [images[:2]])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "b" / "loop").symlink_to(folder)
    (folder / "b" / "again.png").hardlink_to(folder / "b.tiff")
    (folder / "again").symlink_to(folder / "b")
    reader = pickle.loads(pickle.dumps(open_images(str(folder))))
    assert len(reader) == len(names)
    assert sorted(reader.remarks) == [
        "1 dangling link: gone.png",
        "2 left by other programs: @eaDir, Thumbs.db",
        "3 hidden: .DS_Store, .cache, .thumb.png",
        "3 not an image by its name: b/more.json, log.txt, meta.json",
        "3 repeated: b/again.png, again, b/loop",
    ]
    assert reader.read(np.arange(len(names)))[0].shape == (7, 12, 12, 3)


def test_a_folder_that_cannot_be_listed_is_named(images: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    write_png_folder(tmp_path, 4, [images[:4]])
    write_png_folder(tmp_path / "shut", 4, [images[:4]])
    scandir = os.scandir

    def guarded(path):  # the superuser may list everything
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(UserError, match=r"shut: cannot be read: Permission denied; expected a folder whose"):
        open_images(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("samples.npy", r"one array as np\.save writes it: write it with np\.savez\(path, arr_0=images\)"),
        ("samples.png", "a file of another kind"),
        ("samples.pt", "found the arrays .*, expected arr_0"),
        ("cut.npz", "it may be cut off, copy it again"),
        ("empty.npz", "a file of another kind"),
    ],
)
def test_files_of_other_kinds_are_called_what_they_are(images: np.ndarray, tmp_path: Path, name: str, advice) -> None:
    path = tmp_path / name
    np.save(tmp_path / "samples.npy", images)
    np.savez(tmp_path / "whole.npz", images)
    Image.fromarray(images[0]).save(tmp_path / "samples.png")
    torch.save(torch.from_numpy(images), tmp_path / "samples.pt")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:500])
    (tmp_path / "empty.npz").touch()
    with pytest.raises(UserError, match=advice):
        len(open_images(str(path)))
