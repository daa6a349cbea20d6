"""Parquet files with an image and a label in each row, as the Hugging Face hub stores image data sets.

The rows of a row group are compressed together: to read one is to read those before it. They are read in order, block
by block, and blocks are kept for a while. Whoever reads all images of a large data set should go row group by row
group (`ImageSource.groups`).
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.locations import (
    folder_of,
    is_file,
    is_folder,
    join,
    location_of,
    name_of,
    open_binary,
    size_of,
    stamps_of,
    walk,
)
from nvg.bounds import refuse
from nvg.errors import BadImage, UserError
from pipelines.sources.class_names import LABEL_NAMES_FILE, check_class_name, class_names_of_labels, notes_on_alike
from pipelines.sources.config import SourceConfig
from pipelines.sources.keys import hash_names
from pipelines.sources.source import ListedSource, SkippedInput, part_of
from pipelines.sources.views import views_of_file

logger = logging.getLogger(__name__)

_SUFFIX = ".parquet"
# Words in the name of a file, or else of its folders, and the split that they mean on the hub.
_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_LARGEST_LABEL = (1 << 16) - 1
_LABEL_ROWS = 1 << 16
_BUFFER_BYTES = 1 << 20
_BLOCK_BYTES, _BLOCK_ROWS = 16 << 20, 4096
_KEPT_BYTES = 256 << 20  # of image files, in each process; a smaller data set is read once, in whatever order
_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)


@dataclass(frozen=True)
class _Columns:
    """Where images and labels lie.

    Attributes:
        image: path of the bytes, such as "image.bytes".
        label: name of a column of integers, or of class names.
        class_names: those that the metadata gives the integers.
        is_text: whether labels are class names.
    """

    image: str
    label: str
    class_names: tuple[str, ...]
    is_text: bool

    def describe(self) -> str:
        """In words."""
        names = f", class names {', '.join(self.class_names[:5])}, …" if self.class_names else ""
        return f"images in {self.image}, labels in {self.label} ({'text' if self.is_text else 'integers'}{names})"


@dataclass(frozen=True)
class _File:
    """A file below the source: the label of each row (or None), and rows and bytes of images of each row group."""

    name: str
    location: str
    num_bytes: int
    columns: _Columns
    labels: list[Any]
    groups: list[tuple[int, int]]

    @property
    def keys(self) -> list[str]:
        """Of each row."""
        return [f"{self.name}#{row:05d}" for row in range(len(self.labels))]

    @property
    def useless(self) -> str:
        """Why there is nothing to learn from the file; empty where there is."""
        if not self.labels:
            return "parquet file without rows"
        if all(label is None or label == -1 for label in self.labels):
            return "parquet file without labels: each is -1 or null"
        return ""


@dataclass(frozen=True)
class _Block:
    """Rows that are read at once: a row group, or a piece of a large one, each but the last of `length` rows."""

    location: str
    group: int
    start: int
    num_rows: int
    length: int


class ParquetSource(ListedSource):
    """Rows of parquet files. Files that are called by splits are the parts, as far as there are such files.

    Raises:
        UserError: no files, a damaged one, no column of images or of labels or several, files that do not fit together,
            or too many rows without a label.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config, self._reader = config, None
        self.root, names, passed_over = _find_files(str(config.path))
        files = [_look_into(join(self.root, name), name, config) for name in names]
        for file in files:
            if file.columns != files[0].columns:
                raise UserError(
                    f"{file.location}: found {file.columns.describe()}; expected {files[0].columns.describe()}, as in "
                    f"{files[0].name}; give the files of one data set as the source's path"
                )
        self.passed_over = passed_over + [SkippedInput(file.name, file.useless) for file in files if file.useless]
        files = [file for file in files if not file.useless]
        if not files:
            raise UserError(f"{self.root}: found no labelled row in {len(names)} files, expected some; add labels")
        keys = [key for file in files for key in file.keys]
        labels, known, bad = _numbered(files, keys, config)
        parts, notes = _parts(files, config)
        sizes = [file.num_bytes for file in files for _ in file.labels]
        kept = self.choose(keys, labels, sizes, bad, parts=parts, with_labels=True)
        self.class_names, self.notes = self._names({label for label in labels if label >= 0}, known, files[0].columns)
        self.notes += notes
        self._column, self._blocks, places = files[0].columns.image, *_blocks_of(files)
        self._places = places[kept]
        if sum(num_bytes for file in files for _, num_bytes in file.groups) > _KEPT_BYTES:
            self.groups = self._places[:, 2].copy()

    def _names(self, labels: set[int], known: Sequence[str], columns: _Columns) -> tuple[list[str], list[str]]:
        """Names of the classes, and notes on them; a file that gives names is then no stray one."""
        where = f"the column {columns.label!r}"
        if columns.is_text:
            for name in known:
                check_class_name(name, where)
            return list(known), notes_on_alike(known, f"labels in {where},")
        self.passed_over = [item for item in self.passed_over if item.key != LABEL_NAMES_FILE]
        return class_names_of_labels(self.config, self.root, labels, "the files", known, where)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_reader": None}

    def read_bytes(self, index: int) -> bytes:
        """See `ImageSource.read_bytes`; empty where the row holds no bytes."""
        self._reader = reader = self._reader or _Reader(str(self.config.path), self._blocks, self._column)
        block, row = self._places[index, :2].tolist()
        return reader.block(block)[row]

    def views_of(self, index: int, data: bytes, views: Sequence[int]) -> list[np.ndarray]:
        """See `ImageSource.views_of`."""
        if not data:
            raise BadImage(f"no bytes: the row is empty in {self._column}, or names a file elsewhere")
        return views_of_file(data, config=self.config, key=self.keys[index], views=views)

    def stamps(self) -> np.ndarray:
        """See `ImageSource.stamps`; those of a file's images change together."""
        locations = list(dict.fromkeys(block.location for block in self._blocks))
        stamps = stamps_of(self.root, [location.removeprefix(f"{self.root}/") for location in locations])
        stamp_of = dict(zip(locations, stamps, strict=True))
        return hash_names(stamp_of[block.location] for block in self._blocks)[self._places[:, 0]]


