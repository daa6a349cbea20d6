"""Going on from a checkpoint: which one, whether it may be, and filling engines and average from it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cluster.ranks import RankEnvironment, agree, from_main
from nvg.checkpoints import load_weights
from nvg.errors import UserError
from nvg.training import Ema
from pipelines import checkpoints
from pipelines.train.engine import TrainingEngine
from pipelines.train.state import TrainerState, require_same
from pipelines.universal_checkpoint import convert, universal_folder

logger = logging.getLogger(__name__)
SHARDED = ("deepspeed-zero1", "deepspeed-zero2", "deepspeed-zero3")


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """A checkpoint that this run may go on from.

    Attributes:
        folder: the checkpoint.
        state: where it stands; ``accepted`` includes what differs now.
        converted: engine states for any number of ranks, made from those of the checkpoint; None where these fit.
    """

    folder: Path
    state: TrainerState
    converted: Path | None


def find_resumable(
    run_checkpoints: Path,
    *,
    expected: TrainerState,
    accept_changed: Sequence[str],
    place: RankEnvironment,
    device: torch.device,
) -> Resumable | None:
    """The newest valid checkpoint, converted where another number of ranks wrote it (all ranks call and agree).

    Args:
        run_checkpoints: the run's checkpoints folder.
        expected: configuration, data, engine and ranks of this run.
        accept_changed: settings that may differ.
        place, device: this rank.

    Returns:
        The checkpoint, or None when there is none.

    Raises:
        UserError: configuration, data or engine have changed, or all checkpoints are damaged.
    """
    found, refusal = None, None
    if place.is_main:
        try:
            found = _choose(run_checkpoints, expected, accept_changed)
        except UserError as error:
            refusal = str(error)
    found, refusal = from_main((found, refusal), place, device)
    if refusal is not None:
        raise UserError(refusal)
    return found


def _choose(run_checkpoints: Path, expected: TrainerState, accept_changed: Sequence[str]) -> Resumable | None:
    folder = checkpoints.newest_valid(run_checkpoints, logger.warning, set_aside=True)
    if folder is None:
        return None
    state = TrainerState.read(folder)
    changes = require_same(state.config, expected.config, "configuration", folder, accept_changed)
    changes += require_same(state.data, expected.data, "data", folder, accept_changed)
    for change in changes:
        logger.warning("going on with a changed setting: %s", change)
    state.accepted.extend(f"from step {state.step}: {change}" for change in changes)
    converted = convert(folder) if _needs_conversion(folder, state, expected) else None
    return Resumable(folder=folder, state=state, converted=converted)


def _needs_conversion(folder: Path, found: TrainerState, expected: TrainerState) -> bool:
    """Whether the engine states are cut for other ranks. Raises UserError where they fit no more at all."""
    if (found.engine, found.world_size) == (expected.engine, expected.world_size):
        return False
    if found.engine == expected.engine == "deepspeed-zero0":  # every rank holds everything
        return False
    if found.engine in SHARDED and expected.engine in SHARDED:
        return True
    raise UserError(
        f"{folder} was written by {found.world_size} rank(s) of {found.engine}, this run has {expected.world_size} of "
        f"{expected.engine}; their states do not fit: start it as it was, or begin a new run with its weights "
        f"(init_from={folder})"
    )


def load_checkpoint(
    found: Resumable,
    *,
    kind: str,
    ema: Ema,
    engines: Mapping[str, TrainingEngine],
    place: RankEnvironment,
    device: torch.device,
) -> None:
    """Fill engines and average (all ranks call).

    Args:
        found: from :func:`find_resumable`; a converted copy is removed afterwards.
        kind: kind of the weights.
        ema, engines: filled.
        place, device: this rank.

    Raises:
        UserError: a rank could not read its part.
    """
    failure: Exception | None = None
    try:
        for name, engine in engines.items():
            engine.load((found.converted or found.folder) / name)
        if place.is_main:
            weights, _ = load_weights(found.folder, kind, name="ema")
            averages = {name: weights[name] for name in ema.state_dict() if name in weights}
            ema.load_state_dict({**averages, "images_seen": torch.tensor(found.state.ema_images)})
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        failure = error
    if not agree(failure is None, device):
        raise UserError(
            f"checkpoint {found.folder} could not be loaded on every rank: {failure or 'see the other ranks'}"
        )
    if place.is_main:
        shutil.rmtree(universal_folder(found.folder), ignore_errors=True)
