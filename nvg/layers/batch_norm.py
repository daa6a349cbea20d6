"""Batch normalisation over the batches of all ranks, on any device.

Legend: B images of one rank, C channels, N positions.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SynchronizedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation whose statistics are those of the global batch.

    Several ranks give what one rank gives on all their images, gradients included (averaged over ranks, as every
    engine does). torch's own SyncBatchNorm refuses tensors on the CPU. With one rank it is `nn.BatchNorm1d`.

    Release: synchronised, eps 1e-6
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, N); every rank must hold the same number of images.

        In training by the global batch, whose statistics move the running ones; in evaluation by the running ones.
        """
        num_ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if not self.training or num_ranks == 1:
            return super().forward(input)
        x_BCN = input.float()
        count = x_BCN.shape[0] * x_BCN.shape[2] * num_ranks
        mean_C = _sum_over_ranks(x_BCN.sum((0, 2))) / count
        centred_BCN = x_BCN - mean_C[:, None]
        variance_C = _sum_over_ranks(centred_BCN.square().sum((0, 2))) / count
        self._move_running_statistics(mean_C.detach(), variance_C.detach() * (count / (count - 1)))
        normed_BCN = centred_BCN * torch.rsqrt(variance_C + self.eps)[:, None]
        return (normed_BCN * self.weight[:, None] + self.bias[:, None]).type_as(input)

    @torch.no_grad()
    def _move_running_statistics(self, mean_C: Tensor, variance_C: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C, self.momentum)


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of a tensor over ranks, differentiable."""
    summed = _SumOverRanks.apply(x)
    assert isinstance(summed, Tensor)
    return summed
