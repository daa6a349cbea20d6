"""Sizes, initialisation and the stack of blocks common to both generators.

Legend: N sequences, S tokens, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from nvg.errors import UserError
from nvg.granularity import StageLayout
from nvg.layers import HEAD_WIDTH, SingleStreamBlock, branch_scales, drop_path_rates, rotary_table

CONTENT_WIDTH_PER_DEPTH = 64
STRUCTURE_WIDTH_PER_DEPTH = 32


def resolve_width(depth: int, width: int | None, width_per_depth: int) -> int:
    """Model width: `width_per_depth` · depth unless a width is given; heads are always 64 wide.

    Raises:
        UserError: the width is no positive multiple of 64.

    Paper: Eq. (8), Eq. (10), App. A.4
    """
    resolved = width_per_depth * depth if width is None else width
    if depth < 1 or resolved < HEAD_WIDTH or resolved % HEAD_WIDTH:
        raise UserError(
            f"depth {depth} and width {width} give a model width of {resolved}; "
            f"a positive multiple of {HEAD_WIDTH} (the width of one head) is needed"
        )
    return resolved


def check_token_space(num_positions: int, num_classes: int, codebook_size: int, latent_channels: int) -> None:
    """Raises UserError when the shape of the data is impossible."""
    StageLayout(num_positions)
    for name, value in (
        ("num_classes", num_classes),
        ("codebook_size", codebook_size),
        ("latent_channels", latent_channels),
    ):
        if value < 1:
            raise UserError(f"{name} is {value}; at least 1 is needed")


class Trunk(nn.Module):
    """`depth` single-stream blocks under one conditioning vector and one table of rotations.

    Paper: Eq. (9), App. A.4 (15 w² weights a block)
    """

    def __init__(self, depth: int, width: int, mlp_ratio: int, drop_path_rate: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SingleStreamBlock(width, mlp_ratio) for _ in range(depth))
        self.rates = drop_path_rates(depth, depth, drop_path_rate)

    def forward(self, x_NSD: Tensor, vec_ND: Tensor, ids_NSA: Tensor, drop_path_ND: Tensor | None = None) -> Tensor:
        """Runs the blocks.

        Args:
            x_NSD: embedded tokens, any float dtype.
            vec_ND: conditioning vector.
            ids_NSA: int64 rotary ids from `token_ids`.
            drop_path_ND: uniforms (N, depth) that decide which branches are dropped; None keeps all.

        Returns:
            float32 (N, S, D).
        """
        table_NSP = rotary_table(ids_NSA)
        scales = None if drop_path_ND is None else branch_scales(drop_path_ND, self.rates)
        x_NSD = x_NSD.float()
        for number, block in enumerate(self.blocks):
            x_NSD = block(x_NSD, vec_ND, table_NSP, None if scales is None else scales[number])
        return x_NSD


def initialize(module: nn.Module) -> None:
    """Xavier-uniform linears with zero bias, N(0, 0.02) embeddings; nothing starts at zero.

    Release: applies to modulations and heads too
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
