"""Weights in the folders of trainings: which checkpoint is whole, and what it was made of.

    checkpoints/step-XXXXXXXX/       a whole one holds the marker COMPLETE, with size and hash of every file
    checkpoints/step-XXXXXXXX.tmp/   one that is being written, or was left by a kill: none

A folder without a marker, or whose files differ from it, is never loaded: the one before is. Loading compares the
hashes of the whole folder first. How checkpoints are written is `pipelines.checkpoints`.

A checkpoint also says what it was made of: generators the tokenizer of their records, tokenizers the names of their
images and how these were cut. Whoever puts networks together compares.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from nvg.checkpoints.files import file_hash, load_config, weights_hash
from nvg.errors import UserError
from nvg.json_files import Count, read_json

MARKER_FILE = "COMPLETE"
STEP_PREFIX = "step-"
TRAINER_FILE, RELEASE_FILE, TRAINING_KEYS_FILE = "trainer.json", "release.json", "training_keys.bin"
logger = logging.getLogger(__name__)


class _Sealed(TypedDict):
    bytes: Count
    sha256: str


class _Marker(TypedDict):
    files: dict[str, _Sealed]


class _OfTrainer(TypedDict):
    data: _OfRelease


class _OfRelease(TypedDict):
    """What names the tokenizer of a generator."""

    tokenizer_hash: str


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` steps."""
    return f"{STEP_PREFIX}{step:08d}"


def step_of(folder: Path) -> int | None:
    """Step in a checkpoint folder's name; None for temporary and set-aside ones."""
    digits = folder.name.removeprefix(STEP_PREFIX)
    return int(digits) if folder.name.startswith(STEP_PREFIX) and digits.isdecimal() else None


def checkpoints_in(checkpoints: Path) -> list[Path]:
    """The committed checkpoints of a run, newest first: the one answer to whether a run has begun.

    What a killed save or a conversion left, and what was set aside, is none. A folder that is there may be damaged.
    """
    if not checkpoints.is_dir():
        return []
    return sorted((path for path in checkpoints.iterdir() if step_of(path) is not None), reverse=True)


def find_damage(folder: Path, *, hashes: bool = True) -> str | None:
    """Why a checkpoint folder must not be loaded; None when it is whole.

    Args:
        hashes: also read every file and compare its hash, not only sizes.
    """
    if not (folder / MARKER_FILE).is_file():
        return f"{MARKER_FILE} is missing"
    try:
        marker: Any = read_json(folder / MARKER_FILE, _Marker, "the marker of a whole checkpoint", "")
    except UserError:
        return f"{MARKER_FILE} is not readable"
    for name, expected in marker["files"].items():
        path = folder / name
        if "\0" in name or not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{name} has {size} bytes, expected {expected['bytes']}"
        if hashes and file_hash(path) != expected["sha256"]:
            return f"{name} has another sha256 than at saving"
    return None


def newest_valid(checkpoints: Path, report: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint.

    Args:
        checkpoints: may be missing. `latest` is not evidence: a kill between rename and its move leaves it one behind,
            so the folders themselves are judged.
        report: called with one line per damaged folder.

    Returns:
        None when there is none at all.

    Raises:
        UserError: there are checkpoints but every one is damaged.
    """
    damaged: dict[Path, str] = {}
    for folder in checkpoints_in(checkpoints):
        reason = find_damage(folder)
        if reason is None:
            return folder
        damaged[folder] = reason
        report(f"checkpoint {folder} is damaged ({reason}); using the one before")
    if damaged:  # left where they are: the next start must not take the empty folder for a new run
        raise UserError(
            f"every checkpoint in {checkpoints} is damaged:\n  "
            + "\n  ".join(f"{folder.name}: {reason}" for folder, reason in damaged.items())
            + "\nremove them to start anew"
        )
    return None


def resolve_checkpoint(path: Path | str) -> Path:
    """The newest valid checkpoint of a run folder or of its `checkpoints` folder, or the given one.

    Raises:
        UserError: nothing valid is there; says what was found.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"no run or checkpoint at {path}: the folder does not exist")
    if step_of(path) is not None or (path / MARKER_FILE).exists():
        reason = find_damage(path)
        if reason is not None:
            raise UserError(f"checkpoint {path} is damaged: {reason}; give the run folder to use an older one")
        return path
    folder = newest_valid(path / "checkpoints" if (path / "checkpoints").is_dir() else path, logger.warning)
    if folder is None:
        raise UserError(f"{path} holds no checkpoint; expected {path}/checkpoints/{STEP_PREFIX}XXXXXXXX")
    return folder


def weights_folder(key: str, path: str) -> Path:
    """The folder with safetensors files meant by the setting `key`: of a run, a checkpoint, or the weights themselves.

    Raises:
        UserError: nothing usable is there.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"{key}: found no folder {folder}, expected a training run, a checkpoint or weights")
    if any(folder.glob("*.safetensors")) and not (folder / "checkpoints").is_dir():
        return folder
    return resolve_checkpoint(folder)


def tokenizer_of(folder: str | Path) -> str | None:
    """sha256 of the weights of the tokenizer that made a generator's records; None where its folder does not say."""
    for file, form in ((TRAINER_FILE, _OfTrainer), (RELEASE_FILE, _OfRelease)):
        with suppress(UserError):
            found: Any = read_json(Path(folder) / file, form, "what a generator was made with", "")
            return found["data"]["tokenizer_hash"] if form is _OfTrainer else found["tokenizer_hash"]
    return None


def generators(*folders: str | Path) -> dict[str, str | None]:
    """What `require_tokenizer` compares of generators in some folders; an empty name is none."""
    return {f"the generator in {folder}": tokenizer_of(folder) for folder in folders if folder}


def require_tokenizer(key: str, folder: str | Path, weights: str, made_with: Mapping[str, str | None]) -> None:
    """Refuse a tokenizer that is not the one with which everything it is used with was made.

    Args:
        key: setting that names the tokenizer.
        folder: of its weights.
        weights: which of them, "ema" or "model".
        made_with: what was made with a tokenizer, in words, to that tokenizer's hash; None where it does not say, which
            is accepted and said once.

    Raises:
        UserError: something was made with another one, or there are no weights of a tokenizer.
    """
    load_config(folder, "tokenizer", weights)
    found = weights_hash(folder, weights)
    other = [f"\n  {what}: {made:.12}…" for what, made in made_with.items() if made not in (None, found)]
    if other:
        raise UserError(
            f"{key} is {folder}, whose {weights} weights have the hash {found:.12}…; expected the tokenizer with which "
            f"these were made:{''.join(other)}\ngive that one; or, to go on with this one, precompute the records and "
            "train the generators anew"
        )
    for what in (what for what, made in made_with.items() if made is None):
        _say_unknown(what)


@cache
def _say_unknown(what: str) -> None:
    logger.warning("%s: nothing says with which tokenizer it was trained; taken as it is", what)


def training_keys(folder: str | Path) -> np.ndarray | None:
    """uint64 hashes of the names of a tokenizer's training images; None where its folder does not say.

    Raises:
        UserError: the file is cut off.
    """
    path = Path(folder) / TRAINING_KEYS_FILE
    if not path.exists():
        return None
    data = path.read_bytes()
    if not data or len(data) % 8:
        raise UserError(
            f"{path}: found {len(data)} bytes, expected 8 for each training image; copy it again, or remove it: "
            "whether scored images were trained on is then not known"
        )
    return np.frombuffer(data, "<u8").copy()
