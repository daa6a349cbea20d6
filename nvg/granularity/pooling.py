"""Between positions and tokens: averaging inside clusters and placing tokens by a structure map.

Legend: B images, N sequences (image, stage), L positions, C channels, U = 2^stage clusters of the stage,
Q clusters of all sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nvg.granularity.stages import stage_map


def cluster_mean(values_BLC: Tensor, structure_BL: Tensor, stage: int) -> Tensor:
    """Mean of the values inside each cluster of a stage.

    Clusters are balanced, so sorting the positions by cluster turns the mean into a reshape: no scatter, the same
    result on every device and for every batch size.

    Args:
        values_BLC: any float dtype.
        structure_BL: int64 finest map, its `stage` leading bits are read.
        stage: 0..K.

    Returns:
        (B, U, C) in the dtype of the values.

    Paper: Eq. (4), App. A.2
    """
    last_stage = values_BLC.shape[1].bit_length() - 1
    order_BL = stage_map(structure_BL, stage, last_stage).sort(dim=1, stable=True).indices
    grouped = values_BLC.gather(1, order_BL[..., None].expand_as(values_BLC))
    return grouped.unflatten(1, (1 << stage, -1)).mean(2)


def counted_mean(values_BLC: Tensor, counted_BL: Tensor, structure_BL: Tensor, stage: int) -> Tensor:
    """`cluster_mean` over those positions of each cluster that count, over all of it where none does.

    Args:
        values_BLC: any float dtype.
        counted_BL: bool, the positions that count.
        structure_BL, stage: as of `cluster_mean`.

    Returns:
        (B, U, C) in the dtype of the values, to the bit `cluster_mean` of clusters that count as a whole.

    Paper: Eq. (4), App. A.2
    """
    counted_BL1 = counted_BL[..., None].to(values_BLC)
    share_BU1 = cluster_mean(counted_BL1, structure_BL, stage)
    part_BUC = cluster_mean(values_BLC * counted_BL1, structure_BL, stage) / share_BU1.clamp_min(
        1 / counted_BL.shape[1]
    )
    return torch.where(share_BU1 > 0, part_BUC, cluster_mean(values_BLC, structure_BL, stage))


def cluster_means(
    values_NLC: Tensor, structure_NL: Tensor, stage_N: Tensor, order_N: Tensor, counts: Sequence[int]
) -> Tensor:
    """`cluster_mean` of sequences of different stages: one sort and one gather for all, a mean by reshape a stage.

    Args:
        values_NLC: any float dtype.
        structure_NL: int64 finest map, its `stage_N` leading bits are read.
        stage_N: int64, 0..K.
        order_N: int64 rows of the sequences, stage by stage.
        counts: sequences of stage 0, 1, ..; known to the host, so that no device is waited for.

    Returns:
        (Q, C), the clusters of the sequences in the order of `order_N`, Q = Σ counts[i] · 2^i.

    Paper: Eq. (4), App. A.2
    """
    num_positions = values_NLC.shape[1]
    shift_N = num_positions.bit_length() - 1 - stage_N
    position_NL = (structure_NL >> shift_N[:, None]).sort(dim=1, stable=True).indices
    row_NL = order_N[:, None] * num_positions + position_NL[order_N]
    grouped = values_NLC.flatten(0, 1).index_select(0, row_NL.flatten())
    parts = enumerate(grouped.split([count * num_positions for count in counts]))
    means = [part.unflatten(0, (-1, num_positions >> stage)).mean(1) for stage, part in parts if len(part)]
    return torch.cat(means)


def place(tokens_BUC: Tensor, structure_BL: Tensor, stage: int) -> Tensor:
    """Assignment a(c_i, s_i): every position receives the token of its cluster.

    Args:
        tokens_BUC: any dtype, one row a cluster of the stage.
        structure_BL: int64 finest map, its `stage` leading bits are read.
        stage: 0..K.

    Returns:
        (B, L, C) in the dtype of the tokens.

    Paper: §2.1
    """
    last_stage = structure_BL.shape[1].bit_length() - 1
    index_BL = stage_map(structure_BL, stage, last_stage)
    return tokens_BUC.gather(1, index_BL[..., None].expand(-1, -1, tokens_BUC.shape[2]))


def place_all(ids_BT: Tensor, structure_BL: Tensor) -> Tensor:
    """`place` of the ids of all stages in one gather.

    Args:
        ids_BT: one integer a token, T = 2L - 1, stages in order.
        structure_BL: int64 finest map.

    Returns:
        (B, S, L) for the S = K + 1 stages, in the dtype of the ids.

    Paper: §2.1
    """
    last_stage = structure_BL.shape[1].bit_length() - 1
    stage_S1 = torch.arange(last_stage + 1, device=structure_BL.device)[:, None]
    index_BSL = (structure_BL[:, None] >> (last_stage - stage_S1)) + ((1 << stage_S1) - 1)
    return ids_BT.gather(1, index_BSL.flatten(1)).view_as(index_BSL)
