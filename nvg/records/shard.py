"""Uncompressed MDS shards, read with NumPy alone.

A shard is: uint32 number of samples n; n + 1 uint32 byte offsets from the start of the file; a JSON header
with the columns; the samples. Columns are sorted by name, and one of fixed size is stored as its bare
little-endian values, so a shard of records is one packed structured array.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, Protocol, TypedDict

import numpy as np

from nvg.errors import UserError
from nvg.json_files import Count, read_json

INDEX_FILE = "index.json"
SHARD_HASH = "sha256"
MDS_COUNT_BYTES = 4


class _File(TypedDict):
    basename: str
    bytes: Count
    hashes: NotRequired[dict[str, str]]


class _Entry(TypedDict):
    samples: Count
    raw_data: _File
    format: str
    column_names: list[str]
    column_encodings: list[str]


class _Index(TypedDict):
    version: Literal[2]
    shards: list[_Entry]


class ShardLayout(Protocol):
    """Samples of fixed size."""

    @property
    def dtype(self) -> np.dtype:
        """Packed structured dtype of a sample, fields sorted by name."""
        ...

    @property
    def columns(self) -> dict[str, str]:
        """MDS columns, name to encoding."""
        ...


def read_index(folder: Path) -> list[dict[str, Any]]:
    """Read and check the index of an MDS folder.

    Args:
        folder: folder with index.json.

    Returns:
        Its shard entries, in order.

    Raises:
        UserError: the index is missing, damaged, or of another version.
    """
    path = folder / INDEX_FILE
    advice = "run `nvg precompute` to the end or change the folder"
    index: Any = read_json(path, _Index, "the index of a record data set, MDS of version 2", advice)
    for entry in index["shards"]:
        if Path(name := entry["raw_data"]["basename"]).name != name or "\0" in name:
            raise UserError(f"{path}: found the shard {name!r}, expected the name of a file beside it; {advice}")
        if len(entry["column_names"]) != len(entry["column_encodings"]):
            raise UserError(f"{path}: {name} has names and encodings of other numbers of columns; {advice}")
    return index["shards"]


def check_shard_size(folder: Path, entry: Mapping[str, Any]) -> Path:
    """Check that a shard is there and has the size its index entry states.

    Returns:
        Its path.

    Raises:
        UserError: it is missing, truncated or too long; names the shard and both sizes.
    """
    path = folder / entry["raw_data"]["basename"]
    expected = entry["raw_data"]["bytes"]
    if not path.is_file():
        raise UserError(f"{path}: found no such file, expected a shard of {expected} bytes listed in {INDEX_FILE}")
    found = path.stat().st_size
    if found != expected:
        raise UserError(
            f"{path}: found {found} bytes, expected {expected} by {INDEX_FILE}: the shard is "
            f"{'truncated' if found < expected else 'too long'}; copy it again or run `nvg precompute` again"
        )
    return path


def read_shard(
    folder: Path, entry: Mapping[str, Any], layout: ShardLayout, *, verify_hash: bool = False, mapped: bool = False
) -> np.ndarray:
    """Read one shard of samples of fixed size.

    Args:
        folder: folder of the shard.
        entry: its entry in index.json.
        layout: the samples it is expected to hold.
        verify_hash: compare the sha256 of its bytes as well; sizes are always compared.
        mapped: map the file into memory instead of reading it: its pages come when they are used.

    Returns:
        Structured array (n,) of `layout.dtype`, read-only.

    Raises:
        UserError: the shard is missing, damaged, compressed, or holds other columns.
    """
    path, data, offsets = _open_shard(folder, entry, layout.columns, verify_hash=verify_hash, mapped=mapped)
    if np.any(np.diff(offsets.astype(np.int64)) != layout.dtype.itemsize):
        raise _misfit(path, len(offsets) - 1)
    return np.frombuffer(data, layout.dtype, count=len(offsets) - 1, offset=int(offsets[0]))


def map_samples(
    folder: Path, entry: Mapping[str, Any], columns: Mapping[str, str], *, verify_hash: bool = False
) -> tuple[memoryview, np.ndarray]:
    """Map one shard of samples of any size.

    Args:
        folder: folder of the shard.
        entry: its entry in index.json.
        columns: MDS columns it is expected to hold.
        verify_hash: compare the sha256 of its bytes as well.

    Returns:
        Its bytes, and the n + 1 offsets of its samples in them.

    Raises:
        UserError: the shard is missing, damaged, compressed, or holds other columns.
    """
    _, data, offsets = _open_shard(folder, entry, columns, verify_hash=verify_hash, mapped=True)
    return memoryview(data), offsets


def _open_shard(
    folder: Path, entry: Mapping[str, Any], columns: Mapping[str, str], *, verify_hash: bool, mapped: bool
) -> tuple[Path, bytes | mmap.mmap, np.ndarray]:
    """Path, bytes and sample offsets of a shard whose size, columns and offset table fit its index."""
    path = check_shard_size(folder, entry)
    _check_columns(path, entry, columns)
    if mapped and path.stat().st_size:
        with path.open("rb") as file:
            data: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    else:
        data = path.read_bytes()
    if verify_hash:
        expected_hash = entry["raw_data"].get("hashes", {}).get(SHARD_HASH)
        if hashlib.sha256(data).hexdigest() != expected_hash:
            raise UserError(f"{path}: its bytes do not have the {SHARD_HASH} that {INDEX_FILE} states; copy it again")
    num_samples = entry["samples"]
    header_bytes = MDS_COUNT_BYTES + 4 * (num_samples + 1)
    if len(data) < header_bytes or int.from_bytes(data[:MDS_COUNT_BYTES], "little") != num_samples:
        raise _misfit(path, num_samples)
    offsets = np.frombuffer(data, "<u4", count=num_samples + 1, offset=MDS_COUNT_BYTES)
    if int(offsets[0]) < header_bytes or np.any(offsets[1:] < offsets[:-1]):
        raise _misfit(path, num_samples)
    if int(offsets[-1]) != len(data):
        raise UserError(f"{path}: found {len(data)} bytes, expected {int(offsets[-1])} by its own offset table")
    return path, data, offsets


def _misfit(path: Path, num_samples: int) -> UserError:
    return UserError(f"{path}: its offset table does not fit {num_samples} records; copy the shard again")


def _check_columns(path: Path, entry: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    if entry["format"] != "mds" or entry.get("compression") or entry.get("zip_data"):
        raise UserError(f"{path}: found a compressed or foreign shard, expected plain MDS")
    found = dict(zip(entry["column_names"], entry["column_encodings"], strict=True))
    if found != dict(columns):
        raise UserError(f"{path}: found columns {found}, expected {dict(columns)}")
