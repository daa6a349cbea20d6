"""Saving and going on: the commit protocol of `pipelines.checkpoints` with engines, weights and all ranks.

Going on has three parts: which checkpoint, whether this run may, and filling engines and average from it. States for
another number of ranks are DeepSpeed's universal checkpoints, made when they are needed: the conversion takes ZeRO 1 to
3 apart into one file per parameter and moment, which any number of ranks can read. It runs in a process of its own, on
the CPU, and its result is used once: the next checkpoint is an ordinary one again.
"""

from __future__ import annotations

import errno
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.ranks import Ranks, environment_of_no_rank
from nvg.checkpoints import load_weights, runs, save_weights
from nvg.errors import Changed, UserError
from pipelines import checkpoints
from pipelines.run_folder import CHECKPOINTS_FOLDER
from pipelines.train.config import RunConfig
from pipelines.train.state import TrainerState, flatten, require_same
from pipelines.train.step import Step

_NUM_PROCESSES = 4
_NUM_LINES = 8
_SETTING = "init_from"
_SHARDED = ("deepspeed-zero1", "deepspeed-zero2", "deepspeed-zero3")
logger = logging.getLogger(__name__)


class NoSpaceError(UserError):
    """A checkpoint found no room on its disk."""


def save_checkpoint(run_checkpoints: Path, state: TrainerState, step: Step) -> Path:
    """Write, commit and prune (all ranks call).

    Args:
        run_checkpoints: the run's checkpoints folder.
        state: position of the training.
        step: engines, each of which writes what resuming needs into the folder it is named by; weights and averages.

    Returns:
        The committed folder.

    Raises:
        NoSpaceError: the disk is full; older checkpoints are intact and every rank knows.
        UserError: the same, while other ranks wait for this one: the run has to end.
        RuntimeError: a weight is not finite; nothing is written.
    """
    ranks, loop = step.ranks, step.config.loop
    temporary = checkpoints.temporary_folder(run_checkpoints, state.step)
    together = ranks.world_size == 1  # whether no other rank can be waiting inside DeepSpeed for one that fails
    try:
        # All ranks learn of a full disk here, before any of them waits for another inside DeepSpeed.
        shortage = ranks.from_main(_begin(run_checkpoints, state.step) if ranks.is_main else None)
        if shortage is not None:
            together = True
            raise OSError(errno.ENOSPC, shortage)
        written: list[Path] = []
        for name, engine in step.engines.items():
            written += engine.save(temporary / name, {"step": state.step, "universal_checkpoint_info": {}})
        with step.main.engine.whole_parameters():
            if ranks.is_main:
                _write_weights(temporary, state, step)
                written += [path for path in temporary.iterdir() if path.is_file()]
        # Every rank reads back what it wrote itself, which it still has at hand; commit what is left.
        sealed = ranks.gather(checkpoints.seal(temporary, written))
        if ranks.is_main:
            checkpoints.commit(temporary, sealed)
            checkpoints.prune(run_checkpoints, keep_last=loop.keep_last, keep_every_steps=loop.keep_every_steps)
        ranks.barrier()
    except (OSError, RuntimeError, UserError) as error:
        if not checkpoints.is_out_of_space(error):
            raise
        message = checkpoints.no_space_message(temporary, error)
        shutil.rmtree(temporary, ignore_errors=True)  # gives the space back; the message tells what happened
        raise (NoSpaceError if together else UserError)(message) from error
    return run_checkpoints / runs.checkpoint_name(state.step)


def _begin(run_checkpoints: Path, step: int) -> str | None:
    """Make the temporary folder; what is missing where the newest checkpoint would not fit a second time."""
    temporary = checkpoints.begin(run_checkpoints, step)
    sizes = [checkpoints.folder_bytes(folder) for folder in run_checkpoints.iterdir() if folder.is_dir()]
    try:
        checkpoints.require_space(temporary, max(sizes))
    except OSError as error:
        return str(error)
    return None


