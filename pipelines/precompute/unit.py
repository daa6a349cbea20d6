"""Encode one unit of images and commit it: all of its records on disk, or nothing.

Its stages run side by side: read and decode, encode, cluster and quantise, write. Beside the records it hands back sums
over the canvases, which merge exactly, part by part.

Legend: B image views, T tokens, S = K + 1 canvases, L positions, C latent channels.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.files import sync_path
from cluster.versions import library_versions
from nvg.checkpoints import file_hash
from nvg.granularity import require_clustered
from nvg.pixels import check_images, scale_levels
from nvg.records import RecordLayout, ShardWriter
from nvg.records.shard import INDEX_FILE, SHARD_HASH
from nvg.tokenizer import Tokenizer
from pipelines.precompute.beside import RepaStream
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.inputs import content_hash, write_inputs
from pipelines.precompute.plan import PART_MANIFEST, DatasetFolder, read_part, writing
from pipelines.sources import BadImage, ImageSource
from pipelines.sources.views import count_changes

BATCHES_AHEAD = 2  # for each stage


@dataclass
class CanvasSums:
    """float64 sums over all elements of each canvas x_0..x_K, which merge into exact statistics.

    Attributes:
        count: elements per canvas.
        total: (S,) sums.
        square: (S,) sums of squares.
    """

    count: int = 0
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    square: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, canvases_BSLC: torch.Tensor) -> None:
        """Add the canvases of some image views."""
        values_SN = canvases_BSLC.double().transpose(0, 1).flatten(1)
        totals_S, squares_S = (sums_S.cpu().numpy() for sums_S in (values_SN.sum(1), values_SN.square().sum(1)))
        self.merge(CanvasSums(values_SN.shape[1], totals_S, squares_S))

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


@dataclass(frozen=True)
class _View:
    """One image view on its way into a batch; its pixels are uint8 (height, width, channels)."""

    image: int
    view: int
    pixels: np.ndarray


def _read_batches(
    source: ImageSource,
    indices: np.ndarray,
    config: PrecomputeConfig,
    skipped: list[dict[str, str]],
    contents: list[bytes],
) -> Generator[list[_View], None, None]:
    """Full batches of image views in the unit's order, the last one shorter.

    The hash of what was read joins `contents`, also of an image that cannot be decoded, which joins `skipped`.
    """
    views = range(config.source.num_views)

    def read(index: int) -> tuple[bytes, list[_View] | BadImage]:
        data = source.read_bytes(index)
        content = content_hash(data, int(source.labels[index]))
        try:
            return content, [_View(index, *item) for item in enumerate(source.views_of(index, data, views))]
        except BadImage as error:
            return content, error

    batch: list[_View] = []
    for index, (content, result) in _read_ahead(read, indices, config):
        contents.append(content)
        if isinstance(result, BadImage):
            skipped.append({"key": source.keys[index], "reason": str(result)})
            continue
        batch += result
        while len(batch) >= config.batch_size:
            yield batch[: config.batch_size]
            del batch[: config.batch_size]
    if batch:
        yield batch


def _read_ahead(read: Callable[[int], Any], indices: np.ndarray, config: PrecomputeConfig) -> Iterator[tuple[int, Any]]:
    """Call `read` on threads, `BATCHES_AHEAD` batches ahead of the encoder, and yield in order."""
    ahead = max(2 * config.threads_per_actor, -(-BATCHES_AHEAD * config.batch_size // config.source.num_views))
    waiting: deque[tuple[int, Future]] = deque()
    with ThreadPoolExecutor(config.threads_per_actor, thread_name_prefix="decode") as threads:
        try:
            for index in map(int, indices):
                waiting.append((index, threads.submit(read, index)))
                if len(waiting) > ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for index, future in waiting:
                yield index, future.result()
        finally:  # an encoder that failed waits for nothing that is not needed any more
            threads.shutdown(cancel_futures=True)


def in_stages(items: Iterable[Any], stages: Sequence[Callable[[Any], Any]]) -> Iterator[Any]:
    """Pass items through functions, each function in a thread of its own: item 2 is encoded while item 1 is written.

    Order is kept and every function sees the items one after the other, so the results are those of plain calls; at
    most `BATCHES_AHEAD` items a stage are on their way.

    Args:
        items: iterated in the calling thread.
        stages: applied from first to last.

    Yields:
        What the last function returns for each item.

    Raises:
        Exception: the first one of an item or function; later items are dropped.
    """
    threads = [ThreadPoolExecutor(1, thread_name_prefix=stage.__name__) for stage in stages]
    waiting: deque[Future] = deque()
    try:
        for item in items:
            future: Future = threads[0].submit(stages[0], item)
            for thread, stage in zip(threads[1:], stages[1:], strict=True):
                future = thread.submit(_after, stage, future)
            waiting.append(future)
            if len(waiting) > BATCHES_AHEAD * len(stages):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for thread in threads:
            thread.shutdown(cancel_futures=True)


def _after(stage: Callable[[Any], Any], before: Future) -> Any:
    return stage(before.result())


@dataclass(frozen=True)
class _Encoded:
    """A batch whose latents are on the device."""

    views: list[_View]
    images_BCSS: torch.Tensor
    latent_BLC: torch.Tensor


@dataclass(frozen=True)
class _Tokenized:
    """A batch of records, on the CPU, and what is stored beside them."""

    views: list[_View]
    content_ids_BT: np.ndarray
    structure_BL: np.ndarray
    beside: list[dict[str, Any]]


def encode_unit(
    unit: int,
    indices: np.ndarray,
    *,
    source: ImageSource,
    tokenizer: Tokenizer,
    config: PrecomputeConfig,
    folder: DatasetFolder,
    plan_fingerprint: str,
    repa: RepaStream | None = None,
    stamps: np.ndarray | None = None,
) -> dict[str, Any]:
    """Encode the images of a unit and rename the result into place.

    Args:
        unit: its number.
        indices: int64, the source indices of its images, in the order of the records.
        tokenizer: in evaluation mode, on `config.device`.
        plan_fingerprint: stored with the part.
        repa: what is stored beside the records.
        stamps: uint64, of all images of the source, from before the unit is read; None notes none.

    Returns:
        The part manifest.

    Raises:
        UserError: the part cannot be written.
        OSError: an input cannot be read.
    """
    part = folder.part(unit)
    temporary = folder.parts / f"tmp-{unit:05d}-{uuid.uuid4().hex}"
    with writing(temporary):
        temporary.mkdir()
    try:
        contents: list[bytes] = []
        manifest = _write_records(
            temporary, indices, source=source, tokenizer=tokenizer, config=config, repa=repa, contents=contents
        )
        manifest |= {"unit": unit, "plan": plan_fingerprint, "library_versions": library_versions()}
        with writing(temporary):
            write_inputs(temporary, contents, np.uint64(0) if stamps is None else stamps[indices])
            (temporary / PART_MANIFEST).write_text(json.dumps(manifest, sort_keys=True) + "\n", encoding="utf-8")
            for path in sorted(temporary.rglob("*")):
                sync_path(path)
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
    repa: RepaStream | None,
    contents: list[bytes],
) -> dict[str, Any]:
    layout = RecordLayout(tokenizer.config.num_positions)
    skipped: list[dict[str, str]] = []
    sums = CanvasSums()
    writers = [_open_writer(temporary, layout.columns, config)]
    if repa is not None:
        writers.append(_open_writer(temporary / repa.folder, repa.columns, config))

    send = _Sender(config.device)

    def encode(views: list[_View]) -> _Encoded:
        return _encode(views, tokenizer, config, send)

    def tokenize(batch: _Encoded) -> _Tokenized:
        return _tokenize(batch, tokenizer, sums, repa)

    def write(batch: _Tokenized) -> int:
        with writing(temporary):
            _write_batch(writers, batch, source, layout)
        return len(batch.views)

    with closing(_read_batches(source, indices, config, skipped, contents)) as batches:
        num_records = sum(in_stages(batches, [encode, tokenize, write]))
    changed = count_changes(source.config, (source.keys[index] for index in indices))
    with writing(temporary):
        for writer in writers:
            writer.finish()
    return {
        "num_images": len(indices) - len(skipped),
        "num_records": num_records,
        "skipped": skipped,
        **({"changed": changed} if changed else {}),
        "canvas_count": sums.count,
        "canvas_total": sums.total.tolist(),
        "canvas_square": sums.square.tolist(),
        "shards": [_file_entry(path, temporary) for path in sorted(temporary.rglob("*.mds"))],
        "index": _file_entry(temporary / INDEX_FILE, temporary),
    }


def _open_writer(folder: Path, columns: Mapping[str, str], config: PrecomputeConfig) -> ShardWriter:
    with writing(folder):
        return ShardWriter(folder, columns, shard_bytes=config.shard_bytes)


class _Sender:
    """Brings image bytes to a device: on a GPU from pinned memory and on a stream of its own, while others compute."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def __call__(self, levels_BHWC: np.ndarray) -> torch.Tensor:
        """uint8 (B, H, W, C) as network input (B, C, H, W) on the device, channel after channel, scaled there."""
        levels_BCHW = torch.from_numpy(np.moveaxis(levels_BHWC, -1, 1).copy())
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                levels_BCHW = levels_BCHW.pin_memory().to(self._device, non_blocking=True)
            computing = torch.cuda.current_stream(self._device)
            computing.wait_stream(self._stream)
            levels_BCHW.record_stream(computing)  # its memory was taken on the other stream
        return scale_levels(levels_BCHW)


