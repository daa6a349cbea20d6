"""Released tensors ↔ networks of this project: sizes are read from the shapes, then everything is compared strictly.

Legend: K last stage, L = 2^K positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from nvg.checkpoints.networks import check_shapes
from nvg.checkpoints.release_names import (
    autoencoder_from_release,
    autoencoder_to_release,
    generator_from_release,
    generator_to_release,
)
from nvg.checkpoints.release_sizes import (
    Shapes,
    content_config,
    repa_config,
    sizes_from,
    structure_config,
    tokenizer_config,
)
from nvg.errors import UserError
from nvg.layers import token_ids
from nvg.models import ContentGenerator, RepaHead, StructureGenerator
from nvg.models.content import CONTENT_KIND
from nvg.tokenizer import Tokenizer

AUTOENCODER_PARTS = ("encoder.", "decoder.", "quantize.")
AUTOENCODER_IGNORED = ("ema_model.", "loss.", "total_visited_codes")
BARE_GENERATOR = "nvgformer."
EMA_GENERATOR = "ema_model.nvgformer."
GENERATOR_IGNORED = ("first_stage_model.", "repa_encoder.")

_TYPES: dict[str, type[nn.Module]] = {"content": ContentGenerator, "structure": StructureGenerator, "repa": RepaHead}

# Settings that the tensors themselves fix, and one that only a training needs.
_NOT_COMPARED = ("width", "canvas_scales", "drop_path_rate")


@dataclass(frozen=True, kw_only=True)
class ReleasedNetwork:
    """One network of a release under this project's names.

    `kind` is tokenizer, content, structure or repa; `config` is that of the network; tensors are as in the file.
    """

    kind: str
    config: Any
    tensors: dict[str, Tensor]


def select(
    tensors: Mapping[str, Tensor], wanted: tuple[str, ...], ignored: tuple[str, ...], where: str
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Divides the names of a file into what is read and what is ignored.

    Args:
        tensors: all of the file.
        wanted: beginnings of the names that are read.
        ignored: beginnings (or whole names) of those that are known and not needed.
        where: the file, for messages.

    Returns:
        what is read; number of ignored tensors by the beginning of their name.

    Raises:
        UserError: a name is neither, or nothing is wanted.
    """
    chosen = {name: tensor for name, tensor in tensors.items() if name.startswith(wanted)}
    counts: Counter[str] = Counter()
    unknown = []
    for name in tensors.keys() - chosen.keys():
        family = next((beginning for beginning in ignored if name.startswith(beginning)), None)
        if family is None:
            unknown.append(name)
        else:
            counts[family] += 1
    if unknown:
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise UserError(
            f"{where} has names that no release has: {', '.join(sorted(unknown)[:10])}{more}; expected only "
            f"{', '.join(beginning + '*' for beginning in (*wanted, *ignored))}: give the right file"
        )
    if not chosen:
        names = ", ".join(beginning + "*" for beginning in wanted)
        raise UserError(f"{where} has no tensor of {names}: give the right file (of a generator: --ema or --no-ema)")
    return chosen, dict(sorted(counts.items()))


def tokenizer_of_release(tensors: Mapping[str, Tensor], where: str) -> ReleasedNetwork:
    """The tokenizer in the tensors of a released autoencoder.

    Args:
        tensors: encoder.*, decoder.*, quantize.*
        where: the file, for messages.

    Raises:
        UserError: tensors are missing, extra or misshapen (the first ten are named).

    Release: bare names of ae.ckpt
    """
    config = sizes_from(tokenizer_config, _shapes(tensors), where)
    levels = len(config.width_multipliers)
    expected = autoencoder_to_release(_meta_state(Tokenizer, config), levels)
    _check(tensors, expected, where)
    return ReleasedNetwork(kind="tokenizer", config=config, tensors=autoencoder_from_release(tensors, levels))


