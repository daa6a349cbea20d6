"""The authors' checkpoints become weight folders of this project (`nvg import-release`), and the way back.

`nvg export-release` writes weights of this project, trained or imported, in the layout of the release.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from cluster.files import sync_path, write_atomically
from nvg.bounds import refuse
from nvg.checkpoints import file_hash, save_weights, weights_hash
from nvg.checkpoints.networks import read_network
from nvg.checkpoints.release_files import read_release_file, read_release_note
from nvg.checkpoints.release_networks import (
    AUTOENCODER_IGNORED,
    AUTOENCODER_PARTS,
    BARE_GENERATOR,
    EMA_GENERATOR,
    GENERATOR_IGNORED,
    ReleasedNetwork,
    check_same_space,
    generators_of_release,
    generators_to_release,
    select,
    tokenizer_of_release,
    tokenizer_to_release,
)
from nvg.checkpoints.runs import RELEASE_FILE, generators, require_tokenizer, tokenizer_of, weights_folder
from nvg.errors import UserError
from nvg.json_files import read_json
from nvg.models import ContentGenerator, RepaHead, StructureGenerator
from nvg.tokenizer import Tokenizer

LICENCE_NOTICE = (
    "The authors of the paper publish their weights under a licence that forbids commercial use. It also holds for the "
    "files made from them here. Read its terms where you got the weights, before you use them or pass them on. "
    "The licence of this project covers its code alone."
)
_TOKENIZER_HASH = "tokenizer_hash"
_BEGINNINGS = {"ema": EMA_GENERATOR, "model": BARE_GENERATOR}


@dataclass(frozen=True, kw_only=True)
class ImportReleaseConfig:
    """Which files become which folder.

    Attributes:
        autoencoder: ae.ckpt; its bare weights are read, with which the released generators were trained.
        generator: d16.ckpt, d20.ckpt or d24.ckpt.
        ema: of the generator read the EMA weights (written as "ema"), else the bare ones (written as "model").
        output: run folder; tokenizer/, content/ and structure/ are made in it.
    """

    autoencoder: str | None = None
    generator: str | None = None
    ema: bool = True
    output: str = ""

    def __post_init__(self) -> None:
        if not self.autoencoder and not self.generator:
            raise UserError("neither --autoencoder nor --generator is given; expected at least one released checkpoint")
        if not self.output:
            raise refuse("--output", self.output, "the folder to write", "name one")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """One file, what was read of it and what was not."""

    path: Path
    weights: str
    networks: list[ReleasedNetwork]
    ignored: dict[str, int]
    rope_ids_dtype: str | None = None
    tokenizer_hash: str | None = None


def plan_import(config: ImportReleaseConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    steps = []
    if config.autoencoder:
        steps.append(f"read the bare weights of {config.autoencoder}, check them, write {config.output}/tokenizer")
    if config.generator:
        read = f"read the {'EMA' if config.ema else 'bare'} weights of {config.generator}"
        steps.append(f"{read}, check them, write {config.output}/content and structure")
    return [*steps, f"write {RELEASE_FILE} with the licence notice beside the weights"]


def import_release(config: ImportReleaseConfig, report: Callable[[str], object] = print) -> Path:
    """Reads and checks everything, then writes; `report` gets one line at a time.

    Returns:
        The run folder, as `nvg sample run=…` takes it.

    Raises:
        UserError: a file is none of the release, the two do not fit, or the folder holds networks already.

    Release: ae.ckpt, d16.ckpt, d20.ckpt, d24.ckpt
    """
    report(LICENCE_NOTICE)
    output = Path(config.output).expanduser().absolute()
    sources = []
    if config.autoencoder:
        sources.append(_read_autoencoder(Path(config.autoencoder).expanduser()))
    if config.generator:
        sources.append(_read_generator(Path(config.generator).expanduser(), config.ema))
    if len(sources) == 2:
        check_same_space(sources[0].networks[0], sources[1].networks[0])
    folders = dict.fromkeys(_folder(network) for source in sources for network in source.networks)
    if taken := [str(output / folder) for folder in folders if (output / folder).exists()]:
        raise UserError(f"{', '.join(taken)} exists; remove it or choose another --output")
    part = output / ".import.part"
    shutil.rmtree(part, ignore_errors=True)
    tokenizer_hash: str | None = None
    for source in sources:
        for family, count in source.ignored.items():
            report(f"{source.path.name}: ignored {count} tensor(s) of {family}*")
        _write(source, part, tokenizer_hash)
        if config.autoencoder and source is sources[0]:  # a generator beside it is of this one
            tokenizer_hash = weights_hash(part / "tokenizer", "ema")
    for folder in folders:
        (part / folder).replace(output / folder)
        report(f"wrote {output / folder}")
    part.rmdir()
    return output


def _read_autoencoder(path: Path) -> _Source:
    tensors, ignored = select(read_release_file(path), AUTOENCODER_PARTS, AUTOENCODER_IGNORED, str(path))
    return _Source(path=path, weights="bare", networks=[tokenizer_of_release(tensors, str(path))], ignored=ignored)


def _read_generator(path: Path, ema: bool) -> _Source:
    wanted, other = (EMA_GENERATOR, BARE_GENERATOR) if ema else (BARE_GENERATOR, EMA_GENERATOR)
    tensors, ignored = select(read_release_file(path), (wanted,), (other, *GENERATOR_IGNORED), str(path))
    tensors = {name.removeprefix(wanted): tensor for name, tensor in tensors.items()}
    return _Source(
        path=path,
        weights="ema" if ema else "bare",
        networks=generators_of_release(tensors, str(path)),
        ignored=ignored,
        rope_ids_dtype=str(tensors["rope_ids"].dtype).removeprefix("torch."),
        tokenizer_hash=read_release_note(path, _TOKENIZER_HASH),
    )


def _folder(network: ReleasedNetwork) -> str:
    return "content" if network.kind == "repa" else network.kind


def _name(network: ReleasedNetwork, source: _Source) -> str:
    """Of the safetensors file. The tokenizer is always "ema": every step takes that name unless told otherwise."""
    if network.kind == "repa":
        return "repa"
    return "model" if network.kind != "tokenizer" and source.weights == "bare" else "ema"


def _write(source: _Source, output: Path, tokenizer_hash: str | None) -> None:
    tokenizer_hash = source.tokenizer_hash or tokenizer_hash
    facts = {**_card(source), **({"tokenizer_hash": tokenizer_hash} if tokenizer_hash else {})}
    card = json.dumps(facts, indent=2).encode()
    for network in source.networks:
        folder = output / _folder(network)
        save_weights(folder, network.tensors, asdict(network.config), network.kind, _name(network, source))
        write_atomically(folder / RELEASE_FILE, card)


def _card(source: _Source) -> dict[str, Any]:
    """What is known about where the weights come from."""
    return {
        "licence": LICENCE_NOTICE,
        "file": source.path.name,
        "bytes": source.path.stat().st_size,
        "sha256": file_hash(source.path),
        "weights": source.weights,
        "ignored": source.ignored,
        "rope_ids_dtype": source.rope_ids_dtype,
        "imported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@dataclass(frozen=True, kw_only=True)
class ExportReleaseConfig:
    """What is written where.

    Attributes:
        run: folder with tokenizer/, content/ and structure/, imported or trained.
        output: checkpoint of both generators; empty writes none.
        autoencoder_output: checkpoint of the tokenizer; empty writes none.
    """

    run: str
    output: str | None = None
    autoencoder_output: str | None = None

    def __post_init__(self) -> None:
        if not self.output and not self.autoencoder_output:
            raise UserError("neither --output nor --autoencoder-output is given; expected at least one file to write")


def plan_export(config: ExportReleaseConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    steps = []
    if config.autoencoder_output:
        steps.append(f"write the tokenizer of {config.run} to {config.autoencoder_output}")
    if config.output:
        steps.append(f"write both generators of {config.run} to {config.output}")
    return steps


def export_release(config: ExportReleaseConfig, report: Callable[[str], object] = print) -> None:
    """Reads weight folders and writes them under the released names; `report` gets one line at a time.

    Raises:
        UserError: weights are missing, or have a setting that the released layout cannot hold.

    Release: ae.ckpt, d16.ckpt, d20.ckpt, d24.ckpt
    """
    if config.autoencoder_output:
        folder = weights_folder("run", str(Path(config.run) / "tokenizer"))
        network = _read(Tokenizer, "tokenizer", folder, "ema")
        _save(tokenizer_to_release(network), Path(config.autoencoder_output), _import_card(folder), report)
    if config.output:
        content = weights_folder("run", str(Path(config.run) / "content"))
        structure = weights_folder("run", str(Path(config.run) / "structure"))
        made_with = generators(content, structure)
        if (Path(config.run) / "tokenizer").is_dir():
            require_tokenizer("run", weights_folder("run", str(Path(config.run) / "tokenizer")), "ema", made_with)
        card = {**_import_card(content), _TOKENIZER_HASH: tokenizer_of(content)}
        tensors = _generators(content, structure, getattr(torch, card.get("rope_ids_dtype") or "float32"))
        _save(tensors, Path(config.output), card, report)


def _generators(content: Path, structure: Path, rope_ids_dtype: torch.dtype) -> dict[str, Tensor]:
    """The EMA and the bare weights, as far as both folders have them."""
    heads = [_read(RepaHead, "repa", content, "repa")] if (content / "repa.safetensors").is_file() else []
    tensors: dict[str, Tensor] = {}
    for name, beginning in _BEGINNINGS.items():
        if all((folder / f"{name}.safetensors").is_file() for folder in (content, structure)):
            networks = [
                _read(ContentGenerator, "content", content, name),
                _read(StructureGenerator, "structure", structure, name),
                *heads,
            ]
            released = generators_to_release(networks, rope_ids_dtype)
            tensors |= {beginning + key: tensor for key, tensor in released.items()}
    if not tensors:
        raise UserError(f"{content} and {structure} hold no weights of the same name; expected ema or model in both")
    return tensors


def _read(network_type: type[nn.Module], kind: str, folder: Path, name: str) -> ReleasedNetwork:
    config, tensors = read_network(network_type, folder, name)
    return ReleasedNetwork(kind=kind, config=config, tensors=tensors)


class _ImportCard(TypedDict):
    licence: NotRequired[str]
    rope_ids_dtype: NotRequired[Literal["float32", "float16", "bfloat16", "float64", "int64", "int32"] | None]
    tokenizer_hash: NotRequired[str]


def _import_card(folder: Path) -> dict[str, Any]:
    """What the import wrote beside the weights; empty for weights trained here."""
    path = folder / RELEASE_FILE
    if not path.exists():
        return {}
    card: Any = read_json(path, _ImportCard, "what the import wrote beside the weights", "import the weights again")
    return card


def _save(tensors: dict[str, Tensor], path: Path, card: dict[str, Any], report: Callable[[str], object]) -> None:
    checkpoint: dict[str, Any] = {"state_dict": tensors}
    if "licence" in card:
        report(card["licence"])
        checkpoint["licence"] = card["licence"]
    if card.get(_TOKENIZER_HASH):
        checkpoint[_TOKENIZER_HASH] = card[_TOKENIZER_HASH]
    path = path.expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    torch.save(checkpoint, part)
    sync_path(part)
    part.replace(path)
    report(f"wrote {path}: {len(tensors)} tensors")