def _find_files(path: str) -> tuple[str, list[str], list[SkippedInput]]:
    """A folder, the parquet files below it, and what else lies there."""
    root = location_of(path)
    if is_file(root):
        return folder_of(root), [name_of(root)], []
    seen = walk(root) if is_folder(root) else None
    names = [name for name, _, _ in seen.files if name.lower().endswith(_SUFFIX)] if seen else []
    if seen is None or not names:
        found = "nothing" if seen is None else f"{len(seen.files)} files and no *{_SUFFIX} among them"
        raise UserError(f"{root}: found {found}, expected parquet files or a folder of them; change the source's path")
    for name, reason in seen.broken.items():
        if name.lower().endswith(_SUFFIX):
            raise UserError(f"{join(root, name)}: {reason}; expected a parquet file; repair or remove it")
    others = {name: f"no *{_SUFFIX} file" for name, _, _ in seen.files if name not in names}
    return root, names, [SkippedInput(*item) for item in {**others, **seen.broken, **seen.passed_over}.items()]


def _look_into(location: str, name: str, config: SourceConfig) -> _File:
    """Columns, labels and row groups of a file; no image is read."""
    try:
        with open_binary(location) as handle:
            if handle.read(64).startswith(b"version https://git-lfs"):
                raise UserError(f"{location}: found a pointer of git-lfs, expected the file; run `git lfs pull`")
        with open_binary(location) as handle, pq.ParquetFile(handle, pre_buffer=False) as file:
            columns = _find_columns(file.schema_arrow, location, config)
            labels: list[Any] = []
            for batch in file.iter_batches(_LABEL_ROWS, columns=[columns.label], use_threads=False):
                labels += batch.column(0).to_pylist()
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
            if not len(labels) == sum(num_rows for num_rows, _ in sizes) == file.metadata.num_rows:
                raise pa.ArrowInvalid(f"found {len(labels)} labels for {file.metadata.num_rows} rows")
        return _File(name, location, size_of(location), columns, labels, sizes)
    except _UNREADABLE as error:
        found = " ".join(str(error).split())
        raise UserError(f"{location}: cannot be read as parquet: {found}; copy or write it again") from error


