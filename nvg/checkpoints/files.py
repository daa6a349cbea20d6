"""One folder of weights: `<name>.safetensors` and the JSON file that says what they are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nvg.errors import UserError
from nvg.json_files import read_json

SCHEMA_VERSION = 1


class _Description(TypedDict):
    kind: str
    schema_version: int
    config: dict[str, Any]


def save_weights(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    kind: str,
    name: str = "model",
) -> Path:
    """Writes `<name>.safetensors` and its description, each under a temporary name and then renamed.

    The description is `config.json`, or `<name>.json` for names other than model and ema, so that several networks can
    share a folder.

    Args:
        folder: made when missing.
        tensors: any device; stored contiguous.
        config: what is needed to build the network again, JSON-serialisable.
        kind: what the network is, e.g. "tokenizer"; compared on loading.
        name: of the safetensors file, without its ending.

    Returns:
        the safetensors file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{name}.safetensors"
    part = weights.with_suffix(".safetensors.part")
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, part)
    _sync_rename(part, weights)
    description = _description(folder, name)
    part = description.with_suffix(".json.part")
    part.write_text(json.dumps({"kind": kind, "schema_version": SCHEMA_VERSION, "config": dict(config)}, indent=2))
    _sync_rename(part, description)
    return weights


def load_weights(folder: str | Path, kind: str, name: str = "model") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_weights` wrote.

    Args:
        folder: with the weights and their description.
        kind: what the network must be.
        name: of the safetensors file, without its ending.

    Returns:
        tensors on the CPU and the config.

    Raises:
        UserError: a file is missing or damaged, or holds another kind of network.
    """
    config = load_config(folder, kind, name)
    weights = Path(folder) / f"{name}.safetensors"
    return load_tensors(weights, "restore it or use an earlier checkpoint"), config


def load_tensors(path: Path, advice: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file on the CPU; a UserError with an advice where it is none, or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, RuntimeError, ValueError) as error:  # of its header, of torch
        raise UserError(f"{path} is damaged ({error}); {advice}") from error


def load_config(folder: str | Path, kind: str, name: str = "model") -> dict[str, Any]:
    """The config that `save_weights` wrote beside weights; arguments and errors are those of `load_weights`."""
    folder = Path(folder)
    weights, description = folder / f"{name}.safetensors", _description(folder, name)
    for file in (weights, description):
        if not file.is_file():
            raise UserError(
                f"{file} is missing; expected the weights of a {kind} there: check the path or run its training"
            )
    header = read_json(description, _Description, f"the description of a {kind}", "write it again")
    found = (header["kind"], header["schema_version"])
    if found != (kind, SCHEMA_VERSION):
        raise UserError(
            f"{description} describes a {found[0]} of schema {found[1]}; expected a {kind} of schema {SCHEMA_VERSION}: "
            "give the folder of the right network"
        )
    return header["config"]


def weights_hash(folder: str | Path, name: str = "model") -> str:
    """SHA-256 (64 hex digits) of `<name>.safetensors` in a folder: what records and results name weights by."""
    return file_hash(Path(folder) / f"{name}.safetensors")


def file_hash(path: str | Path) -> str:
    """SHA-256 (64 hex digits) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _description(folder: Path, name: str) -> Path:
    return folder / ("config.json" if name in ("model", "ema") else f"{name}.json")


def _sync_rename(part: Path, final: Path) -> None:
    part.chmod(0o644)  # safetensors writes for the owner alone; workers of a shared cluster read too
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    part.replace(final)
