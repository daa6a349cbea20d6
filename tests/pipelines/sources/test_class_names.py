"""Own data sets: folders are enough; a class map names and orders them, and must fit them."""

import json
from pathlib import Path

import pytest
from image_sources import write_class_folders

from nvg.errors import UserError
from pipelines.sources import SourceConfig, open_source

NAMES = {"n03": "tench", "n01": "goldfish", "n02": "great white shark"}


def opened(root: Path, **changes):
    return open_source(SourceConfig(kind="folder", path=str(root), split="all", **changes))


@pytest.fixture
def root(tmp_path):
    return write_class_folders(tmp_path / "images", {"n01": 2, "n02": 3, "n03": 4})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.json", json.dumps(NAMES)),
        ("classes.txt", "".join(f"{folder}\t{name}\n" for folder, name in NAMES.items())),
        ("classes.txt", "\n".join(f"{folder} {name}" for folder, name in NAMES.items())),
    ],
)
def test_a_map_names_and_orders_the_classes(root, tmp_path, name, text):
    plain = opened(root)
    assert plain.class_names == ["n01", "n02", "n03"]
    (tmp_path / name).write_text(text)
    given = opened(root, class_map=str(tmp_path / name))
    (root / name).write_text(text)
    for source in (given, opened(root)):  # given by its path, or found beside the folders
        assert source.class_names == list(NAMES.values())
        assert {(key.split("/")[0], label) for key, label in zip(source.keys, source.labels.tolist(), strict=True)} == {
            ("n03", 0), ("n01", 1), ("n02", 2)
        }  # fmt: skip
        assert source.fingerprint != plain.fingerprint  # other labels


def test_a_map_in_the_order_of_the_folders_changes_names_alone(root):
    plain = opened(root)
    (root / "classes.txt").write_text("n01\nn02 shark\nn03 tench\n")
    source = opened(root)
    assert source.class_names == ["n01", "shark", "tench"]
    assert source.fingerprint == plain.fingerprint
    assert source.labels.tolist() == plain.labels.tolist()


def test_equal_display_names_are_told_apart(root):
    (root / "classes.txt").write_text("n01 crane\nn02 crane\nn03 tench\n")
    assert opened(root).class_names == ["crane (n01)", "crane (n02)", "tench"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("classes.txt", "n01 a\nn02 b\n", r"found 1 class folders that it does not name \(n03\)"),
        ("classes.txt", "n01\nn02\nn03\nn04 d\n", r"found 1 classes without a folder in .* \(n04\)"),
        ("classes.txt", "n01\nn01\n", "found 'n01' twice"),
        ("classes.txt", "\n", "found no class, expected each class folder once"),
        ("classes.json", '{"n01": 3}', "expected an object of names"),
        ("classes.json", "[1]", "expected an object of names"),
        ("classes.json", '{"n01": "a", "n01": "b"}', "found 'n01' twice"),
        ("classes.json", "{", "the class map is not JSON"),
        ("classes.txt", "n01 cat\x1bdog\nn02\nn03\n", r"found the class name 'cat\\x1bdog'"),
    ],
)
def test_maps_that_do_not_fit_are_named(root, name, text, says):
    (root / name).write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        opened(root)
    assert str(root / name) in str(caught.value)


def test_absent_or_doubled_maps_are_named(root):
    with pytest.raises(UserError, match=r"nowhere\.json: the class map cannot be read"):
        opened(root, class_map="nowhere.json")
    for name in ("classes.json", "classes.txt"):
        (root / name).write_text(json.dumps(NAMES))
    with pytest.raises(UserError, match=r"expected one class map; set source\.class_map"):
        opened(root)


def test_a_set_without_classes_is_told_what_to_do(tmp_path):
    with pytest.raises(UserError, match="into a single folder in it; for parquet, tar and IDX files"):
        opened(tmp_path)
    assert opened(write_class_folders(tmp_path, {"everything": 2})).class_names == ["everything"]