def _find_columns(schema: pa.Schema, location: str, config: SourceConfig) -> _Columns:
    """The columns of images and labels: as set, else by what the hub's metadata says of them, else by their types."""
    features = _features(schema, location)
    bytes_of = {field.name: path for field in schema if (path := _path_of_bytes(field))}
    kinds = {field.name: field.type for field in schema}
    kinds = {name: kind.value_type if pa.types.is_dictionary(kind) else kind for name, kind in kinds.items()}
    whole = [name for name, kind in kinds.items() if pa.types.is_integer(kind)]
    text = [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]

    def pick(key: str, given: str | None, fitting: Sequence[str], what: str, kind: str) -> str:
        named = [name for name in fitting if features.get(name, {}).get("_type") == kind]
        choices = named or fitting
        if given in fitting or (given is None and len(choices) == 1):
            return given or choices[0]
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        several = f", found {len(choices)}" if len(choices) > 1 else ""
        raise refuse(f"source.{key}", given, f"one column of {what}{several}; the columns of {location} are {columns}")

    image = pick("image_column", config.image_column, list(bytes_of), "encoded images (bytes)", "Image")
    label = pick(
        "label_column", config.label_column, [*whole, *text], "integers, or of class names, not nested", "ClassLabel"
    )
    names = features.get(label, {}).get("names") or []
    return _Columns(bytes_of[image], label, tuple(map(str, names)), is_text=label in text)


def _features(schema: pa.Schema, location: str) -> dict[str, dict[str, Any]]:
    """What the hub's metadata says of each column; nothing where there is none."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        features = {name: feature for name, feature in found.items() if isinstance(feature, dict)}
        if not all(isinstance(feature.get("names") or [], list) for feature in features.values()):
            raise ValueError("names of classes are no list")
        return features
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{location}: its metadata 'huggingface' is not as the hub writes it ({error}); write the file again, or "
            "without it"
        ) from error


def _path_of_bytes(field: pa.Field) -> str:
    """Where a column's encoded images lie, as struct {bytes, path} or as they are; empty where it has none."""
    inner, path = field.type, field.name
    if pa.types.is_struct(inner) and inner.get_field_index("bytes") >= 0:
        inner, path = inner.field("bytes").type, f"{path}.bytes"
    return path if pa.types.is_binary(inner) or pa.types.is_large_binary(inner) else ""


def _numbered(
    files: Sequence[_File], keys: Sequence[str], config: SourceConfig
) -> tuple[list[int], Sequence[str], dict[str, str]]:
    """Label of each row (-1 where there is none), names that the data gives, and why rows have none, by key.

    Class names as labels are sorted, as class folders are.
    """
    columns, values = files[0].columns, [label for file in files for label in file.labels]
    names: Sequence[str] = columns.class_names
    labels: list[int] = []
    bad: dict[str, str] = {}
    if columns.is_text:
        names = sorted({value for value in values if value})
        if 2 * len(names) > len(values):
            expected = f"a column of class names, which repeat: found {len(names)} in {len(values)} rows"
            raise refuse("source.label_column", columns.label, expected)
        if given := config.class_names or config.class_map:
            key = f"source.{'class_names' if config.class_names else 'class_map'}"
            raise refuse(key, given, f"none: the column {columns.label!r} holds names", "leave it out")
        number_of = {name: number for number, name in enumerate(names)}
        values = [number_of.get(value) for value in values]
    for key, value in zip(keys, values, strict=True):
        if value is None or not 0 <= value <= _LARGEST_LABEL:
            bad[key] = f"no label: found {'null' if value is None else value}, expected 0 to {_LARGEST_LABEL}"
            value = -1
        labels.append(value)
    return labels, names, bad


def _parts(files: Sequence[_File], config: SourceConfig) -> tuple[list[str], list[str]]:
    """The part of each row, and how that was decided where files did."""
    split_of = {file.name: _split_in(file.name) for file in files}
    found = set(split_of.values())
    if not {"train"} < found - {""}:
        return [part_of(key, config) for file in files for key in file.keys], []
    if "" in found:
        odd = next(name for name, split in split_of.items() if not split)
        raise UserError(
            f"{config.path}: found files called by splits ({', '.join(sorted(found - {''}))}) and {odd}, which is not; "
            "rename it, or move it away"
        )
    has_judge = {"validation", "test"} <= found
    part = {"test": "test", "validation": "judge" if has_judge else "test", "train": "train" if has_judge else ""}
    parts = [part[split_of[file.name]] or part_of(key, config, has_test=True) for file in files for key in file.keys]
    judge = "validation is the judge's" if has_judge else f"{config.judge_fraction:g} of train, by hash, is the judge's"
    held_out = "test" if "test" in found else "validation"
    return parts, [f"the files are called by splits: {held_out} is held out, {judge}; source.test_fraction is not used"]


