"""Names of the released weights ↔ names of this project.

The released autoencoder wraps every convolution and norm once more and counts decoder levels fine to coarse; the
released generator keeps both networks in one flat module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from torch import Tensor

_GENERATOR_NAMES = (
    (r"structure_content_cond_embed\.(.+)", r"structure.canvas_in.\1"),
    (r"structure_time_embed\.(in|out)_layer\.(.+)", r"structure.time_embedding.linear_\1.\2"),
    (r"structure_embed\.(.+)", r"structure.structure_in.\1"),
    (r"structure_head\.adaLN_modulation\.1\.(.+)", r"structure.head.modulation.linear.\1"),
    (r"structure_head\.linear\.(.+)", r"structure.head.linear.\1"),
    (r"content_start_embed", r"content.start_canvas"),
    (r"content_embed\.(.+)", r"content.canvas_in.\1"),
    (r"x0_head\.adaLN_modulation\.1\.(.+)", r"content.head.modulation.linear.\1"),
    (r"x0_head\.linear\.(.+)", r"content.head.linear.\1"),
    (r"cls_head\.linear\.(.+)", r"content.token_head.\1"),
    (r"scale_factors", r"content.canvas_scales"),
    (r"(content|structure)_(class|stage)_embed\.weight", r"\1.\2_embedding.weight"),
    (r"(content|structure)_blocks\.(\d+)\.modulation\.lin\.(.+)", r"\1.trunk.blocks.\2.modulation.linear.\3"),
    (r"(content|structure)_blocks\.(\d+)\.linear1\.(.+)", r"\1.trunk.blocks.\2.linear_in.\3"),
    (r"(content|structure)_blocks\.(\d+)\.linear2\.(.+)", r"\1.trunk.blocks.\2.linear_out.\3"),
    (r"(content|structure)_blocks\.(\d+)\.norm\.(query|key)_norm\.scale", r"\1.trunk.blocks.\2.\3_norm.gain"),
)


def generator_from_release(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Splits a released generator into {"content": …, "structure": …} state dicts; `rope_ids` is computed here instead.

    Args:
        tensors: released name → tensor, any dtype; they are passed on, not copied.

    Returns:
        for "content" and "structure", the names of this project → tensor.

    Raises:
        ValueError: a name the release does not have.

    Release: nvgformer.* of d16.ckpt, d20.ckpt, d24.ckpt
    """
    networks: dict[str, dict[str, Tensor]] = {"content": {}, "structure": {}}
    for name, tensor in tensors.items():
        if name == "rope_ids":
            continue
        network, _, rest = _rename(name, _GENERATOR_NAMES).partition(".")
        networks[network][rest] = tensor
    return networks


def autoencoder_from_release(tensors: dict[str, Tensor], num_levels: int) -> dict[str, Tensor]:
    """State dict of `Tokenizer` (encoder, decoder and, where present, the dequantizer) from released names.

    Args:
        tensors: released name → tensor, any dtype; they are passed on, not copied.
        num_levels: levels of the autoencoder, needed because the decoder counts them the other way round.

    Returns:
        names of this project → tensor.

    Raises:
        ValueError: a name the release does not have.

    Release: encoder.*, decoder.*, quantize.* of ae.ckpt
    """
    rules = (
        (r"quantize\.embedding\.weight", r"dequantizer.codebook"),
        (r"quantize\.quant_resi\.(\d+)\.(.+)", r"dequantizer.refiners.\1.conv.\2"),
        (
            r"(encoder|decoder)\.mid\.block_(\d)\.(.+)",
            lambda m: f"{m[1]}.middle.{int(m[2]) - 1}.{_block(m[3])}",
        ),
        (
            r"encoder\.down\.(\d+)\.block\.(\d+)\.(.+)",
            lambda m: f"encoder.levels.{m[1]}.blocks.{m[2]}.{_block(m[3])}",
        ),
        (r"encoder\.down\.(\d+)\.downsample\.conv\.conv\.(.+)", r"encoder.levels.\1.resample.conv.\2"),
        (
            r"decoder\.up\.(\d+)\.block\.(\d+)\.(.+)",
            lambda m: f"decoder.levels.{num_levels - 1 - int(m[1])}.blocks.{m[2]}.{_block(m[3])}",
        ),
        (
            r"decoder\.up\.(\d+)\.upsample\.conv\.conv\.(.+)",
            lambda m: f"decoder.levels.{num_levels - 1 - int(m[1])}.resample.conv.{m[2]}",
        ),
        (r"(encoder|decoder)\.(conv_in|conv_out)\.conv\.(.+)", r"\1.\2.\3"),
        (r"(encoder|decoder)\.norm_out\.norm\.(.+)", r"\1.norm_out.\2"),
    )
    return {_rename(name, rules): tensor for name, tensor in tensors.items()}


def _block(rest: str) -> str:
    """Name inside a residual block: drops the wrapper and calls the 1×1 projection `shortcut`."""
    part, _, leaf = rest.split(".")
    return f"{'shortcut' if part == 'nin_shortcut' else part}.{leaf}"


def _rename(name: str, rules: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]) -> str:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return replacement(match) if callable(replacement) else match.expand(replacement)
    raise ValueError(f"{name!r} is no name of the released weights; expected e.g. content_blocks.0.linear1.weight")
