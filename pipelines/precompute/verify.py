"""`nvg verify`: whether a record data set is whole, byte for byte, and holds what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvg.checkpoints import load_network
from nvg.errors import UserError
from nvg.records import (
    FEATURES_FOLDER,
    JPEG_COLUMNS,
    FeatureLayout,
    RecordLayout,
    map_samples,
    read_index,
    read_manifest,
    read_shard,
)
from nvg.tokenizer import Dequantizer
from pipelines.precompute.inputs import INPUTS_FILE, content_digest, read_inputs
from pipelines.precompute.plan import DEQUANTIZER_NAME, SOURCES_FILE, beside


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A data set in which nothing is wrong.

    Attributes:
        num_records: records read.
        num_shards: shards whose size and hash were compared.
        num_bytes: their bytes.
    """

    num_records: int
    num_shards: int
    num_bytes: int


def verify_records(path: str) -> Verified:
    """Read every byte of a data set and compare it with its index and manifest.

    Compared are: sizes and sha256 of the shards; that each structure map is a permutation; that ids, labels and images
    are in range; that each recorded image has each view once; counts and the class histogram of the manifest; names of
    the sources; that the dequantizer fits.

    Raises:
        UserError: something is wrong; every damaged file is named.
    """
    folder = Path(path).expanduser().absolute()
    manifest = read_manifest(folder)
    if "num_inputs" not in manifest:
        raise UserError(f"{folder}: its manifest does not say num_inputs, how many images there were; copy it again")
    entries = read_index(folder)
    tally = _Tally(manifest)
    problems = []
    for entry in entries:
        try:
            records = read_shard(folder, entry, tally.layout, verify_hash=True)
            tally.add(records, str(folder / entry["raw_data"]["basename"]))
        except UserError as error:
            problems.append(str(error))
    streams = beside(folder, manifest)
    problems += [problem for stream in streams for problem in _damage(stream, manifest)]
    if not problems:
        problems = [*tally.problems(), *_companions(folder, manifest)]
    if problems:
        raise UserError(f"{folder}: {len(problems)} thing(s) wrong:\n" + "\n".join(f"  {line}" for line in problems))
    entries += [entry for stream in streams for entry in read_index(stream)]
    num_bytes = sum(entry["raw_data"]["bytes"] for entry in entries)
    return Verified(num_records=tally.num_records, num_shards=len(entries), num_bytes=num_bytes)


class _Tally:
    """What the records of all shards add up to."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.layout = RecordLayout(manifest["num_positions"])
        self.num_records = 0
        self._manifest = manifest
        self._class_counts = np.zeros(manifest["num_classes"], dtype=np.int64)
        self._seen: list[np.ndarray] = []

    def add(self, records: np.ndarray, name: str) -> None:
        """Count the records of one shard. Raises UserError where a value is out of range or a map no permutation."""
        limits = {
            "content_ids": self._manifest["codebook_size"],
            "label": self._manifest["num_classes"],
            "image": self._manifest["num_inputs"],
            "view": self._manifest["num_views"],
        }
        for column, limit in limits.items():
            largest = int(records[column].max(initial=0))
            if largest >= limit:
                raise UserError(f"{name}: column {column} holds {largest}, expected below {limit} by the manifest")
        maps_NL = np.sort(records["structure"], axis=1)
        if np.any(maps_NL != np.arange(maps_NL.shape[1], dtype=maps_NL.dtype)):
            raise UserError(f"{name}: a structure map is no permutation of its positions")
        self.num_records += len(records)
        self._class_counts += np.bincount(records["label"], minlength=len(self._class_counts))
        self._seen.append(records[["image", "view"]].copy())

    def problems(self) -> Iterator[str]:
        """What does not fit the manifest."""
        yield from _differing("num_records", self.num_records, self._manifest)
        yield from _differing("class_histogram", self._class_counts.tolist(), self._manifest)
        if not self._seen:
            return
        seen = np.concatenate(self._seen)
        images_N, rows = np.unique(seen["image"], return_inverse=True)
        times_NV = np.zeros((len(images_N), self._manifest["num_views"]), dtype=np.int32)
        np.add.at(times_NV, (rows, seen["view"]), 1)
        yield from _differing("num_images", len(images_N), self._manifest)
        for row in np.flatnonzero((times_NV != 1).any(1))[:5]:
            yield f"image {images_N[row]} has its views {times_NV[row].tolist()} times, expected each once"


def _damage(stream: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a stream beside the records: sizes, hashes, number of rows."""
    repa = manifest["repa"]
    features = repa["store"] == FEATURES_FOLDER
    columns = FeatureLayout.of(repa, stream.parent).columns if features else JPEG_COLUMNS
    num_rows = 0
    for entry in read_index(stream):
        try:
            num_rows += len(map_samples(stream, entry, columns, verify_hash=True)[1]) - 1
        except UserError as error:
            yield str(error)
            return
    yield from _differing("num_records", num_rows, manifest, f"{stream} holds")


def _companions(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the files beside the shards."""
    path = folder / SOURCES_FILE
    if not path.is_file():
        yield f"{path}: found no such file, expected the names of the images"
    else:
        found = path.read_bytes().count(b"\n")
        if found != manifest["num_inputs"]:
            yield f"{path}: found {found} lines, expected {manifest['num_inputs']}, one for each image"
            return
    try:
        rows = read_inputs(folder, manifest["num_inputs"])
        if manifest.get("source_content", content_digest(rows)) != content_digest(rows):
            yield f"{folder / INPUTS_FILE}: its hashes of the images are not those of which the manifest has the digest"
    except UserError as error:
        yield str(error)
    try:
        config = load_network(Dequantizer, folder, DEQUANTIZER_NAME).config
    except UserError as error:
        yield str(error)
        return
    for key in ("num_positions", "latent_channels", "codebook_size"):
        yield from _differing(key, getattr(config, key), manifest, f"{DEQUANTIZER_NAME} has")


def _differing(key: str, found: Any, manifest: dict[str, Any], name: str = "the shards hold") -> Iterator[str]:
    if found != manifest[key]:
        yield f"{name} {key} {found}, the manifest states {manifest[key]}"
