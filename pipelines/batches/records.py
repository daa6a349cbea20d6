"""Records for the generators' trainings, and what fixes their order.

Shapes: B rows of this rank, T tokens, L positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvg.errors import UserError
from nvg.records import RecordDataset
from pipelines.batches.config import DataConfig
from pipelines.batches.order import ArraySource, BatchSource
from pipelines.batches.streaming import StreamingSource
from pipelines.repa_source import RepaSource


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
