"""Encode one unit of images and commit it: all of its records on disk, or nothing.

Legend: B image views, T tokens, L positions, S = K + 1 canvases, C latent channels.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cluster.manifest import sync_path
from nvg.records import RecordLayout
from nvg.records.shard import INDEX_FILE, SHARD_HASH
from nvg.tokenizer import Tokenizer
from pipelines.precompute_config import PrecomputeConfig
from pipelines.precompute_plan import PART_MANIFEST, DatasetFolder, read_part, writing
from pipelines.sources import BadImage, ImageSource, to_model_range

_RECORDED_PACKAGES = ("mosaicml-streaming", "numpy", "pillow", "ray", "torch")


@dataclass(frozen=True)
class View:
    """One image view on its way into a batch: uint8 pixels (S, S, channels)."""

    image: int
    view: int
    pixels: np.ndarray


@dataclass
class CanvasSums:
    """float64 sums over all elements of each canvas x_0..x_K, which merge into exact statistics.

    Attributes:
        count: Elements per canvas.
        total: (S,) sums.
        square: (S,) sums of squares.
    """

    count: int = 0
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    square: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, canvases_BSLC: torch.Tensor) -> None:
        """Add the canvases of some image views."""
        values_SN = canvases_BSLC.double().transpose(0, 1).flatten(1)
        self.merge(
            CanvasSums(values_SN.shape[1], values_SN.sum(1).cpu().numpy(), values_SN.square().sum(1).cpu().numpy())
        )

    def merge(self, other: CanvasSums) -> None:
        """Add another part's sums; the order of merging must be fixed for equal bits."""
        if self.count == 0:
            self.count, self.total, self.square = other.count, other.total, other.square
        elif other.count:
            self.count += other.count
            self.total = self.total + other.total
            self.square = self.square + other.square

    def standard_deviation(self) -> np.ndarray:
        """(S,) standard deviation of each canvas over all elements."""
        mean = self.total / self.count
        return np.sqrt(np.maximum(self.square / self.count - mean**2, 0.0))


class _RecordWriter(Protocol):
    def write(self, sample: dict[str, Any]) -> None: ...


def encode_unit(
    unit: int,
    indices: np.ndarray,
    *,
    source: ImageSource,
    tokenizer: Tokenizer,
    config: PrecomputeConfig,
    folder: DatasetFolder,
    plan_fingerprint: str,
) -> dict[str, Any]:
    """Encode the images of a unit and rename the result into place.

    Args:
        unit: Its number.
        indices: int64, the source indices of its images, in the order of the records.
        source: Where they are read.
        tokenizer: In evaluation mode, on `config.device`.
        config: Batch size, threads, shard size.
        folder: The data set.
        plan_fingerprint: Of the job, stored with the part.

    Returns:
        The part manifest.

    Raises:
        UserError: The part cannot be written.
        OSError: An input cannot be read.
    """
    part = folder.part(unit)
    temporary = folder.parts / f"tmp-{unit:05d}-{uuid.uuid4().hex}"
    with writing(temporary):
        temporary.mkdir()
    try:
        manifest = _write_records(temporary, indices, source=source, tokenizer=tokenizer, config=config)
        manifest |= {"unit": unit, "plan": plan_fingerprint, "library_versions": library_versions()}
        with writing(temporary):
            (temporary / PART_MANIFEST).write_text(json.dumps(manifest, sort_keys=True) + "\n", encoding="utf-8")
            for path in sorted(temporary.iterdir()):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            sync_path(temporary)
            committed = read_part(part, plan_fingerprint)
            if committed is not None:  # an attempt thought dead was only slow: its bytes are the same
                return committed
            os.rename(temporary, part)
            sync_path(folder.parts)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _write_records(
    temporary: Path,
    indices: np.ndarray,
    *,
    source: ImageSource,
    tokenizer: Tokenizer,
    config: PrecomputeConfig,
) -> dict[str, Any]:
    from streaming import MDSWriter

    layout = RecordLayout(tokenizer.config.num_positions)
    skipped: list[dict[str, str]] = []
    sums = CanvasSums()
    num_records = 0
    with writing(temporary):
        writer = MDSWriter(
            columns=layout.columns, out=str(temporary), hashes=[SHARD_HASH], size_limit=config.shard_bytes
        )
    try:  # not `with writer`: it would finish, and so index, what an exception cut short
        for batch in _batches(source, indices, config, skipped):
            content_ids_BT, structure_BL = _tokenize(batch, tokenizer, config, sums)
            with writing(temporary):
                _write_batch(writer, batch, content_ids_BT, structure_BL, source, layout)
            num_records += len(batch)
        with writing(temporary):
            writer.finish()
    except BaseException:
        writer.cancel_future_jobs()
        raise
    return {
        "num_images": len(indices) - len(skipped),
        "num_records": num_records,
        "skipped": skipped,
        "canvas_count": sums.count,
        "canvas_total": sums.total.tolist(),
        "canvas_square": sums.square.tolist(),
        "shards": [_file_entry(path) for path in sorted(temporary.glob("*.mds"))],
        "index": _file_entry(temporary / INDEX_FILE),
    }


