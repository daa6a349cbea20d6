"""Between positions and tokens: averaging inside clusters and placing tokens by a structure map.

Legend: B images, L positions, C channels, U = 2^stage clusters of the stage.
"""

from __future__ import annotations

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
