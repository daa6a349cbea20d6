"""Pieces of networks.

block         the transformer block of both generators, its modulation and the head
rope          structure-aware rotary positions: `rotary_table`
triton_heads  norm and rotation of queries and keys in one kernel on a GPU
drop_path     stochastic depth with masks drawn outside
batch_norm    batch norm over the batches of all ranks
"""

from nvg.layers.batch_norm import SynchronizedBatchNorm
from nvg.layers.block import ModulatedHead, Modulation, SingleStreamBlock, Turn, turning_on
from nvg.layers.drop_path import branch_scales, drop_path_rates
from nvg.layers.rope import HEAD_WIDTH, rotary_table, rotate, token_ids

__all__ = [
    "HEAD_WIDTH",
    "ModulatedHead",
    "Modulation",
    "SingleStreamBlock",
    "SynchronizedBatchNorm",
    "Turn",
    "branch_scales",
    "drop_path_rates",
    "rotary_table",
    "rotate",
    "token_ids",
    "turning_on",
]