def _batches(
    source: ImageSource, indices: np.ndarray, config: PrecomputeConfig, skipped: list[dict[str, str]]
) -> Iterator[list[View]]:
    """Batches of image views in the unit's order; images that cannot be decoded are listed in `skipped`."""
    views = range(config.source.num_views)

    def read(index: int) -> list[View] | BadImage:
        try:
            return [View(index, view, source.read(index, view)) for view in views]
        except BadImage as error:
            return error

    batch: list[View] = []
    for index, result in _read_ahead(read, indices, config):
        if isinstance(result, BadImage):
            skipped.append({"key": source.keys[index], "reason": str(result)})
            continue
        batch += result
        while len(batch) >= config.batch_size:
            yield batch[: config.batch_size]
            del batch[: config.batch_size]
    if batch:
        yield batch


def _read_ahead(read, indices: np.ndarray, config: PrecomputeConfig) -> Iterator[tuple[int, Any]]:
    """Call `read` on threads, up to two batches ahead of the encoder, and yield in order."""
    waiting: deque[tuple[int, Future]] = deque()
    with ThreadPoolExecutor(config.threads_per_actor) as threads:
        for index in map(int, indices):
            waiting.append((index, threads.submit(read, index)))
            if len(waiting) > 2 * config.batch_size:
                first, future = waiting.popleft()
                yield first, future.result()
        for index, future in waiting:
            yield index, future.result()


def _tokenize(
    batch: list[View], tokenizer: Tokenizer, config: PrecomputeConfig, sums: CanvasSums
) -> tuple[np.ndarray, np.ndarray]:
    """Encode a batch, filled up to the batch size so that every batch is computed alike."""
    missing = config.batch_size - len(batch)
    pixels_BHWC = np.stack([item.pixels for item in batch] + [batch[0].pixels] * missing)
    images = torch.from_numpy(to_model_range(pixels_BHWC)).to(config.device)
    with torch.no_grad():
        content_ids_BT, structure_BL = tokenizer.tokenize(images)
        canvases_BSLC = tokenizer.dequantizer.canvases(content_ids_BT, structure_BL)
    sums.add(canvases_BSLC[: len(batch)])
    return content_ids_BT[: len(batch)].cpu().numpy(), structure_BL[: len(batch)].cpu().numpy()


def _write_batch(
    writer: _RecordWriter,
    batch: list[View],
    content_ids_BT: np.ndarray,
    structure_BL: np.ndarray,
    source: ImageSource,
    layout: RecordLayout,
) -> None:
    ids_BT = content_ids_BT.astype(np.uint16)
    maps_BL = structure_BL.astype(layout.structure_dtype)
    for row, item in enumerate(batch):
        writer.write(
            {
                "image": item.image,
                "view": item.view,
                "label": int(source.labels[item.image]),
                "content_ids": ids_BT[row],
                "structure": maps_BL[row],
            }
        )


def _file_entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"basename": path.name, "bytes": len(data), SHARD_HASH: hashlib.sha256(data).hexdigest()}


def library_versions() -> dict[str, str]:
    """Versions of the packages that could change a byte of the records."""
    versions = {}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions
