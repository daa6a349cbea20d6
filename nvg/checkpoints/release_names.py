"""Names of the released weights ↔ names of this project.

The released autoencoder wraps every convolution and norm once more and counts decoder levels fine to coarse; the
released generator keeps both networks, and the REPA head, in one flat module.

A table holds pairs of templates (released name, own name) and is read in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

from torch import Tensor

from nvg.errors import UserError

Table = Sequence[tuple[str, str]]

# What a field of a template may stand for.
_FIELDS = {
    "leaf": "weight|bias",
    "net": "content|structure",
    "coder": "encoder|decoder",
    "kind": "class|stage",
    "role": "query|key",
    "end": "in|out",
    "n": r"\d+",
    "m": r"\d+",
}

_GENERATORS: Table = (
    ("structure_content_cond_embed.{leaf}", "structure.canvas_in.{leaf}"),
    ("structure_time_embed.{end}_layer.{leaf}", "structure.time_embedding.linear_{end}.{leaf}"),
    ("structure_embed.{leaf}", "structure.structure_in.{leaf}"),
    ("structure_head.adaLN_modulation.1.{leaf}", "structure.head.modulation.linear.{leaf}"),
    ("structure_head.linear.{leaf}", "structure.head.linear.{leaf}"),
    ("content_start_embed", "content.start_canvas"),
    ("content_embed.{leaf}", "content.canvas_in.{leaf}"),
    ("x0_head.adaLN_modulation.1.{leaf}", "content.head.modulation.linear.{leaf}"),
    ("x0_head.linear.{leaf}", "content.head.linear.{leaf}"),
    ("cls_head.linear.{leaf}", "content.token_head.{leaf}"),
    ("scale_factors", "content.canvas_scales"),
    ("{net}_{kind}_embed.weight", "{net}.{kind}_embedding.weight"),
    ("{net}_blocks.{n}.modulation.lin.{leaf}", "{net}.trunk.blocks.{n}.modulation.linear.{leaf}"),
    ("{net}_blocks.{n}.linear1.{leaf}", "{net}.trunk.blocks.{n}.linear_in.{leaf}"),
    ("{net}_blocks.{n}.linear2.{leaf}", "{net}.trunk.blocks.{n}.linear_out.{leaf}"),
    ("{net}_blocks.{n}.norm.{role}_norm.scale", "{net}.trunk.blocks.{n}.{role}_norm.gain"),
    ("projector.{n}.{leaf}", "repa.layers.{n}.{leaf}"),
)

# Inside a residual block.
_BLOCK: Table = (
    ("norm1.norm", "norm1"),
    ("conv1.conv", "conv1"),
    ("norm2.norm", "norm2"),
    ("conv2.conv", "conv2"),
    ("nin_shortcut.conv", "shortcut"),
)


def generator_from_release(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Splits a released generator into the state dicts of its networks; `rope_ids` is computed here instead.

    Args:
        tensors: released name → tensor, any dtype; they are passed on, not copied.

    Returns:
        for "content", "structure" and "repa" (the REPA head), the names of this project → tensor.

    Raises:
        UserError: a name the release does not have.

    Release: nvgformer.* of d16.ckpt, d20.ckpt, d24.ckpt
    """
    networks: dict[str, dict[str, Tensor]] = {"content": {}, "structure": {}, "repa": {}}
    for name, tensor in tensors.items():
        if name == "rope_ids":
            continue
        network, _, rest = _translate(name, _GENERATORS).partition(".")
        networks[network][rest] = tensor
    return networks


def generator_to_release(networks: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Inverse of `generator_from_release`: state dicts by network → one flat dict of released names."""
    table = _turned(_GENERATORS)
    return {
        _translate(f"{network}.{name}", table): tensor
        for network, tensors in networks.items()
        for name, tensor in tensors.items()
    }


def autoencoder_from_release(tensors: Mapping[str, Tensor], num_levels: int) -> dict[str, Tensor]:
    """State dict of `Tokenizer` (encoder, decoder and, where present, the dequantizer) from released names.

    Args:
        tensors: released name → tensor, any dtype; they are passed on, not copied.
        num_levels: levels of the autoencoder, needed because the decoder counts them the other way round.

    Returns:
        names of this project → tensor.

    Raises:
        UserError: a name the release does not have.

    Release: encoder.*, decoder.*, quantize.* of ae.ckpt
    """
    table = _autoencoder(num_levels)
    return {_translate(name, table): tensor for name, tensor in tensors.items()}


def autoencoder_to_release(tensors: Mapping[str, Tensor], num_levels: int) -> dict[str, Tensor]:
    """Inverse of `autoencoder_from_release`."""
    table = _turned(_autoencoder(num_levels))
    return {_translate(name, table): tensor for name, tensor in tensors.items()}


@cache
def _autoencoder(num_levels: int) -> Table:
    levels = [(f"decoder.up.{num_levels - 1 - level}", f"decoder.levels.{level}") for level in range(num_levels)]
    blocks = [
        ("{coder}.mid.block_1", "{coder}.middle.0"),
        ("{coder}.mid.block_2", "{coder}.middle.1"),
        ("encoder.down.{n}.block.{m}", "encoder.levels.{n}.blocks.{m}"),
        *((f"{up}.block.{{m}}", f"{level}.blocks.{{m}}") for up, level in levels),
    ]
    layers = [
        *((f"{block}.{part}", f"{own}.{own_part}") for block, own in blocks for part, own_part in _BLOCK),
        ("encoder.down.{n}.downsample.conv.conv", "encoder.levels.{n}.resample.conv"),
        *((f"{up}.upsample.conv.conv", f"{level}.resample.conv") for up, level in levels),
        ("{coder}.conv_{end}.conv", "{coder}.conv_{end}"),
        ("{coder}.norm_out.norm", "{coder}.norm_out"),
        ("quantize.quant_resi.{n}", "dequantizer.refiners.{n}.conv"),
    ]
    table = [(f"{layer}.{{leaf}}", f"{own}.{{leaf}}") for layer, own in layers]
    return [("quantize.embedding.weight", "dequantizer.codebook"), *table]


def _turned(table: Table) -> Table:
    return [(own, released) for released, own in table]


def _translate(name: str, table: Table) -> str:
    for source, target in table:
        if match := _pattern(source).fullmatch(name):
            return target.format(**match.groupdict())
    raise UserError(f"{name!r} is no name of these weights; expected e.g. {table[-1][0]}: give the right file")


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    fields = [f"(?P<{field}>{_FIELDS[field]})" for field in parts[1::2]]
    literals = [re.escape(part) for part in parts[::2]]
    return re.compile("".join(part for pair in zip(literals, [*fields, ""], strict=True) for part in pair))
