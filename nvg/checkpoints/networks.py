"""Networks back from their weight folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from nvg.checkpoints.files import load_weights
from nvg.errors import UserError
from nvg.models import (
    ContentGenerator,
    ContentGeneratorConfig,
    RepaHead,
    RepaHeadConfig,
    StructureGenerator,
    StructureGeneratorConfig,
)
from nvg.tokenizer import Dequantizer, DequantizerConfig, Tokenizer, TokenizerConfig

Network = TypeVar("Network", bound=nn.Module)

# What a weight folder calls a network, and what describes its architecture.
_KINDS: dict[type[nn.Module], tuple[str, Any]] = {
    Tokenizer: ("tokenizer", TokenizerConfig),
    Dequantizer: ("dequantizer", DequantizerConfig),
    ContentGenerator: ("content", ContentGeneratorConfig),
    StructureGenerator: ("structure", StructureGeneratorConfig),
    RepaHead: ("repa", RepaHeadConfig),
}


def load_network(network_type: type[Network], folder: str | Path, name: str = "ema") -> Network:
    """A network in evaluation mode, on the CPU.

    Args:
        network_type: Tokenizer, Dequantizer, ContentGenerator, StructureGenerator or RepaHead.
        folder: with `<name>.safetensors` and its description.
        name: which weights: "ema", "model", "repa", or "dequantizer" in a folder of records.

    Raises:
        UserError: a file is missing or damaged, or holds another network.
    """
    config, tensors = read_network(network_type, folder, name)
    network = network_type(config)
    check_fit(tensors, network, f"{folder}/{name}.safetensors")
    network.load_state_dict(tensors)
    return network.eval()


def read_network(network_type: type[nn.Module], folder: str | Path, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Config and tensors of a network that is not built; arguments and errors are those of `load_network`."""
    kind, config_type = _KINDS[network_type]
    tensors, values = load_weights(folder, kind, name)
    known = {field.name for field in fields(config_type)}
    if unknown := set(values) - known:
        raise UserError(f"{folder} names unknown settings {sorted(unknown)} of a {kind}; known are {sorted(known)}")
    return config_type(**values), tensors


def check_fit(tensors: dict[str, Tensor], network: nn.Module, where: str) -> None:
    """Raises UserError, naming the first differences, unless names and shapes are those of the network."""
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    check_shapes(found, expected, where)


def check_shapes(found: Mapping[str, object], expected: Mapping[str, object], where: str) -> None:
    """Raises UserError, naming the first ten missing, extra and misshapen tensors, if there are any.

    Args:
        found: name → shape, or whatever else is to be equal.
        expected: likewise.
        where: the file, for the message.
    """
    differences = [
        f"{key}: found {found.get(key, 'nothing')}, expected {expected.get(key, 'nothing')}"
        for key in sorted(found.keys() | expected.keys())
        if found.get(key) != expected.get(key)
    ]
    if differences:
        more = f" and {len(differences) - 10} more" if len(differences) > 10 else ""
        raise UserError(f"{where} holds another architecture: " + "; ".join(differences[:10]) + more)
