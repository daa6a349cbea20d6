"""Saving: the commit protocol of ``checkpointing`` with engine, weights and all ranks."""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from cluster.ranks import RankEnvironment, barrier, from_main
from nvg.checkpoints import save_weights
from nvg.errors import UserError
from nvg.training import Ema
from pipelines import checkpoints
from pipelines.train.config import LoopConfig
from pipelines.train.engine import TrainingEngine
from pipelines.train.state import TrainerState
from pipelines.train.task import TrainingTask



class NoSpaceError(UserError):
    """A checkpoint found no room on its disk."""




def save_checkpoint(
    run_checkpoints: Path,
    *,
    state: TrainerState,
    task: TrainingTask,
    ema: Ema,
    engines: Mapping[str, TrainingEngine],
    place: RankEnvironment,
    device: torch.device,
    loop: LoopConfig,
) -> Path:
    """Write, commit and prune (all ranks call).

    Args:
        run_checkpoints: the run's checkpoints folder.
        state: position of the training.
        task: what is trained; its kind and model are written beside the weights.
        ema: averages of its network.
        engines: write what resuming needs, each into the folder it is named by.
        place, device: this rank.
        loop: which old checkpoints stay.

    Returns:
        The committed folder.

    Raises:
        NoSpaceError: the disk is full; older checkpoints are intact and every rank knows.
        UserError: the same, while other ranks wait for this one: the run has to end.
        RuntimeError: a weight is not finite; nothing is written.
    """
    temporary = checkpoints.temporary_folder(run_checkpoints, state.step)
    together = place.world_size == 1  # whether no other rank can be waiting inside DeepSpeed for one that fails
    try:
        # All ranks learn of a full disk here, before any of them waits for another inside DeepSpeed.
        shortage = from_main(_begin(run_checkpoints, state.step) if place.is_main else None, place, device)
        if shortage is not None:
            together = True
            raise OSError(errno.ENOSPC, shortage)
        for name, engine in engines.items():
            engine.save(temporary / name, {"step": state.step, "universal_checkpoint_info": {}})
        with next(iter(engines.values())).whole_parameters():
            if place.is_main:
                _write_weights(temporary, state, task, ema)
        barrier(place)
        if place.is_main:
            checkpoints.commit(temporary)
            checkpoints.prune(run_checkpoints, keep_last=loop.keep_last, keep_every_steps=loop.keep_every_steps)
        barrier(place)
    except (OSError, RuntimeError, UserError) as error:
        if not checkpoints.is_out_of_space(error):
            raise
        message = checkpoints.no_space_message(temporary, error)
        shutil.rmtree(temporary, ignore_errors=True)  # gives the space back; the message tells what happened
        raise (NoSpaceError if together else UserError)(message) from error
    return run_checkpoints / checkpoints.checkpoint_name(state.step)


def _begin(run_checkpoints: Path, step: int) -> str | None:
    """Make the temporary folder; what is missing where the newest checkpoint would not fit a second time."""
    temporary = checkpoints.begin(run_checkpoints, step)
    sizes = [checkpoints.folder_bytes(folder) for folder in run_checkpoints.iterdir() if folder.is_dir()]
    try:
        checkpoints.require_space(temporary, max(sizes))
    except OSError as error:
        return str(error)
    return None


def _write_weights(folder: Path, state: TrainerState, task: TrainingTask, ema: Ema) -> None:
    network: nn.Module = task.objective.network
    weights: dict[str, Tensor] = network.state_dict()
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise RuntimeError(
                f"step {state.step}: weight {name} is not finite, so no checkpoint is written; the "
                "last one is untouched"
            )
    save_weights(folder, weights, task.model_config, task.kind, name="model")
    save_weights(folder, ema.weights(network), task.model_config, task.kind, name="ema")
    alignment = getattr(task.objective, "alignment", None)
    if alignment is not None:
        save_weights(folder, alignment.head.state_dict(), asdict(alignment.head.config), "repa", name="repa")
    state.write(folder)
