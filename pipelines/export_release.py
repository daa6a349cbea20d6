"""`nvg export-release`: weight folders of this project become checkpoints in the layout of the release."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.files import sync_path
from nvg.checkpoints.networks import read_network
from nvg.checkpoints.release_networks import (
    BARE_GENERATOR,
    EMA_GENERATOR,
    ReleasedNetwork,
    generators_to_release,
    tokenizer_to_release,
)
from nvg.errors import UserError
from nvg.models import ContentGenerator, RepaHead, StructureGenerator
from nvg.tokenizer import Tokenizer
from pipelines.checkpoints import weights_folder
from pipelines.release import RELEASE_FILE

BEGINNINGS = {"ema": EMA_GENERATOR, "model": BARE_GENERATOR}


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
            raise UserError("found neither --output nor --autoencoder-output; expected at least one file to write")


def plan_export(config: ExportReleaseConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    steps = []
    if config.autoencoder_output:
        steps.append(f"write the tokenizer of {config.run} to {config.autoencoder_output}")
    if config.output:
        steps.append(f"write both generators of {config.run} to {config.output}")
    return steps


def export_release(config: ExportReleaseConfig, report: Callable[[str], None]) -> None:
    """Reads weight folders and writes them under the released names.

    Args:
        config: what is written where.
        report: called with one line at a time.

    Raises:
        UserError: weights are missing, or have a setting that the released layout cannot hold.

    Release: ae.ckpt, d16.ckpt, d20.ckpt, d24.ckpt
    """
    if config.autoencoder_output:
        folder = weights_folder("run", str(Path(config.run) / "tokenizer"))
        network = _read(Tokenizer, "tokenizer", folder, "ema")
        _save(tokenizer_to_release(network), Path(config.autoencoder_output), _card(folder), report)
    if config.output:
        content = weights_folder("run", str(Path(config.run) / "content"))
        structure = weights_folder("run", str(Path(config.run) / "structure"))
        card = _card(content)
        tensors = _generators(content, structure, getattr(torch, card.get("rope_ids_dtype", "float32")))
        _save(tensors, Path(config.output), card, report)


def _generators(content: Path, structure: Path, rope_ids_dtype: torch.dtype) -> dict[str, Tensor]:
    """The EMA and the bare weights, as far as both folders have them."""
    heads = [_read(RepaHead, "repa", content, "repa")] if (content / "repa.safetensors").is_file() else []
    tensors: dict[str, Tensor] = {}
    for name, beginning in BEGINNINGS.items():
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


def _card(folder: Path) -> dict[str, Any]:
    """What the import wrote beside the weights; empty for weights trained here."""
    path = folder / RELEASE_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def _save(tensors: dict[str, Tensor], path: Path, card: dict[str, Any], report: Callable[[str], None]) -> None:
    checkpoint: dict[str, Any] = {"state_dict": tensors}
    if "licence" in card:
        report(card["licence"])
        checkpoint["licence"] = card["licence"]
    path = path.expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    torch.save(checkpoint, part)
    sync_path(part)
    part.replace(path)
    report(f"wrote {path}: {len(tensors)} tensors")
