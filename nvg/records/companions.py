"""What may lie beside the records, row for row: features of the same view, or the view as a JPEG.

Both are MDS streams in a folder of the data set. They are far larger than the records and are read where they lie:
shards are mapped into memory, not loaded.

Legend: B rows, N tokens, D channels of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvg.errors import UserError
from nvg.records.dataset import RecordDataset
from nvg.records.record import MDS_OFFSET_BYTES
from nvg.records.shard import map_samples, read_index, read_shard

FEATURES_FOLDER = "features"
JPEG_FOLDER = "jpeg"
JPEG_COLUMNS = {"image": "uint32", "jpeg": "bytes", "view": "uint8"}
_INT8_LARGEST = 127.0
_IMAGE_AT, _JPEG_AT = 4, 8  # in a sample: size of the JPEG, image, JPEG, view


@dataclass(frozen=True)
class FeatureLayout:
    """Columns, types and size of the stored features of a view.

    Attributes:
        num_tokens: N.
        width: D.
    """

    num_tokens: int = 256
    width: int = 768

    @classmethod
    def of(cls, stored: Mapping[str, Any], folder: Path) -> FeatureLayout:
        """That of the features which the manifest of a data set describes; a UserError where it does not."""
        if missing := [name for name in ("num_tokens", "width") if name not in stored]:
            raise UserError(f"{folder}: its manifest lacks repa.{missing[0]} of the features; copy it again")
        return cls(stored["num_tokens"], stored["width"])

    @property
    def dtype(self) -> np.dtype:
        """Packed structured dtype of a row, fields in the order of the MDS format (by name)."""
        return np.dtype(
            [
                ("features", "<i1", (self.num_tokens, self.width)),
                ("image", "<u4"),
                ("scale", "<f4", (self.num_tokens,)),
                ("view", "<u1"),
            ]
        )

    @property
    def columns(self) -> dict[str, str]:
        """MDS columns, name to encoding."""
        return {
            "image": "uint32",
            "view": "uint8",
            "features": f"ndarray:int8:{self.num_tokens},{self.width}",
            "scale": f"ndarray:float32:{self.num_tokens}",
        }

    @property
    def bytes_per_record(self) -> int:
        """Bytes of a row in a shard, its entry in the offset table included (197,641 for ViT-B/14 at 224)."""
        return self.dtype.itemsize + MDS_OFFSET_BYTES


def to_int8(features_BND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features as int8 with a scale for each token, the largest absolute value of a token being 127 steps.

    Args:
        features_BND: float32, finite.

    Returns:
        int8 (B, N, D) and float32 scales (B, N); their product is within half a step of the features.
    """
    scale_BN = (np.abs(features_BND).max(axis=2) / _INT8_LARGEST).astype(np.float32)
    steps_BN = np.where(scale_BN > 0, scale_BN, 1.0)
    return np.rint(features_BND / steps_BN[..., None]).astype(np.int8), scale_BN


@dataclass(frozen=True)
class FeatureDataset:
    """Stored features of the views of a record data set; row i belongs to record i.

    Attributes:
        records: the records they lie beside.
        layout: their shape.
        shards: mapped shards.
        starts: number of the first row of each shard.
    """

    records: RecordDataset
    layout: FeatureLayout
    shards: list[np.ndarray]
    starts: np.ndarray

    @classmethod
    def open(cls, records: RecordDataset) -> FeatureDataset:
        """Map the features of a data set.

        Raises:
            UserError: none are stored, or a shard is missing or damaged.
        """
        stored = _stored(records, FEATURES_FOLDER)
        layout = FeatureLayout.of(stored, records.folder)
        folder = records.folder / FEATURES_FOLDER
        shards = [read_shard(folder, entry, layout, mapped=True) for entry in read_index(folder)]
        return cls(records, layout, shards, _starts(records, [len(shard) for shard in shards], folder))

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Features of some records.

        Args:
            indices: B record numbers.

        Returns:
            float32 (B, N, D).

        Raises:
            UserError: a row is of another view than its record.
        """
        rows_B = np.asarray(indices, dtype=np.int64)
        features_BND = np.empty((len(rows_B), self.layout.num_tokens, self.layout.width), dtype=np.float32)
        for place, row in enumerate(rows_B):
            number = int(np.searchsorted(self.starts, row, side="right")) - 1
            stored = self.shards[number][row - self.starts[number]]
            _check_view(self.records, int(row), int(stored["image"]), int(stored["view"]), FEATURES_FOLDER)
            np.multiply(stored["features"], stored["scale"][:, None], out=features_BND[place])
        return features_BND


@dataclass(frozen=True)
class JpegDataset:
    """Stored views of a record data set; row i belongs to record i.

    Attributes:
        records: the records they lie beside.
        shards: bytes of each mapped shard and the offsets of its samples.
        starts: number of the first row of each shard.
    """

    records: RecordDataset
    shards: list[tuple[memoryview, np.ndarray]]
    starts: np.ndarray

    @classmethod
    def open(cls, records: RecordDataset) -> JpegDataset:
        """Map the JPEGs of a data set; errors are those of `FeatureDataset.open`."""
        _stored(records, JPEG_FOLDER)
        folder = records.folder / JPEG_FOLDER
        entries = read_index(folder)
        shards = [map_samples(folder, entry, JPEG_COLUMNS) for entry in entries]
        for entry, (_, offsets) in zip(entries, shards, strict=True):
            if np.any(np.diff(offsets.astype(np.int64)) <= _JPEG_AT):
                raise UserError(f"{folder / entry['raw_data']['basename']}: holds rows of too few bytes; copy it again")
        return cls(records, shards, _starts(records, [len(offsets) - 1 for _, offsets in shards], folder))

    def batch(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """JPEG files of some records.

        Args:
            indices: B record numbers.

        Raises:
            UserError: a row is of another view than its record.
        """
        return [self._jpeg(int(row)) for row in indices]

    def _jpeg(self, row: int) -> bytes:
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        data, offsets = self.shards[number]
        first, last = offsets[row - self.starts[number]], offsets[row - self.starts[number] + 1]
        sample = data[first:last]
        size = int.from_bytes(sample[:_IMAGE_AT], "little")
        if size != len(sample) - _JPEG_AT - 1:
            raise UserError(
                f"{self.records.folder}/{JPEG_FOLDER}: row {row} says that its JPEG has {size} bytes, expected "
                f"{len(sample) - _JPEG_AT - 1}; copy the folder again"
            )
        image = int.from_bytes(sample[_IMAGE_AT:_JPEG_AT], "little")
        _check_view(self.records, row, image, sample[_JPEG_AT + size], JPEG_FOLDER)
        return bytes(sample[_JPEG_AT : _JPEG_AT + size])


def _stored(records: RecordDataset, name: str) -> dict[str, Any]:
    stored = records.manifest.get("repa", {})
    if stored.get("store") != name:
        raise UserError(
            f"{records.folder}: found no stored {name}; run `nvg precompute` with repa.store={name} into another folder"
        )
    return stored


def _starts(records: RecordDataset, counts: list[int], folder: Path) -> np.ndarray:
    if sum(counts) != len(records):
        raise UserError(
            f"{folder}: found {sum(counts)} rows, expected {len(records)}, one for each record; copy the folder again"
        )
    return np.cumsum(counts) - counts


def _check_view(records: RecordDataset, row: int, image: int, view: int, name: str) -> None:
    if (image, view) != (records.image[row], records.view[row]):
        raise UserError(
            f"{records.folder}/{name}: row {row} is of image {image}, view {view}, its record of image "
            f"{records.image[row]}, view {records.view[row]}; the two streams are not of the same run"
        )
