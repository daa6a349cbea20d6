"""Text files that users wrote: class maps, class names beside tars, label files; in any encoding, read or refused."""

from __future__ import annotations

import json
import tarfile
import unicodedata
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sources import png, write_class_folders

from nvg.errors import UserError
from pipelines.sources import ImageSource, SourceConfig, open_source
from pipelines.sources.class_names import decode_text, text_lines, whole_number
from pipelines.sources.opening import describe

ROWS = [(f"val_{number}", f"n0{1 + number % 2}") for number in range(4)]


def opened(root: Path, **changes) -> ImageSource:
    return open_source(SourceConfig(**{"kind": "folder", "path": str(root), "split": "all", **changes}))


def tars(root: Path, labels: list[bytes], ending: str = "cls") -> ImageSource:
    root.mkdir(exist_ok=True)
    with tarfile.open(root / "a.tar", "w") as archive:
        for number, label in enumerate(labels):
            for name, data in ((f"{number}.png", png(number)), (f"{number}.{ending}", label)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, BytesIO(data))
    return opened(root, kind="webdataset")


@pytest.fixture
def folders(tmp_path):
    return write_class_folders(tmp_path, {"cat": 1, "great dane": 1})


@pytest.fixture
def imagenet(tmp_path):
    write_class_folders(tmp_path / "train", {"n01": 1, "n02": 1})
    write_class_folders(tmp_path, {"val": 4})
    for number in range(4):
        (tmp_path / f"val/{number:03d}.png").rename(tmp_path / f"val/val_{number}.png")
    return tmp_path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("divider", ["\t", ";", ",", " "])
def test_class_maps_of_any_editor(folders, encoding, end, divider):
    text = f"great dane{divider}Dänische Dogge{end}cat{divider}Katze{end}{end}"
    (folders / "classes.txt").write_bytes(text.encode(encoding))
    assert opened(folders).class_names == ["Dänische Dogge", "Katze"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_maps_in_json(folders, encoding):
    (folders / "classes.json").write_text('{"great dane": "Dogge", "cat": "Kätzchen"}', encoding=encoding)
    assert opened(folders).class_names == ["Dogge", "Kätzchen"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            "cat\nK\xe4se\n".encode("latin-1"),
            r"classes\.txt, line 2: found byte 0xe4 after 'K', expected text in UTF-8",
        ),
        ("cat\ndog\n".encode("utf-16-le"), r"classes\.txt: found zero bytes, .*it may be in UTF-16"),
        ("cat\ndog\n".encode("utf-16")[:-1], r"classes\.txt, line 2: found byte 0x0a after 'dog'"),
    ],
)
def test_other_encodings_are_refused_with_their_line(folders, data, says):
    (folders / "classes.txt").write_bytes(data)
    with pytest.raises(UserError, match=says):
        opened(folders)


def test_a_map_finds_folders_whose_accents_are_composed_in_another_way(tmp_path):
    apart, together = (unicodedata.normalize(form, "café") for form in ("NFD", "NFC"))
    root = write_class_folders(tmp_path, {apart: 1, "dog": 1})
    for name, text in (
        ("classes.txt", f"{together} Kaffee\ndog\n"),
        ("classes.json", json.dumps({together: "Kaffee", "dog": "dog"})),
    ):
        (root / name).write_text(text, encoding="utf-8")
        source = opened(root)
        assert source.class_names == ["Kaffee", "dog"]
        assert source.keys[0].startswith(apart)
        (root / name).unlink()


