"""Uncompressed MDS shards, written with NumPy alone: byte for byte what `streaming.MDSWriter` makes of the samples.

`nvg.records.shard` describes a shard. Of the format's encodings these are here: unsigned integers, arrays of fixed
type and shape, and bytes, whose sizes stand before the sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nvg.records.record import MDS_OFFSET_BYTES
from nvg.records.shard import INDEX_FILE, MDS_COUNT_BYTES, SHARD_HASH

_SCALARS = ("uint8", "uint16", "uint32", "uint64")


class ShardWriter:
    """Writes samples in the order they come; `finish` writes the index, without which nothing can be read.

    Args:
        folder: of the shards; made where it is missing.
        columns: MDS columns, name to encoding: "uint32", "ndarray:uint8:16,4" or "bytes".
        shard_bytes: largest size of a shard, below 2^32 (its offsets have four bytes); only a single larger sample
            exceeds it.

    Raises:
        ValueError: an encoding is none of these, or the size cannot be.
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, columns: Mapping[str, str], *, shard_bytes: int) -> None:
        if not 0 < shard_bytes < 1 << 32:
            raise ValueError(f"shard_bytes is {shard_bytes}; expected 1 to 2^32 - 1")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._limit = folder, shard_bytes
        self._layouts = {name: _layout(columns[name]) for name in sorted(columns)}
        self._config = {
            "version": 2,
            "format": "mds",
            "compression": None,
            "hashes": [SHARD_HASH],
            "size_limit": shard_bytes,
            "column_names": list(self._layouts),
            "column_encodings": [columns[name] for name in self._layouts],
            "column_sizes": [layout and layout.itemsize for layout in self._layouts.values()],
        }
        self._header = json.dumps(self._config, sort_keys=True).encode()
        self._entries: list[dict[str, Any]] = []
        self._clear()

    def write(self, sample: Mapping[str, Any]) -> None:
        """Add a sample.

        Args:
            sample: column name to integer, array or bytes.

        Raises:
            ValueError: an array has another type or shape than its column.
            OSError: a full shard cannot be written.
        """
        sizes, values = b"", b""
        for name, layout in self._layouts.items():
            value = sample[name] if layout is None else _encoded(name, layout, sample[name])
            sizes += b"" if layout is not None else len(value).to_bytes(4, "little")
            values += value
        num_bytes = MDS_OFFSET_BYTES + len(sizes) + len(values)
        if self._num_bytes + num_bytes > self._limit:  # also before a first sample that is larger, as the library does
            self._flush()
        self._samples.append(sizes + values)
        self._num_bytes += num_bytes

    def finish(self) -> None:
        """Write the last shard and the index.

        Raises:
            OSError: one of them cannot be written.
        """
        if self._samples:
            self._flush()
        index = json.dumps({"version": 2, "shards": self._entries}, sort_keys=True)
        (self._folder / INDEX_FILE).write_text(index, encoding="utf-8")

    def _clear(self) -> None:
        self._samples: list[bytes] = []
        self._num_bytes = MDS_COUNT_BYTES + MDS_OFFSET_BYTES + len(self._header)

    def _flush(self) -> None:
        offsets = np.cumsum([0, *map(len, self._samples)]) + MDS_COUNT_BYTES + len(self._header)
        offsets = (offsets + MDS_OFFSET_BYTES * len(offsets)).astype("<u4")
        count = np.array(len(self._samples), "<u4")
        data = b"".join([count.tobytes(), offsets.tobytes(), self._header, *self._samples])
        name = f"shard.{len(self._entries):05d}.mds"
        (self._folder / name).write_bytes(data)
        file = {"basename": name, "bytes": len(data), "hashes": {SHARD_HASH: hashlib.sha256(data).hexdigest()}}
        self._entries.append({"samples": len(self._samples), "raw_data": file, "zip_data": None, **self._config})
        self._clear()


def _layout(encoding: str) -> np.dtype | None:
    """Type and shape of a column's values; None for bytes."""
    kind, *rest = encoding.split(":")
    if kind == "ndarray" and len(rest) == 2:
        return np.dtype((np.dtype(rest[0]).newbyteorder("<"), tuple(map(int, rest[1].split(",")))))
    if encoding in _SCALARS:
        return np.dtype(encoding).newbyteorder("<")
    if encoding == "bytes":
        return None
    raise ValueError(f"column encoding is {encoding!r}; expected {', '.join(_SCALARS)}, ndarray:TYPE:SHAPE or bytes")


def _encoded(name: str, layout: np.dtype, value: Any) -> bytes:
    if layout.shape and (value.dtype, value.shape) != (layout.base, layout.shape):
        raise ValueError(f"column {name} has {value.dtype} {value.shape}; expected {layout.base} {layout.shape}")
    return np.asarray(value, layout.base).tobytes()