def _write_weights(folder: Path, state: TrainerState, step: Step) -> None:
    task = step.task
    network: nn.Module = task.objective.network
    weights: dict[str, Tensor] = network.state_dict()
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise RuntimeError(
                f"step {state.step}: weight {name} is not finite, so no checkpoint is written; the "
                "last one is untouched"
            )
    save_weights(folder, weights, task.model_config, task.kind, name="model")
    save_weights(folder, step.ema.weights(network), task.model_config, task.kind, name="ema")
    alignment = getattr(task.objective, "alignment", None)
    if alignment is not None:
        save_weights(folder, alignment.head.state_dict(), asdict(alignment.head.config), "repa", name="repa")
    if task.training_keys is not None:
        task.training_keys.astype("<u8").tofile(folder / runs.TRAINING_KEYS_FILE)
    state.write(folder)


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """A checkpoint that this run may go on from.

    Attributes:
        folder: the checkpoint.
        state: where it stands; `accepted` includes what differs now.
        converted: engine states for any number of ranks, made from those of the checkpoint; None where these fit.
    """

    folder: Path
    state: TrainerState
    converted: Path | None


def find_resumable(
    run_checkpoints: Path, *, expected: TrainerState, accept_changed: Sequence[str], ranks: Ranks
) -> Resumable | None:
    """The newest valid checkpoint, converted where another number of ranks wrote it (all ranks call and agree).

    Args:
        run_checkpoints: the run's checkpoints folder.
        expected: configuration, data, engine and ranks of this run.
        accept_changed: settings that may differ.
        ranks: this rank; the main one looks.

    Returns:
        The checkpoint, or None when there is none.

    Raises:
        UserError: configuration, data or engine have changed, or all checkpoints are damaged.
    """
    found, refusal = None, None
    if ranks.is_main:
        try:
            found = _choose(run_checkpoints, expected, accept_changed)
        except UserError as error:
            refusal = str(error)
    found, refusal = ranks.from_main((found, refusal))
    if refusal is not None:
        raise UserError(refusal)
    return found


def _choose(run_checkpoints: Path, expected: TrainerState, accept_changed: Sequence[str]) -> Resumable | None:
    compared = compare_newest(run_checkpoints, expected, accept_changed)
    if compared is None:
        return None
    folder, state, changes = compared
    checkpoints.set_aside_newer(folder)
    for change in changes:
        logger.warning("going on with a changed setting: %s", change)
    state.accepted.extend(f"from step {state.step}: {change}" for change in changes)
    converted = _convert(folder) if _needs_conversion(folder, state, expected) else None
    return Resumable(folder=folder, state=state, converted=converted)


def refuse_changed(
    config: RunConfig, settings: dict[str, Any], data: dict[str, Any], init_from: dict[str, str], unknown: set[str]
) -> int:
    """What going on from a run's newest checkpoint would refuse, without starting; nothing is written.

    Args:
        config: the run.
        settings, data, init_from: see `TrainerState`; no data are not compared.
        unknown: settings that cannot be told before a start.

    Returns:
        The step that it would go on from, 0 for a new run.

    Raises:
        Changed, UserError: see `compare_newest`.
    """
    loop = config.loop
    expected = TrainerState(
        step=0,
        images=0,
        epoch=0,
        images_in_epoch=0,
        ema_images=0,
        world_size=1,
        engine=config.engine_name,
        config=settings,
        data=flatten(data),
        init_from=init_from,
    )
    accepted = [*loop.accept_changed, *unknown]
    compared = compare_newest(Path(config.run_folder).resolve() / CHECKPOINTS_FOLDER, expected, accepted)
    return 0 if compared is None else compared[1].step


