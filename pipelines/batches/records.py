"""Records for the trainings of generators: in memory, mapped or in a store; their order, and what lies beside them.

A content generator's hidden tokens are aligned with features beside the records, or with those of a frozen network in
every step. Of records in a store, what describes them is copied at once, the shards when StreamingDataset reads them.

Legend: B rows of this rank, T tokens, L positions, N patches, D channels of a feature, S side of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.files import write_atomically
from nvg.bounds import refuse
from nvg.checkpoints import load_dinov2_features, load_efficientnet_tokens
from nvg.errors import BadImage, UserError
from nvg.records import (
    DINOV2,
    EFFICIENTNET,
    FEATURES_FOLDER,
    JPEG_FOLDER,
    MANIFEST_FILE,
    FeatureDataset,
    FeatureLayout,
    IndexedDataset,
    JpegDataset,
    RecordDataset,
    RepaTarget,
)
from nvg.records.shard import INDEX_FILE
from nvg.tokenizer import Dinov2Features, EfficientNetTokens
from nvg.training import FEATURES, IMAGE
from pipelines.batches.config import DataConfig
from pipelines.batches.order import ArraySource, BatchSource, ViewGrid, ViewRows
from pipelines.batches.streaming import StreamingSource

WEIGHTS_KEYS: dict[RepaTarget, str] = {DINOV2: "dinov2_weights", EFFICIENTNET: "efficientnet_weights"}
DESCRIPTION = (MANIFEST_FILE, INDEX_FILE, "dequantizer.json", "dequantizer.safetensors")


@dataclass(frozen=True)
class RepaSource:
    """Where the target of every record comes from.

    Attributes:
        width: D.
        fetch: rows (B,) int64 -> what joins the batch: features (B, N, D), or image (B, 3, S, S), uint8, for the
            teacher; nothing for a target that is only described.
        teacher: makes features of images; None where they are stored.
    """

    width: int
    fetch: Callable[[np.ndarray], dict[str, Tensor]] = lambda _: {}
    teacher: Dinov2Features | EfficientNetTokens | None = None


def open_records(config: DataConfig) -> RecordDataset:
    """Open a training's records.

    Returns:
        The records; those of `config.remote` without a single record, with their manifest.

    Raises:
        UserError: they are missing or damaged, or `config.path` holds other ones than `config.remote`.
    """
    if config.loader == "indexed":
        return IndexedDataset.open_index(Path(config.path))
    if not config.remote:
        return RecordDataset.open(Path(config.path), mapped=config.loader == "mapped")
    _fetch_description(config.remote, Path(config.path))
    return RecordDataset.open_description(Path(config.path))


def _fetch_description(remote: str, folder: Path) -> None:
    """Copy manifest, index and dequantizer; any number of processes may do so at once."""
    from eval.locations import join, location_of, read_bytes  # stores: no training on local records needs them

    for name in DESCRIPTION:
        location, copy = join(location_of(remote), name), folder / name
        try:
            content = read_bytes(location)
        except OSError as error:
            raise UserError(
                f"data.remote: {location} cannot be read ({error}); expected a folder that `nvg precompute` wrote"
            ) from error
        if not copy.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(copy, content)
        elif copy.read_bytes() != content:
            raise UserError(f"{copy} is not that of data.remote {remote}; choose another data.path for these records")


def generator_source(records: RecordDataset, config: DataConfig, repa: RepaSource | None = None) -> BatchSource:
    """The source that `config.loader` names.

    Args:
        records: opened by `open_records`.
        config: how they are read.
        repa: what joins them for the alignment of hidden tokens.

    Returns:
        Source of {"label" (B,), "content_ids" (B, T), "structure" (B, L)}, all int64, and what `repa` adds.

    Raises:
        UserError: the streaming loader has nothing beside the records.
    """
    fingerprint = _fingerprint(config, records.manifest)
    if config.loader == "streaming":
        if repa is not None:
            raise UserError("data.loader=streaming reads no features; set data.loader=mapped, or loss.repa_weight=0")
        return StreamingSource(config, records.manifest["num_records"], fingerprint)

    def fetch(rows: np.ndarray) -> dict[str, Tensor]:
        batch = {name: torch.from_numpy(values) for name, values in records.batch(rows).items()}
        return batch if repa is None else {**batch, **repa.fetch(rows)}

    if isinstance(records, IndexedDataset):
        rows: ViewRows = ViewGrid(records.manifest["num_images"], records.manifest["num_views"])
    elif config.loader == "indexed":  # a description alone, of which the fingerprint is asked
        rows = ViewGrid(1, 1)
    else:
        rows = _view_rows(records.image, records.view)
    return ArraySource(rows, fetch, fingerprint, config.views_per_epoch)


def _view_rows(image: np.ndarray, view: np.ndarray) -> ViewRows:
    """Rows of each image in ascending image number, its views in order."""
    order = np.lexsort((view, image))
    starts = np.flatnonzero(np.diff(image[order].astype(np.int64))) + 1
    counts = np.diff(np.concatenate([[0], starts, [len(order)]]))
    return order.reshape(len(counts), -1) if (counts == counts[0]).all() else np.split(order, starts)


def _fingerprint(config: DataConfig, manifest: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for a run to go on with these records; flat, JSON values."""
    wanted = (
        "schema_version", "plan", "tokenizer_hash", "num_images", "num_views", "num_classes", "codebook_size",
        "num_positions", "source_fingerprint", "source_content",
    )  # fmt: skip
    fingerprint: dict[str, Any] = {name: manifest[name] for name in wanted if name in manifest}
    order = "memory" if config.loader == "mapped" else config.loader  # mapped or not, the same batches
    fingerprint |= {"loader": order, "views_per_epoch": config.views_per_epoch}
    if config.loader == "streaming":
        of_order = ("num_canonical_nodes", "shuffle_block_size", "shuffle_algo")
        fingerprint |= {name: getattr(config, name) for name in of_order}
    return fingerprint


