"""Saving and resuming: the commit protocol of ``checkpointing`` with engine, weights and all ranks."""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvg.checkpoints import load_weights, save_weights
from nvg.errors import UserError
from nvg.training import Ema
from pipelines import checkpointing
from pipelines.resume_state import TrainerState, require_same
from pipelines.training_config import LoopConfig
from pipelines.training_engine import TrainingEngine
from pipelines.training_env import RankEnvironment, agree, barrier, from_main

LOCK_FILE = ".lock"
logger = logging.getLogger(__name__)


@contextmanager
def run_lock(run_folder: Path, place: RankEnvironment) -> Iterator[None]:
    """Keep a second training out of a run folder; the system frees the lock of a killed process.

    Raises:
        UserError: another process trains here.
    """
    if not place.is_main:
        yield
        return
    run_folder.mkdir(parents=True, exist_ok=True)
    with open(run_folder / LOCK_FILE, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another training is writing to {run_folder}; wait for it or choose another run_folder"
            ) from error
        yield


def save_checkpoint(
    checkpoints: Path,
    *,
    state: TrainerState,
    kind: str,
    model_config: dict[str, Any],
    network: nn.Module,
    ema: Ema,
    engines: Mapping[str, TrainingEngine],
    place: RankEnvironment,
    loop: LoopConfig,
) -> Path:
    """Write, commit and prune (all ranks call).

    Args:
        checkpoints: the run's checkpoints folder.
        state: position of the training.
        kind, model_config: written beside the weights.
        network, ema: weights of the first engine's network.
        engines: write what resuming needs, each into the folder it is named by.
        place: this rank.
        loop: which old checkpoints stay.

    Returns:
        The committed folder.

    Raises:
        UserError: the disk is full; older checkpoints are intact.
        RuntimeError: a weight is not finite; nothing is written.
    """
    temporary = checkpointing.temporary_folder(checkpoints, state.step)
    try:
        if place.is_main:
            checkpointing.begin(checkpoints, state.step)
        barrier(place)
        for name, engine in engines.items():
            engine.save(temporary / name, {"step": state.step, "universal_checkpoint_info": {}})
        with next(iter(engines.values())).whole_parameters():
            if place.is_main:
                _write_weights(temporary, state, kind, model_config, network, ema)
        barrier(place)
        if place.is_main:
            checkpointing.commit(temporary)
            checkpointing.prune(checkpoints, keep_last=loop.keep_last, keep_every_steps=loop.keep_every_steps)
        barrier(place)
    except (OSError, RuntimeError, UserError) as error:
        if not checkpointing.is_out_of_space(error):
            raise
        message = checkpointing.no_space_message(temporary, error)
        shutil.rmtree(temporary, ignore_errors=True)  # gives the space back; the message tells what happened
        raise UserError(message) from error
    return checkpoints / checkpointing.checkpoint_name(state.step)


def _write_weights(
    folder: Path, state: TrainerState, kind: str, model_config: dict[str, Any], network: nn.Module, ema: Ema
) -> None:
    weights: dict[str, Tensor] = network.state_dict()
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise RuntimeError(
                f"step {state.step}: weight {name} is not finite, so no checkpoint is written; the "
                "last one is untouched"
            )
    save_weights(folder, weights, model_config, kind, name="model")
    save_weights(folder, ema.weights(network), model_config, kind, name="ema")
    state.write(folder)


def resume_checkpoint(
    checkpoints: Path,
    *,
    expected: TrainerState,
    kind: str,
    ema: Ema,
    engines: Mapping[str, TrainingEngine],
    place: RankEnvironment,
    device: torch.device,
) -> tuple[Path, TrainerState] | None:
    """Load the newest valid checkpoint into engine and average (all ranks call and agree on it).

    Args:
        checkpoints: the run's checkpoints folder.
        expected: configuration, data, engine and ranks of this run.
        kind: kind of the weights.
        ema, engines: filled.
        place, device: this rank.

    Returns:
        Folder and its state, or None when there is no checkpoint.

    Raises:
        UserError: configuration, data, engine or number of ranks have changed, or all checkpoints are
            damaged.
    """
    choice, refusal = from_main(_choose(checkpoints, expected, place), place, device)
    if refusal is not None:
        raise UserError(refusal)
    if choice is None:
        return None
    folder = Path(choice)
    failure: Exception | None = None
    try:
        for name, engine in engines.items():
            engine.load(folder / name)
        state = TrainerState.read(folder)
        if place.is_main:
            weights, _ = load_weights(folder, kind, name="ema")
            averages = {name: weights[name] for name in ema.state_dict() if name in weights}
            ema.load_state_dict({**averages, "images_seen": torch.tensor(state.ema_images)})
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        failure = error
    if not agree(failure is None, device):
        raise UserError(f"checkpoint {folder} could not be loaded on every rank: {failure or 'see the other ranks'}")
    return folder, state


def _choose(checkpoints: Path, expected: TrainerState, place: RankEnvironment) -> tuple[str | None, str | None]:
    """(folder, refusal) on the main rank; the other ranks are told."""
    if not place.is_main:
        return None, None
    try:
        folder = checkpointing.newest_valid(checkpoints, logger.warning)
        if folder is None:
            return None, None
        found = TrainerState.read(folder)
        require_same(found.config, expected.config, "configuration", folder)
        require_same(found.data, expected.data, "data", folder)
    except UserError as error:
        return None, str(error)
    if (found.engine, found.world_size) != (expected.engine, expected.world_size):
        return None, (
            f"{folder} was written by {found.world_size} rank(s) of {found.engine}, this run has "
            f"{expected.world_size} of {expected.engine}; their states do not fit: start it as it was"
        )
    return str(folder), None
