"""Join the finished units to one data set that plain `streaming.StreamingDataset` opens.

Everything is computed from the parts, in unit order, so merging again gives the same bytes; index.json is
moved into place last, so a data set is either listed completely or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cluster.files import replacing, write_atomically
from nvg.checkpoints import save_weights
from nvg.errors import UserError
from nvg.granularity import StageLayout
from nvg.records import (
    MANIFEST_FILE,
    MANIFEST_KIND,
    SCHEMA_VERSION,
    RecordLayout,
    check_shard_size,
    read_index,
    read_shard,
    validate_manifest,
)
from nvg.records.shard import INDEX_FILE
from nvg.tokenizer import Tokenizer
from pipelines.precompute.inputs import content_digest, input_rows, known, read_inputs, replace_inputs
from pipelines.precompute.plan import DEQUANTIZER_NAME, SOURCES_FILE, DatasetFolder, Plan, beside, writing
from pipelines.precompute.unit import CanvasSums
from pipelines.sources import ImageSource, count_headings, key_line


def merge_parts(
    folder: DatasetFolder,
    plan: Plan,
    parts: Mapping[int, Mapping[str, Any]],
    *,
    source: ImageSource,
    tokenizer: Tokenizer,
    given_up: Mapping[int, str] | None = None,
) -> Path:
    """Write the data set from its parts.

    Args:
        parts: part manifests of all units but those given up.
        source: the images, for names and classes.
        tokenizer: on the CPU; its dequantizer is stored with the records.
        given_up: units to go without, with reasons.

    Returns:
        The data set's folder.

    Raises:
        UserError: a shard is damaged, nothing was recorded, the canvases are degenerate, or writing fails.
    """
    layout = RecordLayout(tokenizer.config.num_positions)
    usage = _Usage(layout, tokenizer.config.codebook_size, len(source.class_names))
    entries: list[dict[str, Any]] = []
    inputs = input_rows(len(source))
    units = [unit for unit in range(len(plan.units)) if unit not in (given_up or {})]
    for unit in units:
        part = folder.part(unit)
        for number, entry in enumerate(read_index(part)):
            usage.add(read_shard(part, entry, layout, verify_hash=True))
            entries.append(_adopt_shard(part, entry, folder.root, unit, number))
        inputs[plan.units[unit]] = read_inputs(part, len(plan.units[unit]))
    manifest = _manifest(plan, [parts[unit] for unit in units], usage, source, tokenizer)
    if known(inputs).any():
        manifest["source_content"] = content_digest(inputs)
    if given_up:
        manifest["missing_units"] = {str(unit): reason for unit, reason in sorted(given_up.items())}
    for stream in beside(folder.root, plan.description):
        _merge_beside(folder, units, stream)
    with writing(folder.root):
        write_atomically(folder.root / SOURCES_FILE, "".join(f"{key_line(key)}\n" for key in source.keys).encode())
        save_weights(
            folder.root,
            tokenizer.dequantizer.state_dict(),
            asdict(tokenizer.dequantizer.config),
            kind="dequantizer",
            name=DEQUANTIZER_NAME,
        )
        replace_inputs(folder.root, inputs)
        write_manifest(folder.root, manifest)
        _write_index(folder.root, entries)
    return folder.root


def _merge_beside(folder: DatasetFolder, units: list[int], stream: Path) -> None:
    """Join a stream beside the records; its hashes are left to `nvg verify`, since it is a hundred times as large."""
    entries = []
    with writing(stream):
        stream.mkdir(exist_ok=True)
    for unit in units:
        part = folder.part(unit) / stream.name
        for number, entry in enumerate(read_index(part)):
            check_shard_size(part, entry)
            entries.append(_adopt_shard(part, entry, stream, unit, number))
    with writing(stream):
        _write_index(stream, entries)


def _adopt_shard(part: Path, entry: dict[str, Any], stream: Path, unit: int, number: int) -> dict[str, Any]:
    """Put a shard of a unit into a stream; returns its entry there."""
    merged = f"shard.{unit:05d}.{number:05d}.mds"
    with writing(stream):
        _link(part / entry["raw_data"]["basename"], stream / merged)
    return {**entry, "raw_data": {**entry["raw_data"], "basename": merged}}


def _write_index(stream: Path, entries: list[dict[str, Any]]) -> None:
    write_atomically(stream / INDEX_FILE, json.dumps({"version": 2, "shards": entries}, sort_keys=True).encode())


class _Usage:
    """Counts over all records: which codes each stage uses, and how many records each class has."""

    def __init__(self, layout: RecordLayout, codebook_size: int, num_classes: int) -> None:
        stages = StageLayout(layout.num_positions)
        self._slices = [stages.tokens(stage) for stage in range(stages.num_stages)]
        self._code_counts_SV = np.zeros((stages.num_stages, codebook_size), dtype=np.int64)
        self.class_counts = np.zeros(num_classes, dtype=np.int64)

    def add(self, records: np.ndarray) -> None:
        for stage, tokens in enumerate(self._slices):
            ids = records["content_ids"][:, tokens].ravel()
            self._code_counts_SV[stage] += np.bincount(ids, minlength=self._code_counts_SV.shape[1])
        self.class_counts += np.bincount(records["label"], minlength=len(self.class_counts))

    def shares(self) -> dict[str, Any]:
        """Share of the codebook that each stage uses at least once, and that any stage does."""
        used_SV = self._code_counts_SV > 0
        return {
            "codebook_usage": used_SV.mean(axis=1).tolist(),
            "codebook_usage_overall": float(used_SV.any(axis=0).mean()),
        }


def _manifest(
    plan: Plan, ordered: list[Mapping[str, Any]], usage: _Usage, source: ImageSource, tokenizer: Tokenizer
) -> dict[str, Any]:
    skipped = [asdict(item) for item in source.skipped]
    skipped += sorted((item for part in ordered for item in part["skipped"]), key=lambda item: item["key"])
    changed = sum((Counter(part.get("changed", {})) for part in ordered), Counter())
    stages = StageLayout(tokenizer.config.num_positions)
    return {
        **plan.description,
        "kind": MANIFEST_KIND,
        "schema_version": SCHEMA_VERSION,
        "plan": plan.fingerprint,
        "latent_channels": tokenizer.config.latent_channels,
        "num_positions": tokenizer.config.num_positions,
        "last_stage": stages.last_stage,
        "num_tokens": stages.num_tokens,
        "codebook_size": tokenizer.config.codebook_size,
        "num_classes": len(source.class_names),
        "class_histogram": usage.class_counts.tolist(),
        "num_images": sum(part["num_images"] for part in ordered),
        "num_records": sum(part["num_records"] for part in ordered),
        "canvas_scales": _canvas_scales(ordered),
        **usage.shares(),
        "skipped": skipped,
        **({"passed_over": count_headings(source.passed_over)} if source.passed_over else {}),
        **({"changed": dict(changed)} if changed else {}),
        "library_versions": _versions(ordered),
    }


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write manifest.json atomically, after checking it as its readers do; returns its path.

    Raises:
        UserError: a key that they need is missing or of another type, or a number is not finite.
        OSError: the file cannot be written.
    """
    path = folder / MANIFEST_FILE
    validate_manifest(manifest, str(path))
    write_atomically(path, (json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("utf-8"))
    return path


def _canvas_scales(parts: list[Mapping[str, Any]]) -> list[float]:
    """[1, 1/std(x_0), ..., 1/std(x_K)]: entry i scales the input canvas of stage i, the last one x_K.

    DEVIATION: measured over the data set and stored with the weights; the release ships constants for ImageNet.

    Release: scale_factors
    """
    sums = CanvasSums()
    for part in parts:
        sums.merge(CanvasSums(part["canvas_count"], np.array(part["canvas_total"]), np.array(part["canvas_square"])))
    if sums.count == 0:
        raise UserError("no image could be encoded: every input was skipped; see the reasons in the parts")
    deviations = sums.standard_deviation()
    for stage, deviation in enumerate(deviations):
        if not np.isfinite(deviation) or deviation <= 0.0:
            raise UserError(
                f"canvas x_{stage} has standard deviation {deviation} over the data set, expected above 0: "
                "all its codes are alike; train the tokenizer longer"
            )
    return [1.0, *(1.0 / deviations).tolist()]


def _versions(parts: list[Mapping[str, Any]]) -> dict[str, str]:
    """Versions that wrote the parts; several ones where the job was continued with others."""
    packages = sorted({name for part in parts for name in part["library_versions"]})
    return {
        name: ", ".join(sorted({part["library_versions"].get(name, "unknown") for part in parts})) for name in packages
    }


def _link(original: Path, target: Path) -> None:
    """Put a shard into the data set without copying it where the file system can."""
    with replacing(target) as temporary:
        try:
            os.link(original, temporary)
        except OSError:
            shutil.copyfile(original, temporary)
