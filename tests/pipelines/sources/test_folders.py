"""A listing sees everything or stops: links, loops, junk, odd names, and what is said of them."""

from __future__ import annotations

import json
import os
import stat
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sources import png, write_class_folders

from nvg.errors import UserError
from pipelines.sources import ImageSource, SourceConfig, key_line, load_images, open_source
from pipelines.sources.opening import describe

PNG = png(0)


def opened(root: Path | str, **changes) -> ImageSource:
    return open_source(SourceConfig(**{"kind": "folder", "path": str(root), "split": "all", **changes}))


def headings(source: ImageSource) -> dict[str, str]:
    return {item.key: item.heading for item in source.passed_over}


def put(path: Path | bytes, data: bytes = PNG) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def test_a_folder_that_is_met_again_by_a_link_is_passed_over(tmp_path):
    store = write_class_folders(tmp_path / "store", {"cat": 20, "dog": 20})
    root = tmp_path / "root"
    root.mkdir()
    for name in ("cat", "dog"):
        (root / name).symlink_to(store / name)
        (store / name / name).symlink_to(store / name)  # what `ln -s` does when it is typed twice
    source = opened(root)
    assert len(source) == 40
    assert headings(source) == {"cat/cat": "repeated", "dog/dog": "repeated"}
    assert "passed over: 2 repeated (cat/cat: the same folder as cat)" in describe(source)
    keys = [set(opened(root, split=split).keys) for split in ("train", "judge", "test")]
    assert sum(map(len, keys)) == len(set().union(*keys)) == 40


def test_a_link_never_takes_the_place_of_what_it_leads_to(tmp_path):
    root = write_class_folders(tmp_path, {"a": 3, "b": 2})
    plain = opened(root)
    (root / "a/000-link.png").symlink_to("002.png")
    (root / "a/00").symlink_to(root / "a/more")
    put(root / "a/more/x.png")
    os.link(root / "b/000.png", root / "b/zz.png")
    source = opened(root)
    assert source.keys == [*plain.keys[:3], "a/more/x.png", *plain.keys[3:]]
    assert headings(source) == dict.fromkeys(["a/000-link.png", "a/00", "b/zz.png"], "repeated")


@pytest.mark.parametrize("target", ["../a/000.png", "../a", ".."])
def test_an_image_in_two_classes_is_refused(tmp_path, target):
    root = write_class_folders(tmp_path, {"a": 1, "b": 1})
    (root / "b/x.png").symlink_to(target)
    with pytest.raises(
        UserError, match=r"found 1 image files in two class folders by links \(b/x\.png\S* is a/000\.png\)"
    ):
        opened(root)


def test_a_class_folder_under_two_names_is_refused(tmp_path):
    root = write_class_folders(tmp_path, {"cat": 3})
    (root / "kitty").symlink_to("cat")
    with pytest.raises(UserError, match="found 3 image files in two class folders"):
        opened(root)


def test_what_is_no_file_is_a_bad_input_with_its_reason(tmp_path):
    root = write_class_folders(tmp_path, {"a": 3})
    (root / "a/gone.png").symlink_to("/not/mounted/gone.png")
    (root / "a/self.png").symlink_to("self.png")
    os.mkfifo(root / "a/pipe.png")
    source = opened(root, max_bad_fraction=0.6)
    assert {item.key: item.heading for item in source.skipped} == {
        "a/gone.png": "dangling link", "a/self.png": "dangling link", "a/pipe.png": "no regular file"
    }  # fmt: skip
    assert source.num_found == 6
    with pytest.raises(UserError, match=r"found 3 bad of 6 inputs(?s:.*)gone\.png: dangling link: to '/not/mounted"):
        opened(root)


def test_a_class_whose_links_all_dangle_says_so(tmp_path):
    root = write_class_folders(tmp_path, {"a": 1})
    (root / "b").mkdir()
    (root / "b/x.png").symlink_to("/not/mounted/x.png")
    with pytest.raises(UserError, match=r"b: found 1 files and no image among them \(b/x\.png: dangling link"):
        opened(root)


def test_a_class_folder_that_leads_nowhere_is_refused(tmp_path):
    root = write_class_folders(tmp_path, {"a": 1, "c": 1})
    (root / "b").symlink_to("/not/mounted/b")
    with pytest.raises(UserError, match=r"b: found a dangling link: to '/not/mounted/b' .* would get other labels"):
        opened(root)


@pytest.mark.parametrize("locked", ["", "a", "a/deeper"])
def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch, locked):
    root = write_class_folders(tmp_path, {"a": 2, "b": 1})
    put(root / "a/deeper/x.png")
    scandir: Callable = os.scandir

    def refusing(path):
        if str(path) == str(root / locked):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=rf"{root / locked}: cannot be read: Permission denied; .* give the right"):
        opened(root)


