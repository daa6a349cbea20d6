"""Stages, structure maps and their embeddings.

Legend: B images, L positions, K last stage (log2 L), T = 2L - 1 tokens of all stages.

A structure map is carried at its finest: int64 (B, L) whose K bits name the path from the root. Stage i reads the i
leading bits, so a map of which only the first i splits are known is a valid argument wherever stage <= i.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nvg.errors import UserError

_GRID_SIZES = [4**m for m in range(1, 8)]


@dataclass(frozen=True)
class StageLayout:
    """Which tokens belong to which stage on a grid of `num_positions` = 4^m positions (stage i has 2^i tokens).

    DEVIATION: grids are square, 2^m by 2^m; the paper writes h × w and has 16 × 16.

    Raises:
        UserError: `num_positions` is no such size.
    """

    num_positions: int

    def __post_init__(self) -> None:
        if self.num_positions not in _GRID_SIZES:
            raise UserError(
                f"num_positions is {self.num_positions}; expected one of {', '.join(map(str, _GRID_SIZES))}, a square "
                "latent grid whose side is a power of two from 2 to 128; change image_size or the number of "
                "width_multipliers (each beyond the first halves the side)"
            )

    @property
    def side(self) -> int:
        """Rows (and columns) of the latent grid."""
        return 1 << (self.last_stage // 2)

    @property
    def last_stage(self) -> int:
        """K, the stage in which every position has its own token."""
        return self.num_positions.bit_length() - 1

    @property
    def num_stages(self) -> int:
        """K + 1 content stages."""
        return self.last_stage + 1

    @property
    def num_structure_stages(self) -> int:
        """K - 1 stages whose split a model predicts; the last split follows the raster order."""
        return self.last_stage - 1

    @property
    def num_tokens(self) -> int:
        """T = 2L - 1 tokens over all stages."""
        return 2 * self.num_positions - 1

    def tokens(self, stage: int) -> slice:
        """Where the 2^stage tokens of a stage lie in `content_ids`."""
        return slice((1 << stage) - 1, (2 << stage) - 1)


def stage_map(structure_BL: Tensor, stage: int, last_stage: int) -> Tensor:
    """Structure map s_i of one stage: int64 (B, L), values 0..2^stage - 1, every value L / 2^stage times.

    Args:
        structure_BL: int64 finest map, its `stage` leading bits are read.
        stage: 0..K.
        last_stage: K = log2 L.

    Paper: Eq. (7), Alg. 2 line 7, §2.1 (s_i = s_K >> (K - i))
    """
    return structure_BL >> (last_stage - stage)


def structure_embedding(structure_BL: Tensor, stage: int | Tensor, last_stage: int) -> Tensor:
    """K integers a position: 2 x bit for the splits above the stage (most significant first), 1 below.

    Args:
        structure_BL: finest map; only its `stage` leading bits are read.
        stage: one stage for all rows, or int64 (B,).
        last_stage: K = log2 L.

    Returns:
        int64 (B, L, K) with values {0, 1, 2}.

    Paper: Eq. (6), §2.1 and App. A.3
    """
    channel_K = torch.arange(last_stage, device=structure_BL.device)
    bits_BLK = (structure_BL[..., None] >> (last_stage - 1 - channel_K)) & 1
    # A number stays one: as a tensor it would have to be copied to the device.
    first = stage.reshape(-1, 1, 1) if isinstance(stage, Tensor) else stage
    return torch.where(channel_K < first, 2 * bits_BLK, 1)


def structure_from_embedding(embedding_BLK: Tensor) -> Tensor:
    """Inverts `structure_embedding`: the finest map whose unknown splits (channels of value 1) are 0.

    The paper's label of stage i is this map shifted right by K - i, see `stage_map`.

    Args:
        embedding_BLK: integers {0, 1, 2}.

    Returns:
        int64 (B, L).

    Paper: Eq. (7), App. A.3
    """
    last_stage = embedding_BLK.shape[-1]
    weight_K = 1 << torch.arange(last_stage - 1, -1, -1, device=embedding_BLK.device)
    return ((embedding_BLK == 2) * weight_K).sum(-1)


def balanced_split(structure_BL: Tensor, score_BL: Tensor, stage: int, last_stage: int) -> Tensor:
    """Splits every cluster of a stage in two equal halves: the half with the highest score becomes child 2j + 1.

    Args:
        structure_BL: int64 map with `stage` known splits.
        score_BL: any real score; of equal scores the lower position counts as higher.
        stage: 0..K-1.
        last_stage: K = log2 L.

    Returns:
        int64 (B, L), the map with `stage` + 1 known splits, later bits 0.

    Paper: Eq. (2), §2.2.1
    """
    parent_BL = stage_map(structure_BL, stage, last_stage)
    by_score_BL = score_BL.sort(dim=1, descending=True, stable=True).indices
    by_parent_BL = parent_BL.gather(1, by_score_BL).sort(dim=1, stable=True).indices
    order_BL = by_score_BL.gather(1, by_parent_BL)
    size = structure_BL.shape[1] >> stage
    rank_L = torch.arange(structure_BL.shape[1], device=structure_BL.device) % size
    bit_BL = torch.zeros_like(structure_BL).scatter(1, order_BL, (rank_L < size // 2).long().expand_as(order_BL))
    return (2 * parent_BL + bit_BL) << (last_stage - stage - 1)


def raster_split(structure_BL: Tensor, last_stage: int) -> Tensor:
    """The last split, which needs no model: of each pair the lower raster position becomes child 2j.

    Args:
        structure_BL: int64 map with K - 1 known splits.
        last_stage: K = log2 L.

    Returns:
        int64 (B, L) finest map.

    Paper: Alg. 2 line 6, §2.2.1
    """
    position_L = torch.arange(structure_BL.shape[1], device=structure_BL.device)
    return balanced_split(structure_BL, position_L.expand_as(structure_BL), last_stage - 1, last_stage)


def spatial_structure(num_positions: int) -> Tensor:
    """The data-free hierarchy: halve the rows at even stages and the columns at odd ones, lower half is child 2j.

    Args:
        num_positions: L, a power of four.

    Returns:
        int64 (L,) finest map, the structure of a resolution pyramid.

    Paper: §2.1 (resizing in space, as in VAR)
    """
    layout = StageLayout(num_positions)
    position_L = torch.arange(num_positions)
    row_L, column_L = position_L // layout.side, position_L % layout.side
    structure_L = torch.zeros_like(position_L)
    for bit in range(layout.last_stage // 2 - 1, -1, -1):
        structure_L = structure_L * 4 + ((row_L >> bit) & 1) * 2 + ((column_L >> bit) & 1)
    return structure_L


def check_structure(structure_BL: Tensor) -> None:
    """Raises UserError unless every row is a permutation of 0..L-1, which is what a finest map must be."""
    expected_L = torch.arange(structure_BL.shape[1], device=structure_BL.device)
    if not bool((structure_BL.sort(1).values == expected_L).all()):
        raise UserError(
            "a structure map is no permutation of 0..L-1: clusters are not balanced, the record or map is damaged"
        )
