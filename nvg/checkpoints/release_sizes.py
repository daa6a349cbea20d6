"""Sizes of released networks, read from the shapes of their tensors.

One odd or missing tensor must not decide: most tensors win and the published size is the default, so that the strict
comparison that follows names the odd ones and nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar

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
    base = _size(shapes, r"encoder\.(conv_in\.conv|down\.0\.block\.0\.norm1\.norm)\.(weight|bias)", 0, 128)
    widths = [_size(shapes, rf"encoder\.down\.{level}\..*conv\d\.conv\.bias", 0, base) for level in range(levels)]
    return TokenizerConfig(
        image_size=_side(_count(shapes, r"quantize\.quant_resi\.(\d+)\..+")) << (levels - 1),
        image_channels=_size(shapes, r"encoder\.conv_in\.conv\.weight", 1, 3),
        base_width=base,
        width_multipliers=[max(1, width // base) for width in widths],
        num_res_blocks=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\..+"),
        latent_channels=_size(shapes, r"quantize\.(embedding\.weight|quant_resi\.\d+\.weight)", 1, 32),
        codebook_size=_size(shapes, r"quantize\.embedding\.weight", 0, 4096),
    )


def content_config(shapes: Shapes) -> ContentGeneratorConfig:
    """Sizes of the content generator. Release: content_*, cls_head.*"""
    depth = _count(shapes, r"content_blocks\.(\d+)\..+")
    width, mlp_ratio = _block_sizes(shapes, "content", depth * CONTENT_WIDTH_PER_DEPTH)
    return ContentGeneratorConfig(
        depth=depth,
        width=None if width == depth * CONTENT_WIDTH_PER_DEPTH else width,
        mlp_ratio=mlp_ratio,
        num_classes=_size(shapes, r"content_class_embed\.weight", 0, 1001) - 1,
        num_positions=_side(_size(shapes, r"content_stage_embed\.weight", 0, 9)) ** 2,
        latent_channels=_size(shapes, r"(content_embed|cls_head\.linear)\.weight", 1, 32),
        codebook_size=_size(shapes, r"cls_head\.linear\.(weight|bias)", 0, 4096),
    )


def structure_config(shapes: Shapes) -> StructureGeneratorConfig:
    """Sizes of the structure generator. Release: structure_*"""
    depth = _count(shapes, r"structure_blocks\.(\d+)\..+")
    width, mlp_ratio = _block_sizes(shapes, "structure", depth * STRUCTURE_WIDTH_PER_DEPTH)
    return StructureGeneratorConfig(
        depth=depth,
        width=None if width == depth * STRUCTURE_WIDTH_PER_DEPTH else width,
        mlp_ratio=mlp_ratio,
        num_classes=_size(shapes, r"structure_class_embed\.weight", 0, 1001) - 1,
        num_positions=_side(_size(shapes, r"structure_head\.linear\.(weight|bias)", 0, 8) + 1) ** 2,
        latent_channels=_size(shapes, r"structure_content_cond_embed\.weight", 1, 32),
    )


def repa_config(shapes: Shapes) -> RepaHeadConfig:
    """Sizes of the REPA head. Release: projector.{0, 2, 4}"""
    return RepaHeadConfig(
        width=_size(shapes, r"content_blocks\.\d+\.linear2\.bias", 0, 1024),
        hidden=_size(shapes, r"projector\.[02]\.bias", 0, 2048),
        out=_size(shapes, r"projector\.4\.bias", 0, 768),
    )


def _block_sizes(shapes: Shapes, network: str, default: int) -> tuple[int, int]:
    width = _size(shapes, rf"{network}_blocks\.\d+\.linear2\.bias", 0, default)
    inner = _size(shapes, rf"{network}_blocks\.\d+\.linear1\.bias", 0, 7 * width)
    return width, max(1, inner // width - 3)


def _size(shapes: Shapes, pattern: str, axis: int, default: int) -> int:
    """What most tensors of these names have on an axis; the default where all are missing."""
    matching = re.compile(pattern)
    sizes = [shape[axis] for name, shape in shapes.items() if len(shape) > axis and matching.fullmatch(name)]
    return Counter(sizes).most_common(1)[0][0] if sizes else default


def _count(shapes: Shapes, pattern: str) -> int:
    """How many are numbered by the pattern's group, at least one: the highest number decides."""
    matches = (re.fullmatch(pattern, name) for name in shapes)
    return max((int(match[1]) + 1 for match in matches if match), default=1)


def _side(num_stages: int) -> int:
    """Rows of the latent grid with K + 1 stages, 2^(K / 2); rounded up where a missing tensor makes K odd."""
    return 1 << min(max(num_stages // 2, 1), 7)
