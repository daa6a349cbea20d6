"""Stochastic depth with masks drawn outside the network.

Legend: N sequences, D blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def drop_path_rates(num_blocks: int, depth: int, full_rate: float = 0.1) -> Tensor:
    """Rate of each block, rising linearly from 0 to full_rate · depth / 24.

    Args:
        num_blocks: D.
        depth: of the model, which sets the largest rate.
        full_rate: largest rate of a model of depth 24.

    Returns:
        float32 (num_blocks,) on the CPU.

    Paper: Eq. (8), Eq. (10); Release: rises linearly over the blocks
    """
    return torch.linspace(0.0, full_rate * depth / 24, num_blocks)


def branch_scales(uniform_ND: Tensor, rates_D: Tensor) -> Tensor:
    """Multipliers of the gated branches: 0 for a dropped sequence, 1 / keep rate otherwise.

    Args:
        uniform_ND: in [0, 1); a branch is dropped where it lies below the rate.
        rates_D: drop rate of each block, in [0, 1).

    Returns:
        float32 (D, N) on the device of the uniforms.

    Release: on the gated branch, one draw a sequence, divided by the keep rate
    """
    rates_D = rates_D.to(uniform_ND.device)
    return ((uniform_ND >= rates_D).float() / (1 - rates_D)).t()
