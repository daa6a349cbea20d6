"""No image crosses a split: an image's part follows from its name and the split's settings alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sources import write_class_folders, write_shards

from nvg.errors import UserError
from pipelines.configuration import load_config
from pipelines.precompute.config import PrecomputeConfig
from pipelines.sources import SourceConfig, open_source
from pipelines.sources.opening import describe
from pipelines.sources.source import PARTS, ListedSource, part_of, split_rule

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
FILES = st.dictionaries(NAMES, st.integers(0, 3), min_size=1, max_size=40)
SHARES = st.floats(0, 0.49)
quick = settings(max_examples=80, deadline=2000, derandomize=True)


class Names(ListedSource):
    """A source of names alone."""

    def __init__(self, labels: dict[str, int], **changes: Any) -> None:
        values = {"kind": "folder", "path": "nowhere", "split": "all", "max_bad_fraction": 1.0, **changes}
        self.config = SourceConfig(**values)
        self.class_names = ["a", "b", "c", "d"]
        try:
            self.choose(list(labels), list(labels.values()), [1] * len(labels), {})
        except UserError:  # nothing falls into this part
            self.keys = []

    def read_bytes(self, index: int) -> bytes:
        raise NotImplementedError

    def views_of(self, index: int, data: bytes, views: Sequence[int]) -> list[np.ndarray]:
        raise NotImplementedError

    def stamps(self) -> np.ndarray:
        raise NotImplementedError


def parts_of(labels: dict[str, int], **changes: Any) -> dict[str, str]:
    """Key to part, by opening all three."""
    found = [(key, part) for part in PARTS for key in Names(labels, split=part, **changes).keys]
    assert len(dict(found)) == len(found), "an image in two parts"
    return dict(found)


@quick
@given(files=FILES, added=FILES, split_seed=st.integers(0, 5), judge=SHARES, test=SHARES)
def test_other_images_move_none_and_the_parts_cover_all(files, added, split_seed, judge, test):
    options = {"split_seed": split_seed, "judge_fraction": judge, "test_fraction": test}
    before, after = parts_of(files, **options), parts_of({**files, **added}, **options)
    assert before.keys() == files.keys() == set(Names(files).keys)
    assert {key: after[key] for key in files} == before
    fewer = dict(list(files.items())[::2])
    assert parts_of(fewer, **options) == {key: before[key] for key in fewer}


@quick
@given(files=FILES, label=st.integers(0, 3), judge=SHARES, test=SHARES, seed=st.integers(0, 9))
def test_neither_class_nor_views_move_an_image(files, label, judge, test, seed):
    shares = {"judge_fraction": judge, "test_fraction": test}
    one_class = {key: label for key in files}  # noqa: C420 - its type is too wide
    views = {"seed": seed, "view_policy": "random_crop", "num_views": 3, "image_size": 32}
    assert parts_of(files, **shares) == parts_of(one_class, **shares) == parts_of(files, **shares, **views)


@quick
@given(files=FILES, judge=SHARES, more=SHARES, test=SHARES)
def test_another_share_moves_images_between_its_part_and_training_alone(files, judge, more, test):
    before = parts_of(files, judge_fraction=judge, test_fraction=test)
    for after in (
        parts_of(files, judge_fraction=more, test_fraction=test),
        parts_of(files, judge_fraction=judge, test_fraction=more),
    ):
        moves = {(before[key], after[key]) for key in files if before[key] != after[key]}
        assert not moves & {("judge", "test"), ("test", "judge")}


def test_shares_are_expectations_and_every_split_seed_divides_anew():
    keys = {f"class/{number:05d}.png": 0 for number in range(20_000)}
    first, second = parts_of(keys), parts_of(keys, split_seed=1)
    for parts in (first, second):
        counts = [list(parts.values()).count(part) / len(keys) for part in PARTS]
        np.testing.assert_allclose(counts, [0.65, 0.2, 0.15], atol=0.02)
    agree = sum(first[key] == second[key] for key in keys) / len(keys)
    assert agree == pytest.approx(0.65**2 + 0.2**2 + 0.15**2, abs=0.02)  # independent of each other


def test_the_rule_stays_what_it_is():
    """Another hash would put images of finished trainings into test: it needs another name in `split_rule`."""
    config = SourceConfig(kind="folder", path="nowhere")
    keys = [*(f"cat/{number:03d}.png" for number in range(12)), "caf\udce9/1.png", "猫/😀.png"]
    letters = "".join(part_of(key, config)[1] for key in keys)  # tRain, jUdge, tEst
    assert letters == "urruurruererur"
    assert split_rule(config) == {"split_rule": "blake2b of 0/key; judge 0.2, test 0.15"}


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_growing_data_sets_keep_their_parts(tmp_path, kind):
    def keys(split: str, **changes: Any) -> set[str]:
        values: dict[str, Any] = {"kind": kind, "path": str(tmp_path), "split": split, "split_seed": 3, **changes}
        return set(open_source(SourceConfig(**values)).keys)

    def write(count: int) -> None:
        if kind == "folder":
            write_class_folders(tmp_path / f"new{count}", {"a": count, "b": count})
            for name in ("a", "b"):
                (tmp_path / name).mkdir(exist_ok=True)
                for path in (tmp_path / f"new{count}" / name).iterdir():
                    path.replace(tmp_path / name / path.name)
                (tmp_path / f"new{count}" / name).rmdir()
            (tmp_path / f"new{count}").rmdir()
        else:
            write_shards(tmp_path, num_shards=count // 10, per_shard=20)

    write(20)
    before = {part: keys(part) for part in PARTS}
    write(40)
    after = {part: keys(part, seed=7) for part in PARTS}
    assert all(before[part] < after[part] for part in PARTS)


def said(caplog: pytest.LogCaptureFixture) -> Sequence[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_class_without_an_image_in_a_part_is_said(tmp_path, caplog):
    root = write_class_folders(tmp_path, {"lone": 1, "rare": 2, "common": 60})
    with caplog.at_level(logging.WARNING):
        for part in ("train", "judge", "test"):
            source = open_source(SourceConfig(kind="folder", path=str(root), split=part), tell=True)
            assert all(source.class_names[label] != "common" for labels in source.without.values() for label in labels)
    assert len(said(caplog)) == 3
    for text in said(caplog):
        assert "has no image of" in text
        assert "'lone'" in text
        assert "more images, or another source.split_seed, or source.split_by=folders" in text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        open_source(SourceConfig(kind="folder", path=str(root), split="all"), tell=True)
        open_source(SourceConfig(kind="folder", path=str(root), judge_fraction=0.0, test_fraction=0.0), tell=True)
    assert not any("has no image of" in text for text in said(caplog))


def write_parts(root, **parts: dict[str, int]):
    for part, counts in parts.items():
        write_class_folders(root / part, counts)
    return root


def by_folders(root, split: str = "train", **changes: Any):
    values: dict[str, Any] = {"kind": "folder", "path": str(root), "split": split, "split_by": "folders", **changes}
    return open_source(SourceConfig(**values))


def test_folders_of_ones_own_are_the_parts(tmp_path):
    root = write_parts(tmp_path, train={"a": 3, "b": 2}, judge={"a": 1, "b": 1}, test={"b": 4})
    (root / "classes.txt").write_text("b Bee\na Ant\n")
    found = {split: by_folders(root, split) for split in (*PARTS, "all")}
    assert {split: np.bincount(source.labels, minlength=2).tolist() for split, source in found.items()} == {
        "train": [2, 3], "judge": [1, 1], "test": [4, 0], "all": [7, 4],
    }  # fmt: skip
    assert all(key.startswith(f"{split}/") for split in PARTS for key in found[split].keys)
    assert found["test"].class_names == ["Bee", "Ant"]
    assert split_rule(found["test"].config) == {"split_rule": "folders"}
    assert "test has no image of 1 of the classes ('Ant'); put images of them into its folders" in describe(
        found["test"]
    )


@pytest.mark.parametrize(
    ("parts", "split", "message"),
    [
        ({"train": {"a": 1}, "val": {"a": 1}}, "train", r"found the folders train, val; expected train/ and"),
        ({"test": {"a": 1}}, "test", r"found the folders test; expected train/"),
        ({"train": {"a": 1}, "test": {"c": 1}}, "train", r"test: found class folders that train/ has not \(c\)"),
        ({"train": {"a": 1}}, "judge", r"split 'judge' of 1 inputs holds no image"),
    ],
)
def test_folders_that_are_no_parts_are_named(tmp_path, parts, split, message):
    with pytest.raises(UserError, match=message):
        by_folders(write_parts(tmp_path, **parts), split)


def test_keys_of_the_split_are_settings():
    job = load_config(
        PrecomputeConfig,
        None,
        ["tokenizer=t", "output=o", "source.kind=folder", "source.path=p", "source.split_seed=7"],
    )
    assert job.source.split_seed == 7
    with pytest.raises(UserError, match=r"source\.split_by is 'folders'; expected hash with source\.kind=digits"):
        SourceConfig(split_by="folders")
    with pytest.raises(UserError, match=r"source\.split_by is 'class'; expected one of hash, folders"):
        SourceConfig(split_by="class")  # pyright: ignore[reportArgumentType]
