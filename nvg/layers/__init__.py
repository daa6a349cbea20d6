"""Transformer pieces shared by the generators."""

from nvg.layers.block import ModulatedHead, Modulation, SingleStreamBlock
from nvg.layers.drop_path import branch_scales, drop_path_rates
from nvg.layers.rope import HEAD_WIDTH, rotary_table, rotate, token_ids

__all__ = [
    "HEAD_WIDTH",
    "ModulatedHead",
    "Modulation",
    "SingleStreamBlock",
    "branch_scales",
    "drop_path_rates",
    "rotary_table",
    "rotate",
    "token_ids",
]
