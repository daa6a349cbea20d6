"""Image data sets in parquet files, as the Hugging Face hub stores them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sources import png, write_hub_set, write_parquet

from eval.decoding import decode_image
from nvg.errors import UserError
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.plan import make_plan
from pipelines.sources import BadImage, ImageSource, SourceConfig, load_images, open_source, parquet
from pipelines.sources.opening import describe

NAMES = ["cat", "dog", "owl"]


def opened(root: Path, split: str = "all", **changes: Any) -> ImageSource:
    values = {"kind": "parquet", "path": str(root), "split": split, "image_size": 20, **changes}
    return open_source(SourceConfig(**values))


def images(number: int, first: int = 0) -> list[bytes | None]:
    return [png(first + row) for row in range(number)]


def one_file(root: Path, number: int = 12, **options: Any) -> Path:
    values: dict[str, Any] = {"labels": [row % 3 for row in range(number)], "names": NAMES, **options}
    write_parquet(root / "pets.parquet", values.pop("images", images(number)), **values)
    return root


def test_rows_are_images_with_the_classes_of_the_metadata(tmp_path):
    source = opened(write_hub_set(tmp_path))
    assert source.class_names == NAMES
    files = ["test-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"]
    assert source.keys == [f"data/{file}.parquet#{row:05d}" for file in files for row in range(20)]
    for index, row in ((0, 40), (19, 59), (20, 0), (59, 39)):
        assert source.read_bytes(index) == png(row)
        assert source.labels[index] == row % 3
        assert np.array_equal(source.read(index, 0)[..., 0], np.asarray(decode_image(png(row), 1)))


def test_one_file_alone_is_a_data_set(tmp_path):
    root = write_hub_set(tmp_path)
    source = opened(root / "data/train-00000-of-00002.parquet")
    assert source.keys == [f"train-00000-of-00002.parquet#{row:05d}" for row in range(20)]
    assert len(source.stamps()) == 20
    parts = [
        opened(root / "data/train-00000-of-00002.parquet", part, split_seed=2) for part in ("train", "judge", "test")
    ]
    assert sum(map(len, parts)) == 20  # by hash: there are no files of other splits


@pytest.mark.parametrize("as_struct", [True, False])
@pytest.mark.parametrize("labels", ["integers", "texts", "categories", "bytes"])
def test_columns_are_found_by_their_types(tmp_path, as_struct, labels):
    numbers = [row % 3 for row in range(12)]
    values: Any = {
        "integers": pa.array(numbers, pa.uint8()),
        "texts": [NAMES[number] for number in numbers],
        "categories": pa.array([NAMES[number] for number in numbers]).dictionary_encode(),
        "bytes": pa.array(numbers, pa.int64()),
    }[labels]
    root = one_file(tmp_path, labels=values, names=(), as_struct=as_struct, image="img", label="kind", width=[0.5] * 12)
    source = opened(root)
    assert source.labels.tolist() == numbers
    assert source.class_names == (NAMES if labels in ("texts", "categories") else ["0", "1", "2"])
    assert source.read_bytes(7) == png(7)


def test_what_the_metadata_calls_image_and_label_goes_before_other_columns(tmp_path):
    root = one_file(
        tmp_path, id=list(range(12)), mask=pa.array([b"x"] * 12), caption=[f"picture {row}" for row in range(12)]
    )
    assert opened(root).labels.tolist() == [row % 3 for row in range(12)]
    assert opened(root, label_column="id").labels.tolist() == list(range(12))
    assert opened(root, label_column="id").class_names == [str(row) for row in range(12)]
    assert opened(root, image_column="mask").read_bytes(0) == b"x"


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"coarse": [0] * 12},
            {},
            r"source\.label_column is None; expected one column of integers, .*, found 2; the col",
        ),
        (
            {"labels": NAMES * 4, "id": [*range(12)]},  # a number of the row is no class where names are there too
            {},
            r"source\.label_column is None; expected one column .*, found 2; the columns .* label \(string\), id",
        ),
        (
            {"mask": pa.array([b"x"] * 12)},
            {},
            r"source\.image_column is None; expected one column of encoded images .*found 2",
        ),
        (
            {},
            {"label_column": "lable"},
            r"is 'lable'; expected one column of integers.*are image \(struct<.*>\), label \(int64\)",
        ),
        ({"tags": [[1]] * 12}, {"label_column": "tags"}, r"is 'tags'; expected .* not nested; .* tags \(list<"),
        ({"score": [0.5] * 12}, {"label_column": "score"}, r"is 'score'; expected one column of integers"),
        (
            {},
            {"image_column": "label"},
            r"source\.image_column is 'label'; expected one column of encoded images \(bytes\)",
        ),
        (
            {"text": [str(row) for row in range(12)]},
            {"label_column": "text"},
            r"class names, which repeat: found 12 in 12 rows",
        ),
    ],
)
def test_columns_that_are_several_or_do_not_fit_are_listed(tmp_path, columns, settings, message):
    with pytest.raises(UserError, match=message):
        opened(one_file(tmp_path, names=(), **columns), **settings)


def test_files_without_images_or_with_nested_labels_alone_are_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", [b"x"] * 4, [[0], [1]] * 2, label="objects")
    with pytest.raises(UserError, match=r"source\.label_column is None; .* not nested; .* objects \(list<"):
        opened(tmp_path)
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r"source\.image_column is None; .*the columns of .*a\.parquet are text \(string\), label"
    ):
        opened(tmp_path)


def test_rows_that_do_not_decode_are_bad_images_by_file_and_row(tmp_path):
    data = images(50)
    data[3], data[17], data[30] = b"no image", None, data[30][:-100]  # pyright: ignore[reportOptionalSubscript]
    source = opened(one_file(tmp_path, 50, images=data), max_bad_fraction=0.1)
    loaded = load_images(source)
    assert len(loaded.images) == 47
    assert {item.key: item.heading for item in loaded.skipped} == {
        "pets.parquet#00003": "not an image in a known format",
        "pets.parquet#00017": "no bytes",
        "pets.parquet#00030": "cannot be decoded",
    }
    with pytest.raises(BadImage, match=r"no bytes: the row is empty in image\.bytes, or names a file elsewhere"):
        source.read(17, 0)
    with pytest.raises(UserError, match=r"found 1 bad of 50 inputs(?s:.*)pets\.parquet#00003: not an image"):
        load_images(opened(tmp_path))


def test_rows_without_a_label_are_bad_inputs_by_name(tmp_path):
    labels = [0, 1, None, -1, 70_000, 2] + [0] * 44
    root = one_file(tmp_path, 50, labels=labels, names=())
    source = opened(root, max_bad_fraction=0.1)
    assert {item.key: item.reason for item in source.skipped} == {
        "pets.parquet#00002": "no label: found null, expected 0 to 65535",
        "pets.parquet#00003": "no label: found -1, expected 0 to 65535",
        "pets.parquet#00004": "no label: found 70000, expected 0 to 65535",
    }
    assert source.num_found == len(source) + 3 == 50
    with pytest.raises(UserError, match=r"found 3 bad of 50 inputs"):
        opened(root)


def write_splits(root: Path, **counts: int) -> Path:
    for name, number in counts.items():
        labels = [-1] * number if name == "unlabelled" else [row % 3 for row in range(number)]
        file = "test" if name == "unlabelled" else name
        write_parquet(root / f"{file}-00000-of-00001.parquet", images(number), labels, names=NAMES)
    return root


@pytest.mark.parametrize(
    ("files", "test", "judge", "note"),
    [
        ({"train": 60, "test": 9}, "test", "train", "test is held out, 0.2 of train, by hash, is the judge's"),
        ({"train": 60, "validation": 9}, "validation", "train", "validation is held out, 0.2 of train"),
        (
            {"train": 60, "validation": 9, "test": 12},
            "test",
            "validation",
            "test is held out, validation is the judge's",
        ),
        ({"train": 60, "validation": 9, "unlabelled": 12}, "validation", "train", "validation is held out, 0.2 of"),
        ({"train": 60}, "train", "train", ""),
        ({"test": 60}, "test", "test", ""),
        ({"whole": 60}, "whole", "whole", ""),
    ],
)
def test_files_that_are_called_by_splits_are_the_parts(tmp_path, files, test, judge, note):
    root = write_splits(tmp_path, **files)
    parts = {part: opened(root, part) for part in ("train", "judge", "test")}
    assert {key.split("-")[0] for key in parts["test"].keys} == {test}
    assert {key.split("-")[0] for key in parts["judge"].keys} == {judge}
    by_files = test != "train" and len(files) > 1
    assert len(parts["test"]) == files[test] if by_files else 2 < len(parts["test"]) < 20
    assert len(parts["train"]) == (
        60 if judge == "validation" else 60 - len(parts["judge"]) - (0 if by_files else len(parts["test"]))
    )
    found = describe(parts["train"])
    assert (f"note: the files are called by splits: {note}" in found) if note else ("note" not in found)
    assert ("file without labels" in found) == ("unlabelled" in files)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"), ("default/test/0000.parquet", "test"),
        ("val.parquet", "validation"), ("mnist_eval/part1.parquet", "test"), ("training/dev.parquet", "validation"),
        ("latest.parquet", ""), ("constrained/0.parquet", ""),
    ],
)  # fmt: skip
def test_a_split_is_a_word_of_a_name(name, split):
    assert parquet._split_in(name) == split


def test_a_file_of_no_split_among_those_of_splits_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"files called by splits \(test, train\) and more-00000-of-00001\.parquet, which is n"
    ):
        opened(write_splits(tmp_path, train=6, test=6, more=6))


def test_files_of_another_data_set_are_named(tmp_path):
    root = write_splits(tmp_path, train=6)
    write_parquet(root / "zebra.parquet", images(6), [0, 1, 2] * 2, names=["cat", "owl", "dog"])
    with pytest.raises(
        UserError, match=r"zebra\.parquet: found images in image\.bytes, .*; expected .*as in train-00000"
    ):
        opened(root)


def test_too_few_names_are_named(tmp_path):
    root = one_file(tmp_path, labels=[0, 1, 3] * 4)
    with pytest.raises(
        UserError, match=r"the column 'label': found 3 class names, expected at least 4: the files hold label 3"
    ):
        opened(root)
    assert opened(root, class_names=["a", "b", "c", "d"]).class_names == ["a", "b", "c", "d"]
    texts = one_file(tmp_path / "texts", labels=["a", "b"] * 6, names=())
    (texts / "classes.txt").write_text("one\ntwo\n")
    assert opened(texts).class_names == ["a", "b"]
    assert "1 no *.parquet file (classes.txt)" in describe(opened(texts))
    (root / "classes.txt").write_text("one\ntwo\nthree\nfour\n")
    assert opened(root / "pets.parquet").class_names == ["one", "two", "three", "four"]
    assert "classes.txt" not in describe(opened(root / "pets.parquet"))
    with pytest.raises(
        UserError, match=r"source\.class_names is \['a', 'b'\]; expected none: the column 'label' holds names"
    ):
        opened(texts, class_names=["a", "b"])


def test_texts_that_look_alike_are_told(tmp_path):
    texts = one_file(tmp_path, labels=["shirt", "Shirt ", "bag"] * 4, names=())
    source = opened(texts)
    assert source.class_names == ["Shirt ", "bag", "shirt"]
    assert "labels in the column 'label', 'Shirt ', 'shirt' differ in case, spaces or" in describe(source)


DAMAGED = [
    (lambda data: data[: len(data) // 2], r"cannot be read as parquet: .*magic bytes not found"),
    (lambda data: b"", r"cannot be read as parquet"),
    (lambda data: data[:-400] + bytes(392) + data[-8:], r"cannot be read as parquet"),
    (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", r"found a pointer of git-lfs"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGED)
def test_damaged_files_are_named(tmp_path, change, message):
    path = one_file(tmp_path) / "pets.parquet"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=rf"pets\.parquet: {message}"):
        opened(tmp_path)


def test_a_footer_that_miscounts_a_row_group_shifts_no_label(tmp_path):
    """Labels are read in one go, images by row group: one count that is wrong would pair them wrongly."""
    path = one_file(tmp_path, 30, rows_per_group=10) / "pets.parquet"
    whole, found = path.read_bytes(), 0
    for place in range(len(whole) - 1500, len(whole) - 8):
        if whole[place] != 20:  # ten rows, as the footer's varints have it
            continue
        path.write_bytes(whole[:place] + bytes([12]) + whole[place + 1 :])
        try:
            counts = [pq.read_metadata(path).row_group(number).num_rows for number in range(3)]
        except (OSError, pa.ArrowException):
            continue
        if sorted(counts) == [6, 10, 10]:
            found += 1
            with pytest.raises(UserError, match=r"pets\.parquet: .*cannot be read as parquet: .* labels for 30 rows"):
                opened(tmp_path)
    assert found


def test_labels_that_are_no_text_are_named(tmp_path):
    labels = pa.array([b"a", b"\xff", b"c"] * 4).cast(pa.string(), safe=False)
    with pytest.raises(UserError, match=r"pets\.parquet: .*cannot be read as parquet"):
        opened(one_file(tmp_path, labels=labels, names=()))


def test_damaged_rows_are_no_bad_images(tmp_path):
    path = one_file(tmp_path, 40, rows_per_group=10) / "pets.parquet"
    source = opened(tmp_path)
    data = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(2).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    data[start : start + group.total_compressed_size] = bytes(group.total_compressed_size)
    path.write_bytes(data)
    assert source.read_bytes(3) == png(3)
    with pytest.raises(OSError, match=r"pets\.parquet, row group 2: "):
        source.read(25, 0)
    assert source.read_bytes(35) == png(35)


def test_metadata_that_nobody_wrote_is_named(tmp_path):
    path = one_file(tmp_path) / "pets.parquet"
    names_no_list = json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": 5}}}}).encode()
    for metadata, ok in (
        (b"{", False),
        (b"[1]", False),
        (names_no_list, False),
        (json.dumps({"info": {}}).encode(), True),
    ):
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), path)
        if ok:
            assert opened(tmp_path).class_names == ["0", "1", "2"]
        else:
            with pytest.raises(UserError, match=r"its metadata 'huggingface' is not as the hub writes it"):
                opened(tmp_path)


def test_what_lies_beside_the_files_is_told(tmp_path):
    root = one_file(tmp_path)
    (root / "README.md").write_text("x")
    (root / ".gitattributes").write_text("x")
    write_parquet(root / "none.parquet", [], pa.array([], pa.int64()), names=NAMES)
    assert describe(opened(root)).endswith(
        "passed over: 1 no *.parquet file (README.md), 1 hidden (.gitattributes), "
        "1 parquet file without rows (none.parquet)"
    )
    for path in root.glob("*.parquet"):
        path.unlink()
    with pytest.raises(UserError, match=r"found 1 files and no \*\.parquet among them, expected parquet files"):
        opened(root)


def test_a_row_group_is_read_once_and_a_block_at_a_time(tmp_path, monkeypatch):
    """Whatever the row groups are, blocks of the last ones are kept, and the next one goes on where the last ended."""
    monkeypatch.setattr(parquet, "_BLOCK_ROWS", 4)
    starts: list[int] = []
    rows_from = parquet._rows_from
    monkeypatch.setattr(
        parquet, "_rows_from", lambda block, column: (starts.append(block.start), rows_from(block, column))[1]
    )
    source = opened(one_file(tmp_path, 46, rows_per_group=23))
    assert [source.read_bytes(row) for row in range(46)] == images(46)
    assert starts == [0, 0]  # two row groups
    again = pickle.loads(pickle.dumps(source))
    order = np.random.default_rng(0).permutation(46).tolist()
    assert [again.read_bytes(row) for row in order] == [png(row) for row in order]
    assert len(starts) <= 2 + 12  # a small data set is read once, whatever the order


def test_reading_back_and_forth_in_a_large_set_is_told_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(parquet, "_KEPT_BYTES", 1)
    source = opened(one_file(tmp_path, 40, rows_per_group=10))
    for row in [0, 15, 25, 35] * 6:
        assert source.read_bytes(row) == png(row)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "images are read in another order than they lie in" in messages[0]


def test_records_of_a_large_set_are_made_row_group_by_row_group(tmp_path, monkeypatch):
    root = one_file(tmp_path / "images", 60, rows_per_group=10)
    assert opened(root).groups is None
    monkeypatch.setattr(parquet, "_KEPT_BYTES", 1)
    source = opened(root)
    assert source.groups is not None
    assert source.groups.tolist() == [row // 10 for row in range(60)]
    job = PrecomputeConfig(source=source.config, tokenizer="t", output=str(tmp_path / "records"), images_per_unit=25)
    plan = make_plan(job, source, "0" * 64)
    order = np.concatenate(plan.units)
    assert sorted(order.tolist()) == list(range(60))
    assert all(np.array_equal(rows, rows[0] + np.arange(10)) for rows in order.reshape(6, 10))
    assert order[::10].tolist() != sorted(order[::10].tolist())
    assert not np.array_equal(
        np.concatenate(make_plan(PrecomputeConfig(**{**vars(job), "seed": 1}), source, "0" * 64).units), order
    )
    one_file(root, 60, rows_per_group=20)
    other = opened(root)
    assert other.fingerprint == source.fingerprint  # the same images, in other units
    assert make_plan(job, other, "0" * 64).fingerprint != plan.fingerprint


def test_one_row_group_of_many_rows_does_not_fill_the_memory(tmp_path, monkeypatch):
    """24 MB in one row group, of which a megabyte is read at a time."""
    monkeypatch.setattr(parquet, "_BLOCK_BYTES", 1 << 20)
    rng = np.random.default_rng(0)
    path, number = tmp_path / "large.parquet", 8000
    kind = pa.struct({"bytes": pa.binary()})
    schema = pa.schema({"image": kind, "label": pa.int64()})
    noise = [rng.bytes(3000) for _ in range(1000)]
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        table = pa.table({"image": pa.array([{"bytes": data} for data in noise], kind), "label": [0] * 1000}, schema)
        writer.write_table(pa.concat_tables([table] * (number // 1000)), row_group_size=number)
    assert pq.read_metadata(path).num_row_groups == 1
    before, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        source = opened(tmp_path)
        for row in (0, 1, 4000, 7999):
            assert source.read_bytes(row) == noise[row % 1000]
    finally:
        pa.set_memory_pool(before)
    assert 0 < counted.max_memory() < 6 << 20
