"""`trainer.json`: where a training stands, and what must be equal for it to go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nvg.checkpoints.runs import TRAINER_FILE
from nvg.errors import Changed, UserError
from nvg.json_files import Count, make, read_json
from nvg.records import DINOV2

SCHEMA_VERSION = 1
# What held before a setting existed: states without it were made so.
_ALWAYS_BEFORE = {
    "optimizer.ema_ramp": 0.1,
    "adversary.ema_ramp": 0.1,
    "loss.feature_weight": 0.0,
    "loss.repa_target": DINOV2,
    "loss.self_correction": 0.0,
    "loss.foreign_regions": 0.0,
    "loss.token_perturbation": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """Where a training stands; `trainer.json`.

    Attributes:
        step: optimizer steps done.
        images: images seen (step times global batch); also the position in the data stream.
        epoch, images_in_epoch: the same position in epochs.
        ema_images: images in the moving average (fewer than `images` when steps were skipped).
        world_size: ranks that wrote the engine state.
        engine: "plain" or "deepspeed-zeroN".
        seeds: named seeds of the run.
        config: the settings that must be equal for the run to go on, flat.
        data: fingerprint of the data, flat.
        accepted: every difference with which the run has gone on by request.
        init_from: the setting the run began with, the folder it led to ("weights") and their hash; empty where first
            weights were drawn, None in files from before this was kept.
        schema_version: of this file.
    """

    step: Count
    images: Count
    epoch: Count
    images_in_epoch: Count
    ema_images: Count
    world_size: Count
    engine: str
    seeds: dict[str, int] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    init_from: dict[str, str] | None = None
    schema_version: int = SCHEMA_VERSION

    def write(self, folder: Path) -> None:
        """Write `trainer.json` into the folder."""
        (folder / TRAINER_FILE).write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> TrainerState:
        """Read `trainer.json`. Raises UserError where it is damaged or another schema version wrote it."""
        path, advice = folder / TRAINER_FILE, "give the run folder to use an older checkpoint"
        found = read_json(path, dict[str, Any], "where a training stands", advice)
        version = found.get("schema_version")
        if version != SCHEMA_VERSION:
            raise UserError(f"{path} has schema version {version}, expected {SCHEMA_VERSION}; {advice}")
        return make(cls, found, str(path), advice)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionary -> one level with dotted names, so that differences can be named."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def require_same(
    saved: dict[str, Any], current: dict[str, Any], what: str, folder: Path, accept: Sequence[str] = ()
) -> list[str]:
    """Refuse to go on with another configuration or other data (`what`, in the message).

    Args:
        saved, current: flat fields of the checkpoint and of this run.
        folder: the checkpoint.
        accept: fields that may differ.

    Returns:
        The accepted differences, one line each.

    Raises:
        Changed: lists every field that differs with both values.
    """
    current = json.loads(json.dumps(current))
    absent = "(absent)"
    pairs = {
        name: (saved.get(name, _ALWAYS_BEFORE.get(name, absent)), current.get(name, absent))
        for name in sorted({*saved, *current})
    }
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    lines = {name: f"{name}: checkpoint {old!r}, this run {new!r}" for name, (old, new) in differing.items()}
    refused = [name for name in lines if name not in accept]
    if refused:
        raise Changed(
            f"cannot resume from {folder}: the {what} has changed\n  "
            + "\n  ".join(lines[name] for name in refused)
            + "\nset these back, start anew in another run folder, or name in loop.accept_changed what may differ",
            ["{}: {!r} → {!r}".format(name, *differing[name]) for name in refused],
        )
    return list(lines.values())