def compare_newest(
    run_checkpoints: Path, expected: TrainerState, accept_changed: Sequence[str]
) -> tuple[Path, TrainerState, list[str]] | None:
    """The newest valid checkpoint, where this run may go on from it; nothing is written.

    Args:
        run_checkpoints: the run's checkpoints folder.
        expected: configuration, engine, first weights of this run, and its data: without any they are not compared.
        accept_changed: settings that may differ.

    Returns:
        Its folder, its state, and what differs by request; None when there is no checkpoint.

    Raises:
        Changed: configuration, data or engine are others than those of the checkpoint.
        UserError: all checkpoints are damaged.
    """
    folder = runs.newest_valid(run_checkpoints, logger.warning)
    if folder is None:
        return None
    state = TrainerState.read(folder)
    changes = require_same(state.config, expected.config, "configuration", folder, accept_changed)
    if expected.data:
        changes += require_same(state.data, expected.data, "data", folder, accept_changed)
    if expected.init_from and state.init_from is not None:  # whoever goes on need not say it again
        begun, asked = ({_SETTING: of[_SETTING]} if of else {} for of in (state.init_from, expected.init_from))
        changes += require_same(begun, asked, "origin of the first weights", folder, accept_changed)
    _needs_conversion(folder, state, expected)
    return folder, state, changes


def _needs_conversion(folder: Path, found: TrainerState, expected: TrainerState) -> bool:
    """Whether the engine states are cut for other ranks. Raises Changed where they fit no more at all."""
    if (found.engine, found.world_size) == (expected.engine, expected.world_size):
        return False
    if found.engine == expected.engine == "deepspeed-zero0":  # every rank holds everything
        return False
    if found.engine in _SHARDED and expected.engine in _SHARDED:
        return True
    raise Changed(
        f"{folder} was written by {found.world_size} rank(s) of {found.engine}, this run has {expected.world_size} of "
        f"{expected.engine}; their states do not fit: start it as it was, or begin a new run with its weights "
        f"(init_from={folder})",
        [f"engine: {found.world_size} rank(s) of {found.engine} → {expected.world_size} of {expected.engine}"],
    )


def _convert(checkpoint: Path) -> Path:
    """Convert every engine's states of a whole checkpoint, which stays as it is; needs as much space on the disk again.

    Returns:
        Folder with one folder per engine, named as in the checkpoint.

    Raises:
        UserError: the conversion failed; says with which command and what it printed last.
    """
    output = _universal_folder(checkpoint)
    shutil.rmtree(output, ignore_errors=True)
    for engine in sorted(path for path in checkpoint.iterdir() if path.is_dir()):
        _convert_engine(engine, output / engine.name)
    return output


def _universal_folder(checkpoint: Path) -> Path:
    """Where the converted states of a checkpoint lie, beside it under a name that the next save clears away."""
    return checkpoint.with_name(f"{checkpoint.name}.universal.tmp")


def _convert_engine(source: Path, target: Path) -> None:
    processes = str(min(_NUM_PROCESSES, os.cpu_count() or 1))
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(source), "--output_folder", str(target)]
    command += ["--num_extract_workers", processes, "--num_merge_workers", processes]
    # Not a rank of the job that waits for it, and no user of its devices.
    environment = environment_of_no_rank(DS_ACCELERATOR="cpu")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = "\n  ".join((done.stdout + done.stderr).splitlines()[-_NUM_LINES:])
        raise UserError(
            f"the optimizer states in {source} could not be converted for another number of ranks:\n  {last}\n"
            f"start with as many ranks as before, or convert by hand to see more: {shlex.join(command)}"
        )


def load_checkpoint(found: Resumable, step: Step) -> None:
    """Fill engines and average (all ranks call); a converted copy is removed afterwards.

    Raises:
        UserError: a rank could not read its part.
    """
    failure: Exception | None = None
    try:
        for name, engine in step.engines.items():
            engine.load((found.converted or found.folder) / name)
        if step.ranks.is_main:
            weights, _ = load_weights(found.folder, step.task.kind, name="ema")
            averages = {name: weights[name] for name in step.ema.state_dict() if name in weights}
            step.ema.load_state_dict({**averages, "images_seen": torch.tensor(found.state.ema_images)})
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        failure = error
    if not step.ranks.agree(failure is None):
        raise UserError(
            f"checkpoint {found.folder} could not be loaded on every rank: {failure or 'see the other ranks'}"
        )
    if step.ranks.is_main:
        shutil.rmtree(_universal_folder(found.folder), ignore_errors=True)