def _split_in(name: str) -> str:
    """The split that a file is called by, or else the nearest of its folders; empty where there is none."""
    for part in reversed(name.lower().removesuffix(_SUFFIX).split("/")):
        if splits := [_SPLIT_OF[word] for word in re.split(r"[^a-z]+", part) if word in _SPLIT_OF]:
            return splits[0]
    return ""


def _blocks_of(files: Sequence[_File]) -> tuple[list[_Block], np.ndarray]:
    """All blocks, and int64 (N, 3): the block of each row, its place there, and the number of its row group."""
    blocks: list[_Block] = []
    places: list[np.ndarray] = []
    for file in files:
        for group, (num_rows, num_bytes) in enumerate(file.groups):
            length = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES * num_rows // max(num_bytes, 1)))
            row = np.arange(num_rows)
            places.append(np.stack([len(blocks) + row // length, row % length, np.full_like(row, len(places))], axis=1))
            starts = range(0, num_rows, length)
            blocks += [_Block(file.location, group, start, min(length, num_rows - start), length) for start in starts]
    return blocks, np.concatenate(places)


class _Reader:
    """Reads blocks, goes on where the last one ended, and keeps those read last. Safe for threads."""

    def __init__(self, path: str, blocks: Sequence[_Block], column: str) -> None:
        self._path, self._blocks, self._column = path, blocks, column
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, list[bytes]] = OrderedDict()
        self._kept_bytes = self._num_read = 0
        self._rows: Generator[bytes, None, None] | None = None
        self._next: _Block | None = None  # whose rows come next there

    def block(self, number: int) -> list[bytes]:
        """The image files of a block; an OSError where it cannot be read."""
        with self._lock:
            if number not in self._kept:
                self._keep(number, self._read(number))
            self._kept.move_to_end(number)
            return self._kept[number]

    def _read(self, number: int) -> list[bytes]:
        block, rows = self._blocks[number], self._rows
        if rows is None or self._next != block:
            rows = _rows_from(block, self._column)
        self._rows = None
        try:
            found = list(islice(rows, block.num_rows))
        except _UNREADABLE as error:
            raise OSError(f"{block.location}, row group {block.group}: {' '.join(str(error).split())}") from error
        if len(found) != block.num_rows:
            raise OSError(f"{block.location}, row group {block.group}: rows are missing; it changed while in use")
        self._next = self._blocks[number + 1] if number + 1 < len(self._blocks) else None
        if self._next is not None and (self._next.location, self._next.group) == (block.location, block.group):
            self._rows = rows
        self._num_read += 1
        if self._num_read == 3 * len(self._blocks):
            logger.warning(
                "%s: images are read in another order than they lie in, so that row groups are read again and again, "
                "which is slow; set loading.loader=memory, or store them as image files or tar shards",
                self._path,
            )
        return found

    def _keep(self, number: int, rows: list[bytes]) -> None:
        self._kept[number] = rows
        self._kept_bytes += sum(map(len, rows))
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= sum(map(len, self._kept.popitem(last=False)[1]))


def _rows_from(block: _Block, column: str) -> Generator[bytes, None, None]:
    """The image files of a row group from a block on; no more of it is in memory than a few blocks."""
    with (
        open_binary(block.location) as handle,
        pq.ParquetFile(handle, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file,
    ):
        skip = block.start
        for batch in file.iter_batches(block.length, row_groups=[block.group], columns=[column], use_threads=False):
            values = batch.column(0)[skip:]
            skip = max(0, skip - batch.num_rows)
            values = values.flatten()[0] if pa.types.is_struct(values.type) else values
            yield from (value or b"" for value in values.to_pylist())
