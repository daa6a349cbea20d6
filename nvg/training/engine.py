"""A plain single-process engine with the few methods used of DeepSpeed's, and the optimizer's parameter groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nvg.errors import UserError


def parameter_groups(
    network: nn.Module, weight_decay: float, lr_factors: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Groups for AdamW: decay on tensors of two and more dimensions, none on biases and gains.

    Args:
        network: whose trainable parameters are grouped.
        weight_decay: of the decayed groups.
        lr_factors: parameter name prefix → multiplier of the learning rate, kept in the group's `lr_factor`; parameters
            that no prefix names have 1. The longest prefix that fits decides.

    Returns:
        dictionaries with params, weight_decay and lr_factor, as `torch.optim.AdamW` takes them.

    Raises:
        UserError: a prefix names no parameter.

    Release: embeddings and start canvas decay, RMS gains do not
    """
    factors = dict(lr_factors or {})
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    if idle := [prefix for prefix in factors if not any(name.startswith(prefix) for name in names)]:
        parts = sorted({name.split(".")[0] for name in names})
        raise UserError(f"lr_factors names {idle}, which no parameter begins with; the network has {', '.join(parts)}")
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            fitting = sorted((prefix for prefix in factors if name.startswith(prefix)), key=len)
            factor = factors[fitting[-1]] if fitting else 1.0
            groups.setdefault((parameter.ndim >= 2, factor), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decayed else 0.0, "lr_factor": factor}
        for (decayed, factor), parameters in groups.items()
    ]


class PlainEngine:
    """Forward, backward, clipping and step in one process, on whatever device the module is.

    Accumulates `accumulation_steps` micro-batches a step, as DeepSpeed does: every call of `backward` divides the loss,
    and `step` acts on the last one only.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        gradient_clipping: float = 0.0,
        accumulation_steps: int = 1,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.gradient_clipping = gradient_clipping
        self.accumulation_steps = accumulation_steps
        self.micro_steps = 0
        self.global_steps = 0
        self._grad_norm = 0.0
        self._stepped = False

    def __call__(self, *inputs: Any) -> Any:
        """The module's own forward pass."""
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of one micro-batch."""
        (loss / self.accumulation_steps).backward()

    def step(self) -> None:
        """Clips and updates after the last micro-batch of a step; a non-finite gradient skips the update."""
        self.micro_steps += 1
        self._stepped = False
        if self.micro_steps % self.accumulation_steps:
            return
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
        self._grad_norm = float(norm)
        if math.isfinite(self._grad_norm):
            if 0 < self.gradient_clipping < self._grad_norm + 1e-6:  # below it the factor is 1: nothing to multiply
                torch.nn.utils.clip_grads_with_norm_(parameters, self.gradient_clipping, norm, foreach=True)
            self.optimizer.step()
            self._stepped = True
        self.optimizer.zero_grad(set_to_none=True)
        self.global_steps += 1

    def was_step_applied(self) -> bool:
        """Whether the last call of `step` changed the weights."""
        return self._stepped

    def get_global_grad_norm(self) -> float:
        """ℓ2 norm of the last step's gradient before clipping."""
        return self._grad_norm
