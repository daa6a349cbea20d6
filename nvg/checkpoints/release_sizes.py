"""Sizes of released networks, read from the shapes of their tensors.

One odd or missing tensor must not decide: most tensors win and the published size is the default, so that the strict
comparison that follows names the odd ones and nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nvg.errors import UserError
from nvg.models import ContentGeneratorConfig, RepaHeadConfig, StructureGeneratorConfig
from nvg.models.trunk import CONTENT_WIDTH_PER_DEPTH, STRUCTURE_WIDTH_PER_DEPTH
from nvg.tokenizer import TokenizerConfig

Shapes = Mapping[str, tuple[int, ...]]
Config = TypeVar("Config")


def sizes_from(make: Callable[[Shapes], Config], shapes: Shapes, where: str) -> Config:
    """Calls one of the functions below.

    Args:
        make: e.g. `content_config`.
        shapes: released name → shape.
        where: the file, for messages.

    Raises:
        UserError: no network can have such sizes.
    """
    try:
        return make(shapes)
    except UserError as error:
        raise UserError(f"{where} holds another architecture: {error}") from error


def tokenizer_config(shapes: Shapes) -> TokenizerConfig:
    """Sizes of the autoencoder and its token space. Release: encoder.*, quantize.* of ae.ckpt"""
    levels = _count(shapes, r"encoder\.down\.(\d+)\..+")
    base = _size(shapes, 128, (r"encoder\.(conv_in\.conv|down\.0\.block\.0\.norm1\.norm)\.(weight|bias)", 0))
    widths = [
        _size(shapes, base, (rf"encoder\.down\.{level}\..*conv\d\.conv\.(weight|bias)", 0)) for level in range(levels)
    ]
    return TokenizerConfig(
        image_size=_side(_count(shapes, r"quantize\.quant_resi\.(\d+)\..+") - 1) << (levels - 1),
        image_channels=_size(shapes, 3, (r"encoder\.conv_in\.conv\.weight", 1), (r"decoder\.conv_out\.conv\.bias", 0)),
        base_width=base,
        width_multipliers=[max(1, width // base) for width in widths],
        num_res_blocks=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\..+"),
        latent_channels=_size(shapes, 32, (r"quantize\.(embedding|quant_resi\.\d+)\.weight", 1)),
        codebook_size=_size(shapes, 4096, (r"quantize\.embedding\.weight", 0)),
    )


def content_config(shapes: Shapes) -> ContentGeneratorConfig:
    """Sizes of the content generator. Release: content_*, cls_head.*"""
    return ContentGeneratorConfig(
        **_trunk_sizes(shapes, "content", CONTENT_WIDTH_PER_DEPTH),
        **_token_space(shapes),
        codebook_size=_size(shapes, 4096, (r"cls_head\.linear\.(weight|bias)", 0)),
    )


def structure_config(shapes: Shapes) -> StructureGeneratorConfig:
    """Sizes of the structure generator. Release: structure_*"""
    return StructureGeneratorConfig(
        **_trunk_sizes(shapes, "structure", STRUCTURE_WIDTH_PER_DEPTH), **_token_space(shapes)
    )


def repa_config(shapes: Shapes) -> RepaHeadConfig:
    """Sizes of the REPA head. Release: projector.{0, 2, 4}"""
    return RepaHeadConfig(
        width=_size(shapes, 1024, (r"content_(blocks\.\d+\.linear2|embed)\.bias", 0)),
        hidden=_size(shapes, 2048, (r"projector\.[02]\.(weight|bias)", 0)),
        out=_size(shapes, 768, (r"projector\.4\.(weight|bias)", 0)),
    )


def _trunk_sizes(shapes: Shapes, network: str, width_per_depth: int) -> dict[str, Any]:
    """Depth follows from width, as in every released network, so that a whole block cannot be missing unseen."""
    default = width_per_depth * _count(shapes, rf"{network}_blocks\.(\d+)\..+")
    width = _size(shapes, default, (rf"{network}_(blocks\.\d+\.linear2|embed)\.bias", 0))
    inner = _size(shapes, 7 * width, (rf"{network}_blocks\.\d+\.linear1\.(weight|bias)", 0))
    return {"depth": max(1, width // width_per_depth), "mlp_ratio": max(1, inner // max(1, width) - 3)}


def _token_space(shapes: Shapes) -> dict[str, Any]:
    """What both generators share."""
    last_stage = _size(shapes, 8, (r"structure_head\.linear\.(weight|bias)", 0), (r"structure_embed\.weight", 1))
    latent = ((r"(content_embed|structure_content_cond_embed)\.weight", 1), (r"x0_head\.linear\.(weight|bias)", 0))
    return {
        "num_classes": _size(shapes, 1001, (r"(content|structure)_class_embed\.weight", 0)) - 1,
        "num_positions": _side(last_stage) ** 2,
        "latent_channels": _size(shapes, 32, *latent),
    }


def _size(shapes: Shapes, default: int, *places: tuple[str, int]) -> int:
    """What most tensors have, places being (pattern of names, axis); the default where all are missing."""
    sizes = [
        shape[axis]
        for pattern, axis in places
        for name, shape in shapes.items()
        if len(shape) > axis and re.fullmatch(pattern, name)
    ]
    return Counter(sizes).most_common(1)[0][0] if sizes else default


def _count(shapes: Shapes, pattern: str) -> int:
    """How many are numbered by the pattern's group, at least one: the highest number decides, up to all names."""
    matches = (re.fullmatch(pattern, name) for name in shapes)
    return min(max((int(match[1]) + 1 for match in matches if match), default=1), max(1, len(shapes)))


def _side(last_stage: int) -> int:
    """Rows of the latent grid with stages 0..K, 2^(K / 2); rounded up where a missing tensor makes K odd."""
    return 1 << min(max((last_stage + 1) // 2, 1), 7)
