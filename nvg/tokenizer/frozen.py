"""What the networks that judge the tokenizer in training share.

Legend: B images, C = 3 colours, S side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Companion(nn.Module):
    """A network that another one uses and moves with, without owning its weights.

    Its parameters belong to nobody who asks this module for them: they are neither trained, saved nor put into
    training mode through it.
    """

    network: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "network", network)  # past the registration as a submodule

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Companion:
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, *inputs: Any) -> Any:
        """The network's own forward pass."""
        return self.network(*inputs)


def freeze(network: nn.Module) -> None:
    """Puts a network in evaluation mode for good: no gradient to its weights, gradients to its input as ever."""
    network.eval()
    network.requires_grad_(False)


class ImageNetRange(nn.Module):
    """Colour images in [-1, 1] as networks trained on ImageNet expect them: [0, 1], minus mean, over deviation."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean_C11", IMAGENET_MEAN), ("std_C11", IMAGENET_STD)):
            # On the device before it is needed: a tensor made in a step would have to be copied there, and waited for.
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images_BCSS: Tensor) -> Tensor:
        """(B, 3, S, S) → the same shape and dtype."""
        return ((images_BCSS + 1.0) / 2.0 - self.mean_C11.to(images_BCSS)) / self.std_C11.to(images_BCSS)
