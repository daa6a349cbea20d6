"""Network pieces: the generators' transformer block, rotations, stochastic depth; synchronised batch norm."""

from nvg.layers.batch_norm import SynchronizedBatchNorm
from nvg.layers.block import ModulatedHead, Modulation, SingleStreamBlock
from nvg.layers.drop_path import branch_scales, drop_path_rates
from nvg.layers.rope import HEAD_WIDTH, rotary_table, rotate, token_ids

__all__ = [
    "HEAD_WIDTH",
    "ModulatedHead",
    "Modulation",
    "SingleStreamBlock",
    "SynchronizedBatchNorm",
    "branch_scales",
    "drop_path_rates",
    "rotary_table",
    "rotate",
    "token_ids",
]
