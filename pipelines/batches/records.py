"""Records for the generators' trainings, and what fixes their order.

Shapes: B rows of this rank, T tokens, L positions.

Records that lie in a store: what describes them is copied at once, the shards when StreamingDataset reads them.

What a content generator's hidden tokens are aligned with: features beside the records, or DINOv2 in every step.

Legend: B rows of this rank, N patches, D channels of a feature, S side of an image.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cluster.files import write_atomically
from cluster.manifest import MANIFEST_FILE
from nvg.checkpoints import load_dinov2_features
from nvg.errors import UserError
from nvg.pixels import scale_levels
from nvg.records import FEATURES_FOLDER, JPEG_FOLDER, FeatureDataset, JpegDataset, RecordDataset
from nvg.records.shard import INDEX_FILE
from nvg.tokenizer import Dinov2Features
from nvg.training import FEATURES, IMAGE
from pipelines.batches.config import DataConfig
from pipelines.batches.order import ArraySource, BatchSource
from pipelines.batches.streaming import StreamingSource
from pipelines.sources.locations import join, location_of, read_bytes

WEIGHTS_KEY = "dinov2_weights"
DESCRIPTION = (MANIFEST_FILE, INDEX_FILE, "dequantizer.json", "dequantizer.safetensors")


@dataclass(frozen=True, kw_only=True)
class RepaSource:
    """Where the target of every record comes from.

    Attributes:
        width: D.
        fetch: rows (B,) int64 -> what joins the batch: features (B, N, D), or image (B, 3, S, S) for the teacher.
        teacher: makes features of images; None where they are stored.
    """

    width: int
    fetch: Callable[[np.ndarray], dict[str, Tensor]]
    teacher: Dinov2Features | None


def open_repa_source(records: RecordDataset, dinov2_weights: str) -> RepaSource:
    """The source that a data set has beside its records.

    Args:
        records: opened; their manifest says what was stored.
        dinov2_weights: weight file, read where images were stored and no features.

    Raises:
        UserError: nothing was stored, or the weight file is missing.
    """
    store = records.manifest.get("repa", {}).get("store")
    if store == FEATURES_FOLDER:
        features = FeatureDataset.open(records)
        return RepaSource(
            width=features.layout.width,
            fetch=lambda rows: {FEATURES: torch.from_numpy(features.batch(rows))},
            teacher=None,
        )
    if store == JPEG_FOLDER:
        images = JpegDataset.open(records)
        teacher = load_dinov2_features(dinov2_weights, key=WEIGHTS_KEY)
        return RepaSource(
            width=teacher.width,
            fetch=lambda rows: {IMAGE: torch.stack([_decoded(jpeg) for jpeg in images.batch(rows)])},
            teacher=teacher,
        )
    raise UserError(
        f"loss.repa_weight is above 0, but {records.folder} has neither features nor images beside its records; run "
        "`nvg precompute` with repa.store=features or jpeg, or set loss.repa_weight=0"
    )


def _decoded(jpeg: bytes) -> Tensor:
    """float32 (3, S, S) in [-1, 1]."""
    with Image.open(io.BytesIO(jpeg)) as image:
        pixels_HWC = torch.from_numpy(np.array(image.convert("RGB")))
    return scale_levels(pixels_HWC.permute(2, 0, 1))


def record_source(records: RecordDataset, config: DataConfig, repa: RepaSource | None = None) -> ArraySource:
    """Records in memory or mapped.

    Args:
        records: opened records.
        config: how an epoch is made.
        repa: what joins them for the alignment of hidden tokens.

    Returns:
        Source of {"label" (B,), "content_ids" (B, T), "structure" (B, L)}, all int64, and what `repa` adds.
    """

    def fetch(rows: np.ndarray) -> dict[str, Tensor]:
        batch = {name: torch.from_numpy(values) for name, values in records.batch(rows).items()}
        return batch if repa is None else {**batch, **repa.fetch(rows)}

    view_rows = _view_rows(records.image, records.view)
    return ArraySource(view_rows, fetch, record_fingerprint(config, records.manifest), config.views_per_epoch)


def _view_rows(image: np.ndarray, view: np.ndarray) -> list[np.ndarray] | np.ndarray:
    """Rows of each image in ascending image number, its views in order; an array (N, V) where all have as many."""
    order = np.lexsort((view, image))
    starts = np.flatnonzero(np.diff(image[order].astype(np.int64))) + 1
    counts = np.diff(np.concatenate([[0], starts, [len(order)]]))
    return order.reshape(len(counts), -1) if (counts == counts[0]).all() else np.split(order, starts)


def record_fingerprint(config: DataConfig, manifest: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for a run to go on with these records.

    Args:
        config: loader and order.
        manifest: the records' manifest.

    Returns:
        Flat dictionary of JSON values.
    """
    wanted = (
        "schema_version", "plan", "tokenizer_hash", "num_images", "num_views", "num_classes", "codebook_size",
        "num_positions", "source_fingerprint",
    )  # fmt: skip
    fingerprint: dict[str, Any] = {name: manifest[name] for name in wanted if name in manifest}
    order = "streaming" if config.loader == "streaming" else "memory"  # mapped or not, the same batches
    fingerprint |= {"loader": order, "views_per_epoch": config.views_per_epoch}
    if config.loader == "streaming":
        fingerprint |= {
            "num_canonical_nodes": config.num_canonical_nodes,
            "shuffle_block_size": config.shuffle_block_size,
            "shuffle_algo": config.shuffle_algo,
        }
    return fingerprint


def generator_source(records: RecordDataset, config: DataConfig, repa: RepaSource | None = None) -> BatchSource:
    """The source that ``config.loader`` names.

    Args:
        records: opened records; opening has checked every shard's size where they lie here, which streaming does not.
        config: how they are read.
        repa: what joins them for the alignment of hidden tokens.

    Returns:
        Source of records in memory or mapped, or a streaming source.

    Raises:
        UserError: the streaming loader has nothing beside the records.
    """
    if config.loader != "streaming":
        return record_source(records, config, repa)
    if repa is not None:
        raise UserError("data.loader=streaming reads no features; set data.loader=mapped, or loss.repa_weight=0")
    num_records = int(records.manifest["num_records"])
    return StreamingSource(config, num_records, record_fingerprint(config, records.manifest))


def open_records(config: DataConfig) -> RecordDataset:
    """Open a training's records.

    Args:
        config: where they are and how they are read.

    Returns:
        The records; those of ``config.remote`` without a single record, with their manifest.

    Raises:
        UserError: they are missing or damaged, or ``config.path`` holds other ones than ``config.remote``.
    """
    if not config.remote:
        return RecordDataset.open(Path(config.path), mapped=config.loader != "memory")
    fetch_description(config.remote, Path(config.path))
    return RecordDataset.open_description(Path(config.path))


def fetch_description(remote: str, folder: Path) -> None:
    """Copy manifest, index and dequantizer; any number of processes may do so at once.

    Args:
        remote: URL or path of a folder that ``nvg precompute`` wrote.
        folder: of this node; made where it is missing.

    Raises:
        UserError: a file cannot be read, or the folder holds another one of its name.
    """
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
