"""`nvg import-release`: the authors' checkpoints become weight folders of this project."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.files import write_atomically
from nvg.checkpoints import save_weights
from nvg.checkpoints.release_files import read_release_file
from nvg.checkpoints.release_networks import (
    AUTOENCODER_IGNORED,
    AUTOENCODER_PARTS,
    BARE_GENERATOR,
    EMA_GENERATOR,
    GENERATOR_IGNORED,
    ReleasedNetwork,
    check_same_space,
    generators_of_release,
    select,
    tokenizer_of_release,
)
from nvg.errors import UserError

RELEASE_FILE = "release.json"
LICENCE_NOTICE = (
    "The authors of the paper publish their weights under a licence that forbids commercial use. It also holds for the "
    "files made from them here. Read its terms where you got the weights, before you use them or pass them on. "
    "The licence of this project covers its code alone."
)


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
            raise UserError("found neither --autoencoder nor --generator; expected at least one released checkpoint")
        if not self.output:
            raise UserError("output: found nothing, expected the folder to write; give --output")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """One file, what was read of it and what was not."""

    path: Path
    weights: str
    networks: list[ReleasedNetwork]
    ignored: dict[str, int]
    rope_ids_dtype: str | None = None


def plan_import(config: ImportReleaseConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    steps = []
    if config.autoencoder:
        steps.append(f"read the bare weights of {config.autoencoder}, check them, write {config.output}/tokenizer")
    if config.generator:
        which = "EMA" if config.ema else "bare"
        steps.append(
            f"read the {which} weights of {config.generator}, check them, write {config.output}/content and structure"
        )
    return [*steps, f"write {RELEASE_FILE} with the licence notice beside the weights"]


def import_release(config: ImportReleaseConfig, report: Callable[[str], None]) -> Path:
    """Reads and checks everything, then writes.

    Args:
        config: what is read, and where to.
        report: called with one line at a time.

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
    for source in sources:
        for family, count in source.ignored.items():
            report(f"{source.path.name}: ignored {count} tensor(s) of {family}*")
        _write(source, part)
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
    )


def _folder(network: ReleasedNetwork) -> str:
    return "content" if network.kind == "repa" else network.kind


def _name(network: ReleasedNetwork, source: _Source) -> str:
    """Of the safetensors file. The tokenizer is always "ema": every step takes that name unless told otherwise."""
    if network.kind == "repa":
        return "repa"
    return "model" if network.kind != "tokenizer" and source.weights == "bare" else "ema"


def _write(source: _Source, output: Path) -> None:
    card = json.dumps(_card(source), indent=2).encode()
    for network in source.networks:
        folder = output / _folder(network)
        save_weights(folder, network.tensors, asdict(network.config), network.kind, _name(network, source))
        write_atomically(folder / RELEASE_FILE, card)


def _card(source: _Source) -> dict[str, Any]:
    """What is known about where the weights come from."""
    with source.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "licence": LICENCE_NOTICE,
        "file": source.path.name,
        "bytes": source.path.stat().st_size,
        "sha256": digest,
        "weights": source.weights,
        "ignored": source.ignored,
        "rope_ids_dtype": source.rope_ids_dtype,
        "imported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