def generators_of_release(tensors: Mapping[str, Tensor], where: str) -> list[ReleasedNetwork]:
    """Content generator, structure generator and, where there is one, the REPA head of a released generator.

    Args:
        tensors: names without their beginning `nvgformer.` or `ema_model.nvgformer.`
        where: the file, for messages.

    Raises:
        UserError: tensors are missing, extra or misshapen (the first ten are named), or the rotary ids are others.

    Release: nvgformer.* of d16.ckpt, d20.ckpt, d24.ckpt
    """
    configs = _generator_configs(tensors, where)
    expected = generator_to_release({kind: _meta_state(_TYPES[kind], config) for kind, config in configs.items()})
    rope_ids = _rope_ids(configs["content"].num_positions)
    _check(tensors, expected | {"rope_ids": rope_ids}, where)
    if not torch.equal(tensors["rope_ids"].double(), rope_ids.double()):
        raise UserError(f"{where}: rope_ids are not those of the released networks; they would rotate otherwise here")
    configs["content"] = replace(configs["content"], canvas_scales=tensors["scale_factors"].tolist())
    states = generator_from_release(tensors)
    return [ReleasedNetwork(kind=kind, config=config, tensors=states[kind]) for kind, config in configs.items()]


def tokenizer_to_release(tokenizer: ReleasedNetwork) -> dict[str, Tensor]:
    """Tensors of a tokenizer under released names.

    Raises:
        UserError: the tokenizer has a setting that the released layout cannot hold.
    """
    released = autoencoder_to_release(tokenizer.tensors, len(tokenizer.config.width_multipliers))
    where = "the exported tokenizer"
    _check_same_settings([tokenizer], {"tokenizer": sizes_from(tokenizer_config, _shapes(released), where)})
    tokenizer_of_release(released, where)
    return released


def generators_to_release(networks: list[ReleasedNetwork], rope_ids_dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of both generators (and of the REPA head, if it is given) under released names, with `rope_ids`.

    Args:
        networks: content, structure and, where there is one, repa.
        rope_ids_dtype: in which the rotary ids are stored.

    Raises:
        UserError: a network has a setting that the released layout cannot hold.
    """
    released = generator_to_release({network.kind: network.tensors for network in networks})
    released["rope_ids"] = _rope_ids(networks[0].config.num_positions).to(rope_ids_dtype)
    where = "the exported generator"
    _check_same_settings(networks, _generator_configs(released, where))
    generators_of_release(released, where)
    return released


def check_same_space(tokenizer: ReleasedNetwork, content: ReleasedNetwork) -> None:
    """Raises UserError unless the generator was made for a tokenizer of this shape."""
    names = ("num_positions", "latent_channels", "codebook_size")
    different = [
        f"{name} {getattr(tokenizer.config, name)} and {getattr(content.config, name)}"
        for name in names
        if getattr(tokenizer.config, name) != getattr(content.config, name)
    ]
    if different:
        raise UserError(
            f"autoencoder and generator do not fit each other: {', '.join(different)}; give two files of one release"
        )


def _generator_configs(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    shapes = _shapes(tensors)
    configs: dict[str, Any] = {
        "content": sizes_from(content_config, shapes, where),
        "structure": sizes_from(structure_config, shapes, where),
    }
    if any(name.startswith("projector.") for name in tensors):
        configs["repa"] = sizes_from(repa_config, shapes, where)
    return configs


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _meta_state(network_type: Callable[[Any], nn.Module], config: object) -> dict[str, Tensor]:
    with torch.device("meta"):
        return network_type(config).state_dict()


def _rope_ids(num_positions: int) -> Tensor:
    """The buffer of the release: content rows with all structure channels 0. float32 (1, 1 + L, 3 + K)."""
    last_stage = num_positions.bit_length() - 1
    empty_NL = torch.zeros(1, num_positions, dtype=torch.int64)
    return token_ids(empty_NL, torch.tensor([last_stage]), [CONTENT_KIND]).float()


def _check(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Names and shapes are those of the networks, and every tensor but the rotary ids is of a float type."""
    described = {
        name: tuple(tensor.shape) if tensor.is_floating_point() or name == "rope_ids" else str(tensor.dtype)
        for name, tensor in found.items()
    }
    check_shapes(described, _shapes(expected), where)


def _check_same_settings(networks: list[ReleasedNetwork], back: Mapping[str, Any]) -> None:
    """What an import of the exported tensors would build is what is exported."""
    for network in networks:
        again = back[network.kind]
        lost = [
            f"{field.name} {getattr(network.config, field.name)!r} (it would be {getattr(again, field.name)!r})"
            for field in fields(network.config)
            if field.name not in _NOT_COMPARED and getattr(network.config, field.name) != getattr(again, field.name)
        ]
        if lost:
            raise UserError(f"the released layout cannot hold these settings of the {network.kind}: {', '.join(lost)}")