@pytest.mark.parametrize(
    ("name", "encoding", "divider"),
    [
        ("LOC_val_solution.csv", "utf-8-sig", ","),
        ("LOC_val_solution.csv", "utf-8-sig", ";"),
        ("LOC_val_solution.csv", "utf-16", "\t"),
        ("val.txt", "utf-8-sig", " "),
        ("val.txt", "utf-8", ";"),
        ("val.txt", "utf-16", ", "),
    ],
)
def test_label_files_of_any_spreadsheet(imagenet, name, encoding, divider):
    lines = [f"ImageId{divider}PredictionString", *(f"{image}{divider}{label} 1 2 3 4" for image, label in ROWS)]
    (imagenet / name).write_text("\r\n".join(lines) + "\r\n", encoding=encoding)
    (imagenet / "val/Thumbs.db").write_bytes(b"x")
    source = opened(imagenet, kind="imagenet", split="test")
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert "1 left by other programs (val/Thumbs.db)" in describe(source)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("val.txt", b"val_0.png 1_0\n", r"val\.txt, line 1: found class '1_0'"),
        ("val.txt", "val_0.png \u0661\n".encode(), r"val\.txt, line 1: found class"),
        ("val.txt", b"val_0.png n01\nval_1.png \xe4\n", r"val\.txt, line 2: found byte 0xe4 after 'val_1\.png '"),
        (
            "LOC_val_solution.csv",
            b'"val_0,n01\nval_1,n02\n',
            r"cannot be read as lines of names and classes: .* lone quote",
        ),
    ],
)
def test_label_files_that_are_wrong_are_named(imagenet, name, data, says):
    (imagenet / name).write_bytes(data)
    with pytest.raises(UserError, match=says):
        opened(imagenet, kind="imagenet", split="test")


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"cat\ndog\nmouse\n\n\n", ["cat", "dog", "mouse"]),
        (b"\xef\xbb\xbfcat\r\ndog\r\nmouse", ["cat", "dog", "mouse"]),
        ("crane\ndog\ncrane\n".encode("utf-16"), ["crane (0)", "dog", "crane (2)"]),
        (("x" * 252 + "\na/b\n$c$").encode(), ["x" * 252, "a/b", "$c$"]),
    ],
)
def test_class_names_beside_tars(tmp_path, data, names):
    (tmp_path / "classes.txt").write_bytes(data)
    assert tars(tmp_path, [b"0", b"1", b"2"]).class_names == names


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"cat\n\nmouse\n", r"classes\.txt, line 2: found the class name ''"),
        (b"K\xe4se\ndog\n", r"classes\.txt, line 1: found byte 0xe4"),
        (b"cat\n\n", r"classes\.txt: found 1 class names, expected at least 2"),
    ],
)
def test_class_names_beside_tars_that_are_wrong_are_named(tmp_path, data, says):
    (tmp_path / "classes.txt").write_bytes(data)
    with pytest.raises(UserError, match=says):
        tars(tmp_path, [b"0", b"1"])


@pytest.mark.parametrize(
    ("label", "ending"),
    [
        (b"\xef\xbb\xbf1\r\n", "cls"),
        (b" 01 ", "cls"),
        (b"\xef\xbb\xbf1", "json"),
        ('{"label": 1}'.encode("utf-16"), "json"),
    ],
)
def test_labels_of_tars_in_any_encoding(tmp_path, label, ending):
    assert tars(tmp_path, [label], ending).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("label", "ending", "says"),
    [
        (b'{"caption": "a cat", "url": "x"}', "json", "found ['caption', 'url'] in .json, expected a key"),
        (b'{"label": null}', "json", "no label: found None, expected an integer"),
        (b'{"label": "1_0"}', "json", "no label: found '1_0', expected an integer"),
        (b"1_0", "cls", "no label: found '1_0', expected an integer"),
        ("\uff11".encode(), "cls", "no label: found '\uff11', expected an integer"),
        (b"\xe4", "cls", "0.cls, line 1: found byte 0xe4"),
    ],
)
def test_labels_of_tars_that_are_none_are_named(tmp_path, label, ending, says):
    with pytest.raises(UserError, match="found 1 bad of 1 inputs") as caught:
        tars(tmp_path, [label], ending)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([b"1", b"2", b"3"], "3 images of 4 classes; 1 of the classes without an image here ('0')"),
        (
            [b"3", b"60000"],
            "2 images of 60,001 classes; 59,999 of the classes without an image here ('0', '1', '2', …)",
        ),
    ],
)
def test_labels_with_gaps_are_told(tmp_path, labels, says):
    assert says in describe(tars(tmp_path, labels))


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=40))
def test_any_bytes_are_text_or_refused(data):
    try:
        text = decode_text(data, "file")
    except UserError as error:
        assert str(error).startswith("file")  # noqa: PT017
    else:
        assert "\0" not in text
        assert "\r" not in "".join(text_lines(text))


@given(st.text(max_size=30))
def test_only_digits_are_numbers(text):
    number = whole_number(text)
    assert number is None or (text.isascii() and number == int(text) and "_" not in text and text == text.strip())
