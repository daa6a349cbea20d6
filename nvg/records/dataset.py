"""A whole record data set: what `streaming.StreamingDataset` gives, without its machinery.

All of ImageNet is 1.6 GB a view, so the records fit in memory; where many views or many processes make that too much,
the shards are mapped and the processes of a node share their pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nvg.errors import UserError
from nvg.records.manifest import MANIFEST_FILE, read_manifest
from nvg.records.record import RecordLayout
from nvg.records.shard import INDEX_FILE, read_index, read_shard

_SMALL_COLUMNS = ("image", "view", "label")


@dataclass(frozen=True)
class RecordDataset:
    """Records of N image views, in the order of the shards.

    Attributes:
        folder: where they were read from.
        manifest: the content of manifest.json.
        image: uint32 (N,), row of sources.txt.
        view: uint8 (N,).
        label: uint16 (N,).
        shards: structured arrays of `RecordLayout.dtype`, bytes in memory or mapped.
    """

    folder: Path
    manifest: dict[str, Any]
    image: np.ndarray
    view: np.ndarray
    label: np.ndarray
    shards: list[np.ndarray]

    @classmethod
    def open(cls, folder: str | Path, *, verify_hashes: bool = False, mapped: bool = False) -> RecordDataset:
        """Open a data set; every record is looked at once.

        Args:
            folder: folder written by `nvg precompute`.
            verify_hashes: compare the shards' sha256 too; their sizes are always compared.
            mapped: map the shards instead of holding their bytes. The folder must then stay as it is.

        Returns:
            The data set.

        Raises:
            UserError: a file is missing, truncated or damaged, or manifest and shards do not fit each other.
        """
        folder = Path(folder)
        manifest, entries = read_description(folder)
        layout = RecordLayout(manifest["num_positions"])
        shards = [read_shard(folder, entry, layout, verify_hash=verify_hashes, mapped=mapped) for entry in entries]
        for shard in shards:
            check_ranges(folder, shard, manifest)
        return cls._of_shards(folder, manifest, shards)

    @classmethod
    def open_description(cls, folder: str | Path) -> RecordDataset:
        """Open what describes a data set whose shards lie elsewhere: it has a manifest and no records.

        Args:
            folder: folder with the manifest and the index.

        Raises:
            UserError: one of them is missing or damaged, or they do not fit each other.
        """
        folder = Path(folder)
        manifest, _ = read_description(folder)
        return cls._of_shards(folder, manifest, [])

    @classmethod
    def _of_shards(cls, folder: Path, manifest: dict[str, Any], shards: list[np.ndarray]) -> RecordDataset:
        empty = np.empty(0, RecordLayout(manifest["num_positions"]).dtype)
        columns = {name: np.concatenate([part[name] for part in (empty, *shards)]) for name in _SMALL_COLUMNS}
        return cls(folder=folder, manifest=manifest, shards=shards, **columns)

    @cached_property
    def _starts(self) -> np.ndarray:
        counts = np.array([len(shard) for shard in self.shards])
        return np.cumsum(counts) - counts

    @cached_property
    def _wide_columns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(shard["content_ids"], shard["structure"]) for shard in self.shards]

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Gather records as the training objectives take them.

        Args:
            indices: B record numbers.

        Returns:
            int64 "label" (B,), "content_ids" (B, 2L - 1) and "structure" (B, L).
        """
        rows_B = np.asarray(indices, dtype=np.int64)
        if rows_B.size and not 0 <= rows_B.min() <= rows_B.max() < len(self):
            raise IndexError(f"records {rows_B.min()} to {rows_B.max()} of {len(self)}")
        layout = RecordLayout(self.manifest["num_positions"])
        ids_BT = np.empty((len(rows_B), layout.num_tokens), dtype=np.int64)
        structure_BL = np.empty((len(rows_B), layout.num_positions), dtype=np.int64)
        shards_B = np.searchsorted(self._starts, rows_B, side="right") - 1
        places_B = rows_B - self._starts[shards_B]
        for row, (shard, place) in enumerate(zip(shards_B.tolist(), places_B.tolist(), strict=True)):
            ids_NT, structure_NL = self._wide_columns[shard]
            ids_BT[row] = ids_NT[place]
            structure_BL[row] = structure_NL[place]
        return {"label": self.label[rows_B].astype(np.int64), "content_ids": ids_BT, "structure": structure_BL}


def read_description(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Manifest and index entries, of which the records' numbers agree."""
    manifest, entries = read_manifest(folder / MANIFEST_FILE), read_index(folder)
    num_records = sum(entry["samples"] for entry in entries)
    if num_records != manifest["num_records"]:
        raise UserError(
            f"{folder}: {INDEX_FILE} lists {num_records} records, {MANIFEST_FILE} states "
            f"{manifest['num_records']}; the two are not of the same run, run `nvg precompute` again"
        )
    return manifest, entries


def check_ranges(folder: Path, shard: np.ndarray, manifest: dict[str, Any]) -> None:
    """Compare the largest value of each column with what the manifest allows."""
    limits = {
        "content_ids": ("codebook_size", manifest["codebook_size"]),
        "label": ("num_classes", manifest["num_classes"]),
        "structure": ("num_positions", manifest["num_positions"]),
    }
    for column, (key, limit) in limits.items():
        largest = int(shard[column].max(initial=0))
        if largest >= limit:
            raise UserError(
                f"{folder}: column {column} holds {largest}, but {MANIFEST_FILE} states {key} {limit}; "
                "shards and manifest are not of the same run"
            )