def test_a_store_that_fails_on_a_folder_is_refused(monkeypatch):
    system = fsspec.filesystem("memory")
    for key in ("a/x.png", "a/deeper/y.png", "b/z.png"):
        system.pipe_file(f"/refused/{key}", PNG)
    assert len(opened("memory://refused")) == 3
    listed = system.ls

    def failing(path, detail=True):
        if path.endswith("deeper"):
            raise OSError("503 slow down")
        return listed(path, detail=detail)

    monkeypatch.setattr(system, "ls", failing)
    with pytest.raises(UserError, match=r"memory://refused/a/deeper: cannot be read: 503 slow down"):
        opened("memory://refused")


def test_junk_is_passed_over_here_and_in_stores(tmp_path):
    root = write_class_folders(tmp_path, {"cat": 2, "dog": 2})
    plain = opened(root)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._000.png", "@eaDir/000.png/SYNOPHOTO_THUMB_M.jpg"):
        put(root / "cat" / name)
    put(root / "__MACOSX/cat/._000.png")
    for path in filter(Path.is_file, root.rglob("*")):
        fsspec.filesystem("memory").pipe_file(f"/junk/{path.relative_to(root).as_posix()}", path.read_bytes())
    for source in (opened(root), opened("memory://junk")):
        assert (source.keys, source.fingerprint) == (plain.keys, plain.fingerprint)
        assert sorted(headings(source)) == [
            "__MACOSX", "cat/.DS_Store", "cat/._000.png", "cat/@eaDir", "cat/Thumbs.db", "cat/desktop.ini"
        ]  # fmt: skip
    assert "4 left by other programs (__MACOSX), 2 hidden (cat/.DS_Store)" in describe(source)


def test_what_lies_beside_the_class_folders_is_told(tmp_path, caplog):
    root = write_class_folders(tmp_path, {"cat": 6})
    for number in range(30):
        put(root / f"IMG_{number}.jpg")
    put(root / "readme")
    (root / "classes.txt").write_text("cat Katze\n")
    config = SourceConfig(kind="folder", path=str(root), split="all")
    for _ in range(2):
        open_source(config, tell=True)
    assert caplog.messages == [
        f"{root}: 6 images of 1 class; passed over: 30 image beside the class folders (IMG_0.jpg), 1 file beside the "
        "class folders (readme)"
    ]


def test_classes_without_an_image_in_the_split_are_told(tmp_path):
    root = write_class_folders(tmp_path, {"many": 30, "one": 1})
    assert "images of 2 classes; 1 of the classes without an image here ('one')" in describe(opened(root, split="test"))


def test_the_root_of_train_and_val_is_told(tmp_path):
    write_class_folders(tmp_path / "train", {"cat": 1})
    write_class_folders(tmp_path / "val", {"cat": 1})
    assert f"set source.path={tmp_path}/train, or source.kind=imagenet" in describe(opened(tmp_path))
    assert "note" not in describe(opened(tmp_path / "train"))


def test_a_folder_around_the_classes_is_told(tmp_path):
    root = write_class_folders(tmp_path / "pets" / "images", {"cat": 2, "dog": 1, "owl": 1, "rat": 1})
    told = describe(opened(root.parent))
    assert "the only class is images, whose images lie in 4 folders of their own (cat, dog, owl, …)" in told
    assert told.endswith(f"set source.path={root}")
    assert "note" not in describe(opened(root))
    (root / "cat" / "000.png").rename(root / "000.png")
    assert "note" not in describe(opened(root.parent))  # it has an image of its own and may well be the class


@pytest.mark.parametrize("before", ["", "class"])
def test_numbers_that_are_sorted_as_text_are_told(tmp_path, before):
    folders = [f"{before}{number}" for number in range(12)]
    root = write_class_folders(tmp_path, dict.fromkeys(folders, 1))
    assert f"label 2 is folder '{before}10', not '{before}2'" in describe(opened(root))
    (root / "classes.txt").write_text("\n".join(folders))  # what the note says
    source = opened(root)
    assert source.class_names == folders
    assert "note" not in describe(source)


def test_folders_that_look_alike_are_told(tmp_path):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    root = write_class_folders(tmp_path, dict.fromkeys(names, 1))
    assert r"class folders 'cafe\u0301', 'caf\xe9' differ in case, spaces or the form of their accents" in describe(
        opened(root)
    )


def test_a_validation_folder_that_is_the_training_folder_is_refused(tmp_path):
    write_class_folders(tmp_path / "train", {"cat": 1})
    (tmp_path / "val").symlink_to("train")
    with pytest.raises(UserError, match="val: is the same folder as train/"):
        opened(tmp_path, kind="imagenet", split="test")