@torch.no_grad()
def _encode(views: list[_View], tokenizer: Tokenizer, config: PrecomputeConfig, send: _Sender) -> _Encoded:
    """Encode a batch, filled up to the batch size so that every batch is computed alike."""
    missing = config.batch_size - len(views)
    pixels_BHWC = np.stack([item.pixels for item in views] + [views[0].pixels] * missing)
    check_images(pixels_BHWC, "views")
    images = send(pixels_BHWC)
    return _Encoded(views, images, tokenizer.encode(images))


@torch.no_grad()
def _tokenize(batch: _Encoded, tokenizer: Tokenizer, sums: CanvasSums, repa: RepaStream | None) -> _Tokenized:
    """Cluster and quantise a batch, add its canvases to the sums, and compute what is stored beside it."""
    number = len(batch.views)
    content_ids_BT, structure_BL = tokenizer.tokenize_latent(batch.latent_BLC, checked=False)
    maps_BL = structure_BL.cpu()  # the first that waits for the device
    require_clustered(maps_BL, batch.latent_BLC)
    sums.add(tokenizer.dequantizer.canvases(content_ids_BT, structure_BL)[:number])
    return _Tokenized(
        views=batch.views,
        content_ids_BT=content_ids_BT[:number].cpu().numpy(),
        structure_BL=maps_BL[:number].numpy(),
        beside=[] if repa is None else repa.rows(batch.images_BCSS, number),
    )


def _write_batch(writers: list[ShardWriter], batch: _Tokenized, source: ImageSource, layout: RecordLayout) -> None:
    ids_BT = batch.content_ids_BT.astype(np.uint16)
    maps_BL = batch.structure_BL.astype(layout.structure_dtype)
    for row, item in enumerate(batch.views):
        writers[0].write(
            {
                "image": item.image,
                "view": item.view,
                "label": int(source.labels[item.image]),
                "content_ids": ids_BT[row],
                "structure": maps_BL[row],
            }
        )
    for item, columns in zip(batch.views, batch.beside, strict=False):  # nothing where nothing is stored beside
        writers[1].write({"image": item.image, "view": item.view, **columns})


def _file_entry(path: Path, root: Path) -> dict[str, Any]:
    return {"basename": path.relative_to(root).as_posix(), "bytes": path.stat().st_size, SHARD_HASH: file_hash(path)}
