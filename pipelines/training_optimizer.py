"""Which parameters an objective trains, and the optimizer that moves them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nvg.training import parameter_groups
from pipelines.train.config import OptimizerConfig


def trained_modules(objective: Any) -> list[nn.Module]:
    """What an objective's optimizer moves: its network, and the head that aligns it where there is one."""
    alignment = getattr(objective, "alignment", None)
    return [objective.network] if alignment is None else [objective.network, alignment]


def build_optimizer(modules: list[nn.Module], config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW with fused updates (no compilation at run time on any device).

    Args:
        modules: what is trained, the network first; it alone has learning rate factors.
        config: learning rate, betas, weight decay.
        device: where the weights are.

    Returns:
        The optimizer; decay on tensors with two or more dimensions.
    """
    network, *others = modules
    groups = parameter_groups(network, config.weight_decay, config.lr_factors)
    for other in others:
        groups += parameter_groups(other, config.weight_decay)
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=device.type in ("cpu", "cuda"),
    )
