"""An exported folder: a model on its own, to be handed on.

    model.json                                what the model is, with the SHA-256 of each weight file; written last
    weights/tokenizer, content, structure     safetensors, each with the JSON that describes it
    results.json                              of the evaluation that scored it, where one has
    README.md                                 the model card

Weight files are copied byte for byte, so their hashes are those of the run, its records and its results.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from nvg.bounds import refuse
from nvg.checkpoints import file_hash, load_config
from nvg.checkpoints.runs import RELEASE_FILE
from nvg.errors import UserError
from nvg.folders.card import model_card
from nvg.folders.run import RESULTS_FILE, Parts, Settings, Weights, read_evaluation
from nvg.json_files import make, read_json
from nvg.pictures import Cut
from nvg.sampling import SamplingConfig

MODEL_FILE, CARD_FILE, WEIGHTS_FOLDER = "model.json", "README.md", "weights"
_KIND, _SCHEMA_VERSION = "nvg-model", 1
_ADVICE = "export the run again, or download the whole folder"


class _Network(TypedDict):
    weights: Weights
    sha256: str


class _Networks(TypedDict):
    tokenizer: _Network
    content: _Network
    structure: NotRequired[_Network]


class _Model(TypedDict):
    kind: Literal["nvg-model"]
    schema_version: Literal[1]
    networks: _Networks
    class_names: list[str]
    cut: Cut
    sampling: dict[str, Any]
    scored_by: str | None
    licences: list[str]
    data: dict[str, Any]


def write_export(folder: Path, parts: Parts, settings: Settings) -> Path:
    """Write a model into a folder of its own.

    Args:
        folder: empty or missing, or an earlier export, which is replaced file by file; its model card with it.
        parts: the networks.
        settings: how they are sampled.

    Returns:
        The folder.

    Raises:
        UserError: the folder holds something else, or is the one the model came from.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MODEL_FILE).is_file())):
        raise refuse("folder", str(folder), "a folder that is empty, missing, or an earlier export", "name another one")
    inside = folder / WEIGHTS_FOLDER
    if any(inside / kind == source.resolve() for kind, (source, _) in parts.by_name.items()):
        raise refuse("folder", str(folder), "another one than the model was loaded from", "name another one")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).unlink(missing_ok=True)  # it comes last: a folder without it is no model
    networks = {}
    for kind, (source, name) in parts.by_name.items():
        load_config(source, kind, name)
        networks[kind] = {"weights": name, "sha256": _copy_network(source, inside / kind, name)}
    if parts.structure is None:
        shutil.rmtree(inside / "structure", ignore_errors=True)
    model = {
        "kind": _KIND,
        "schema_version": _SCHEMA_VERSION,
        "networks": networks,
        "class_names": parts.class_names,
        "cut": parts.cut,
        "sampling": asdict(settings.sampling),
        "scored_by": settings.scored_by,
        "licences": parts.licences,
        "data": parts.data,
    }
    if settings.results is None:
        (folder / RESULTS_FILE).unlink(missing_ok=True)
    else:
        _write(folder / RESULTS_FILE, json.dumps(settings.results, indent=2))
    _write(folder / CARD_FILE, model_card(parts, settings))
    _write(folder / MODEL_FILE, json.dumps(model, indent=2))
    return folder


def find_export(folder: Path) -> tuple[Parts, Settings]:
    """The networks of an exported folder and how they are sampled.

    Raises:
        UserError: a file is missing or damaged, or is of another model.
    """
    path = folder / MODEL_FILE
    model: Any = read_json(path, _Model, "what an exported model is", _ADVICE)
    networks = model["networks"]
    for kind, network in networks.items():
        _check_network(folder, kind, network)
    inside = folder / WEIGHTS_FOLDER
    structure = inside / "structure" if "structure" in networks else None
    results = None
    if model["scored_by"] is not None:
        results = read_evaluation(folder / RESULTS_FILE)
    parts = Parts(
        folder=folder,
        tokenizer=inside / "tokenizer",
        content=inside / "content",
        structure=structure,
        weights=networks["content"]["weights"],
        tokenizer_weights=networks["tokenizer"]["weights"],
        class_names=model["class_names"],
        cut=model["cut"],
        licences=model["licences"],
        data=model["data"],
    )
    sampling = make(SamplingConfig, model["sampling"], f"{path}: sampling", _ADVICE)
    note = "" if results is not None else f"{folder}: no evaluation has scored these weights; sampled as {path} says"
    return parts, Settings(sampling=sampling, scored_by=model["scored_by"], results=results, note=note)


def _check_network(folder: Path, kind: str, network: dict[str, str]) -> None:
    file = folder / WEIGHTS_FOLDER / kind / f"{network['weights']}.safetensors"
    if not file.is_file():
        raise UserError(f"{file} is missing; {folder / MODEL_FILE} expects it; {_ADVICE}")
    found = file_hash(file)
    if found != network["sha256"]:
        raise UserError(
            f"{file} has the hash {found:.12}…; {folder / MODEL_FILE} expects {network['sha256']:.12}…: it is damaged, "
            f"or of another model; {_ADVICE}"
        )


def _copy_network(source: Path, target: Path, name: str) -> str:
    """Weights, their description and the licence notice beside them; the hash of the weights."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in (f"{name}.safetensors", "config.json", RELEASE_FILE):
        if (source / file).is_file():
            shutil.copyfile(source / file, target / file)
    return file_hash(target / f"{name}.safetensors")


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text.rstrip("\n") + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
