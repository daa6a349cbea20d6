"""A whole record data set in memory: what `streaming.StreamingDataset` gives, without its machinery.

All of ImageNet is 1.6 GB a view, so the records fit in memory; this reader needs NumPy alone and is also the
oracle that the streaming path is tested against.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvg.errors import UserError
from nvg.records.record import RecordLayout
from nvg.records.shard import INDEX_FILE, read_index, read_shard

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class RecordDataset:
    """Records of N image views, in the order of the shards.

    Attributes:
        folder: Where they were read from.
        manifest: The content of manifest.json.
        image: uint32 (N,), row of sources.txt.
        view: uint8 (N,).
        label: uint16 (N,).
        content_ids: uint16 (N, 2L - 1), stages in order.
        structure: uint8 or uint16 (N, L), the finest structure map.
    """

    folder: Path
    manifest: dict[str, Any]
    image: np.ndarray
    view: np.ndarray
    label: np.ndarray
    content_ids: np.ndarray
    structure: np.ndarray

    @classmethod
    def open(cls, folder: str | Path, *, verify_hashes: bool = False) -> RecordDataset:
        """Read a data set into memory.

        Args:
            folder: Folder written by `nvg precompute`.
            verify_hashes: Compare the shards' sha256 too; their sizes are always compared.

        Returns:
            The data set.

        Raises:
            UserError: A file is missing, truncated or damaged, or manifest and shards do not fit each other.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder / MANIFEST_FILE)
        shards = read_index(folder)
        layout = RecordLayout(int(manifest["num_positions"]))
        num_records = sum(int(entry["samples"]) for entry in shards)
        if num_records != manifest["num_records"]:
            raise UserError(
                f"{folder}: {INDEX_FILE} lists {num_records} records, {MANIFEST_FILE} states "
                f"{manifest['num_records']}; the two are not of the same run, run `nvg precompute` again"
            )
        arrays: dict[str, np.ndarray] = {}
        for name in layout.columns:
            field = layout.dtype[name]
            arrays[name] = np.empty((num_records, *field.shape), dtype=field.base)
        start = 0
        for entry in shards:
            records = read_shard(folder, entry, layout, verify_hash=verify_hashes)
            for name, array in arrays.items():
                array[start : start + len(records)] = records[name]
            start += len(records)
        _check_ranges(folder, arrays, manifest)
        return cls(folder=folder, manifest=manifest, **arrays)

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Gather records as the training objectives take them.

        Args:
            indices: B record numbers.

        Returns:
            int64 "label" (B,), "content_ids" (B, 2L - 1) and "structure" (B, L).
        """
        rows = np.asarray(indices, dtype=np.int64)
        fields = {"label": self.label, "content_ids": self.content_ids, "structure": self.structure}
        return {name: array[rows].astype(np.int64) for name, array in fields.items()}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: found no such file, expected the manifest of a record data set") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); run `nvg precompute` again") from error
    needed = ("num_positions", "num_records", "num_classes", "codebook_size")
    missing = [key for key in needed if key not in manifest]
    if missing:
        raise UserError(f"{path}: keys {', '.join(missing)} are missing; run `nvg precompute` again")
    return manifest


def _check_ranges(folder: Path, arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> None:
    """Compare the largest value of each column with what the manifest allows."""
    limits = {
        "content_ids": ("codebook_size", manifest["codebook_size"]),
        "label": ("num_classes", manifest["num_classes"]),
        "structure": ("num_positions", manifest["num_positions"]),
    }
    for column, (key, limit) in limits.items():
        largest = int(arrays[column].max(initial=0))
        if largest >= limit:
            raise UserError(
                f"{folder}: column {column} holds {largest}, but {MANIFEST_FILE} states {key} {limit}; "
                "shards and manifest are not of the same run"
            )