def open_repa_source(records: RecordDataset, of: RepaTarget, weights: str, num_threads: int) -> RepaSource:
    """What a data set has beside its records; other arguments and errors are those of `repa_target`.

    Args:
        records, of, weights: see there.
        num_threads: that decode stored images.
    """
    target = repa_target(records, of, weights)
    if target.teacher is None:
        features = FeatureDataset.open(records)
        return replace(target, fetch=lambda rows: {FEATURES: torch.from_numpy(features.batch(rows))})
    return replace(target, fetch=stored_images(records, num_threads))


def stored_images(records: RecordDataset, num_threads: int) -> Callable[[np.ndarray], dict[str, Tensor]]:
    """Decodes the images beside records in threads: rows (B,) int64 -> image (B, 3, S, S), uint8."""
    images = JpegDataset.open(records)

    def decode(rows: np.ndarray) -> dict[str, Tensor]:
        try:
            with ThreadPoolExecutor(num_threads, thread_name_prefix="jpeg") as pool:
                pixels_BHWC = np.stack(list(pool.map(_decoded, images.batch(rows))))
        except BadImage as error:
            raise UserError(
                f"{records.folder / JPEG_FOLDER}: an image of the rows {rows.tolist()[:20]} is damaged ({error}); copy "
                "the records again"
            ) from error
        return {IMAGE: torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).contiguous()}

    return decode


def repa_target(records: RecordDataset, of: RepaTarget, weights: str) -> RepaSource:
    """The target of the alignment as the manifest describes it; what is stored is not opened.

    Args:
        records: opened records, or their description alone.
        of: the frozen network, `loss.repa_target`.
        weights: its file, read where images were stored and no features.

    Raises:
        UserError: nothing was stored, or features of another network, or the weight file is missing.
    """
    stored = records.manifest.get("repa", {})
    if stored.get("store") == FEATURES_FOLDER:
        found = stored.get("target", DINOV2)
        if found != of:
            raise refuse(
                "loss.repa_target",
                of,
                f"{found}, of which there are features beside the records in {records.folder}",
                f"set loss.repa_target={found}, or run `nvg precompute` with repa.target={of} into another folder",
            )
        return RepaSource(FeatureLayout.of(stored, records.folder).width)
    if stored.get("store") == JPEG_FOLDER:
        if of == EFFICIENTNET:
            num_positions = records.manifest["num_positions"]
            teacher = load_efficientnet_tokens(weights, key=WEIGHTS_KEYS[of], num_positions=num_positions)
        else:
            teacher = load_dinov2_features(weights, key=WEIGHTS_KEYS[of])
        return RepaSource(teacher.width, teacher=teacher)
    raise UserError(
        f"loss.repa_weight is above 0, but {records.folder} has neither features nor images beside its records; run "
        "`nvg precompute` with repa.store=features or jpeg, or set loss.repa_weight=0"
    )


def _decoded(jpeg: bytes) -> np.ndarray:
    """uint8 (S, S, 3)."""
    from eval.decoding import decode_image  # nothing else of a training needs that house

    return np.asarray(decode_image(jpeg, 3, pixels="stored"))