def test_a_file_that_cannot_be_reached_is_named(tmp_path):
    source = opened(write_class_folders(tmp_path, {"a": 2}))
    (tmp_path / "a/001.png").unlink()
    with pytest.raises(UserError, match=r"a/001\.png in .*: cannot be read: No such file"):
        load_images(source)


@given(st.text(st.characters(exclude_categories=[])))
def test_a_line_gives_its_key_back(key):
    line = key_line(key)
    assert line == key or json.loads(line) == key
    assert len(line.splitlines()) <= 1
    assert (json.loads(line) if line.startswith('"') else line) == key
    line.encode()


NAMES = st.sampled_from(
    [b"a.png", b"b.PNG", b"c.jpg", b"d e.png", b"caf\xe9.png", "猫.png".encode(), b"new\nline.png", b"-rf.png",
     b"n.txt", b".hidden.png", b"Thumbs.db", b"x", b"y", b"@eaDir", b'"q".png']
)  # fmt: skip
PLACES = st.lists(st.sampled_from([b"x", b"y", b".git", b"k\xe4se"]), max_size=2).map(b"/".join)
TREES = st.lists(
    st.tuples(
        st.sampled_from([b"one", b"two"]),
        PLACES,
        NAMES,
        st.sampled_from(["good", "good", "good", "damaged", "link", "hard link", "dangling", "folder link"]),
        st.integers(0, 20),
    ),
    max_size=14,
)


def plant(root: bytes, tree) -> None:
    """Files and links; each link leads to an earlier file of its class, or to a folder of it."""
    for name in (b"one", b"two"):
        put(root + b"/" + name + b"/first.png", PNG)
    files = {name: [root + b"/" + name + b"/first.png"] for name in (b"one", b"two")}
    for label, place, name, what, number in tree:
        folder = os.path.join(root, label, place)
        path = os.path.join(folder, name)
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError:
            continue  # a file of that name is there
        if os.path.lexists(path):
            continue
        target = files[label][number % len(files[label])]
        if what == "link":
            os.symlink(target, path)
        elif what == "hard link":
            os.link(target, path)
        elif what == "dangling":
            os.symlink(b"/not/there", path)
        elif what == "folder link":
            os.symlink(os.path.dirname(target), path)
        else:
            put(path, PNG if what == "good" else PNG[:40])
            files[label].append(path)


def below(root: str, folder: str) -> set[str]:
    """Every name below a folder, links not followed."""
    found = set[str]()
    for place, folders, files in os.walk(os.path.join(root, folder)):
        found |= {os.path.relpath(os.path.join(place, name), root) for name in (*folders, *files)}
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(TREES)
def test_every_name_is_an_image_a_bad_input_or_passed_over_and_no_image_crosses_a_split(tree):
    with tempfile.TemporaryDirectory() as root:
        plant(os.fsencode(root), tree)
        source = opened(root, max_bad_fraction=1.0, image_size=8)
        loaded = load_images(source)
        read = {source.keys[index] for index in loaded.indices}
        skipped, passed_over = {item.key for item in loaded.skipped}, set(headings(source))
        assert len(read) + len(skipped) == len(loaded.indices) + len(loaded.skipped) == source.num_found
        assert not read & skipped
        assert not (read | skipped) & passed_over
        # every name is accounted for: itself, or with a folder that is passed over or was visited
        for name in below(root, "."):
            path = os.path.join(root, name)
            parts = [name.rsplit("/", count)[0] for count in range(name.count("/") + 1)]
            assert (
                name in read | skipped
                or passed_over.intersection(parts)
                or (os.path.isdir(path) and any(key.startswith(f"{name}/") for key in read | skipped | passed_over))
                or (os.path.isdir(path) and not os.listdir(path))
            ), name

        def real(key: str) -> tuple[int, int]:
            status = os.stat(os.path.join(root, key))
            return status.st_dev, status.st_ino

        assert len({real(key) for key in source.keys}) == len(source)
        repeated = [os.lstat(os.path.join(root, key)) for key, why in headings(source).items() if why == "repeated"]
        assert all(stat.S_ISLNK(status.st_mode) or status.st_nlink > 1 for status in repeated)
        splits = [keys_of(root, split) for split in ("train", "judge", "test")]
        assert sorted(key for keys in splits for key in keys) == sorted(source.keys)
        labels = dict(zip(source.keys, source.labels.tolist(), strict=True))
        assert labels == {key: ["one", "two"].index(key.split("/")[0]) for key in labels}


def keys_of(root: str, split: str) -> list[str]:
    try:
        return opened(root, max_bad_fraction=1.0, split=split).keys
    except UserError as error:
        assert "holds no image" in str(error)  # noqa: PT017
        return []
