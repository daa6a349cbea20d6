"""Record data sets of hundreds of millions of records: opened by their index, read where they are asked for.

`RecordDataset` looks at every record when it is opened and holds their small columns, seconds and gigabytes here. This
one takes of each shard its size, maps it when one of its records is asked for first, and checks records as they come.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nvg.errors import UserError
from nvg.records.dataset import RecordDataset, check_ranges, read_description
from nvg.records.record import RecordLayout
from nvg.records.shard import check_shard_size, read_shard


class _Column:
    """A small column of records as an array would give it: `column[rows]`, and all of it by `np.asarray`."""

    def __init__(self, records: IndexedDataset, name: str) -> None:
        self._records, self._name = records, name

    def __getitem__(self, rows: Any) -> np.ndarray:
        found = self._records.read(np.atleast_1d(np.asarray(rows, np.int64)))[self._name]
        return found if np.ndim(rows) else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        parts = [self._records.shard(number)[self._name] for number in range(len(self._records.entries))]
        return np.concatenate(parts).astype(dtype or parts[0].dtype)


@dataclass(frozen=True)
class IndexedDataset(RecordDataset):
    """Records of N image views of which nothing is held: the V views of an image lie one after the other.

    Attributes:
        entries: of the shards, as the index lists them.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open_index(cls, folder: str | Path) -> IndexedDataset:
        """Open a data set by manifest, index and the sizes of its shards.

        Raises:
            UserError: a file is missing or of another size, manifest and index do not fit each other, or images have
                different numbers of views.
        """
        folder = Path(folder)
        manifest, entries = read_description(folder)
        if manifest["num_records"] != manifest["num_images"] * manifest["num_views"]:
            raise UserError(
                f"{folder}: {manifest['num_records']} records of {manifest['num_images']} images; expected "
                f"{manifest['num_views']} of each for data.loader=indexed; set data.loader=mapped"
            )
        for entry in entries:
            check_shard_size(folder, entry)
        none: Any = None
        dataset = cls(folder=folder, manifest=manifest, image=none, view=none, label=none, shards=[], entries=entries)
        for name in ("image", "view", "label"):
            object.__setattr__(dataset, name, _Column(dataset, name))
        return dataset

    def __len__(self) -> int:
        return self.manifest["num_records"]

    @cached_property
    def _starts(self) -> np.ndarray:
        counts = np.array([entry["samples"] for entry in self.entries])
        return np.cumsum(counts) - counts

    @cached_property
    def _opened(self) -> dict[int, np.ndarray]:
        return {}

    def shard(self, number: int) -> np.ndarray:
        """Records of one shard, mapped when it is asked for first."""
        if number not in self._opened:
            layout = RecordLayout(self.manifest["num_positions"])
            self._opened[number] = read_shard(self.folder, self.entries[number], layout, mapped=True)
        return self._opened[number]

    def read(self, rows_B: np.ndarray) -> np.ndarray:
        """Records as they are stored, (B,) of `RecordLayout.dtype`.

        Raises:
            UserError: a shard is damaged, or a record is not of this manifest or not in its place.
        """
        if rows_B.size and not 0 <= rows_B.min() <= rows_B.max() < len(self):
            raise IndexError(f"records {rows_B.min()} to {rows_B.max()} of {len(self)}")
        found_B = np.empty(len(rows_B), RecordLayout(self.manifest["num_positions"]).dtype)
        shards_B = np.searchsorted(self._starts, rows_B, side="right") - 1
        places_B = rows_B - self._starts[shards_B]
        for row, (number, place) in enumerate(zip(shards_B.tolist(), places_B.tolist(), strict=True)):
            found_B[row] = self.shard(number)[place]
        check_ranges(self.folder, found_B, self.manifest)
        if (wrong := np.flatnonzero(found_B["view"] != rows_B % self.manifest["num_views"])).size:
            row = int(rows_B[wrong[0]])
            raise UserError(
                f"{self.folder}: record {row} is view {found_B['view'][wrong[0]]} of its image; expected "
                f"{row % self.manifest['num_views']} for data.loader=indexed; set data.loader=mapped"
            )
        return found_B

    def batch(self, indices: Any) -> dict[str, np.ndarray]:
        """See `RecordDataset.batch`; the records are checked."""
        found_B = self.read(np.asarray(indices, dtype=np.int64))
        return {name: found_B[name].astype(np.int64) for name in ("label", "content_ids", "structure")}
