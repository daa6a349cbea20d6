"""One rank of a batch normalisation: in a module of its own, so that spawned processes can import it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nvg.layers import SynchronizedBatchNorm

SHAPE = (6, 4, 5)


def batch() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 3 + 100  # a large mean beside the deviation


def run(x_BCN: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)
    norm = SynchronizedBatchNorm(SHAPE[1], eps=1e-6)
    nn.init.normal_(norm.weight)
    x_BCN = x_BCN.clone().requires_grad_()
    y_BCN = norm(x_BCN)
    (y_BCN.square() * torch.linspace(0, 1, SHAPE[2])).mean().backward()
    assert x_BCN.grad is not None
    assert norm.weight.grad is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return {
        "out": y_BCN.detach(),
        "input_gradient": x_BCN.grad,
        "weight_gradient": norm.weight.grad,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }


def rank_main(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    half = SHAPE[0] // 2
    torch.save(run(batch()[rank * half : (rank + 1) * half]), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
