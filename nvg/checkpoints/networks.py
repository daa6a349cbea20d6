"""Networks back from their weight folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nvg.checkpoints.files import load_weights
from nvg.errors import UserError
from nvg.json_files import make
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
    return build_network(network_type, config, tensors, f"{folder}/{name}.safetensors")


def build_network(
    network_type: Callable[[Any], Network], config: Any, tensors: dict[str, Tensor], where: str
) -> Network:
    """A network in evaluation mode from its config and its tensors, which are of the file `where`; see `check_fit`."""
    try:
        with (
            torch.device("meta"),
            _NothingDrawn(),
        ):  # of whatever size: no memory is spent before the tensors are known to be there
            described = network_type(config)
    except RuntimeError as error:
        raise UserError(f"{where}: its description is of no possible network ({error}); restore it") from error
    check_fit(tensors, described, where)
    network = network_type(config)
    network.load_state_dict(tensors)
    return network.eval()


class _NothingDrawn(TorchFunctionMode):
    """Leaves out what would be written into tensors without storage: PyTorch spends a second on learning to do it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")  # `torch.nn.init` names it
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and isinstance(target, Tensor) and target.is_meta:
            return target
        return func(*args, **kwargs)


def read_network(network_type: type[nn.Module], folder: str | Path, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Config and tensors of a network that is not built; arguments and errors are those of `load_network`."""
    tensors, values = load_weights(folder, _KINDS[network_type][0], name)
    return network_config(network_type, values, folder), tensors


def network_config(network_type: type[nn.Module], values: Mapping[str, Any], folder: str | Path) -> Any:
    """The config of a network from the description in a folder; a UserError where it is none."""
    kind, config_type = _KINDS[network_type]
    return make(config_type, values, f"{folder}: the description of its {kind}", "give the folder of whole weights")


def check_fit(tensors: dict[str, Tensor], network: nn.Module, where: str) -> None:
    """Raises UserError unless names and shapes are those of the network and every number is finite; names which not."""
    expected = network.state_dict()
    check_shapes(
        {
            key: tuple(tensor.shape)
            if key not in expected or tensor.is_floating_point() == expected[key].is_floating_point()
            else str(tensor.dtype)
            for key, tensor in tensors.items()
        },
        {key: tuple(tensor.shape) for key, tensor in expected.items()},
        where,
    )
    if spoilt := [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise UserError(
            f"{where} holds numbers that are not finite in {', '.join(spoilt[:10])}; use an earlier checkpoint, or "
            "fetch the file again"
        )


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
