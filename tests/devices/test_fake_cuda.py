"""Dtypes and devices on tensors without values that lie on cuda: every operation stays there, in full precision."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from nvg.tokenizer import Tokenizer, TokenizerConfig

FP32 = torch.float32
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
ATTENTION = {f"_scaled_dot_product_{kind}_attention" for kind in ("flash", "efficient", "cudnn")}


class Dtypes(TorchDispatchMode):
    """Which dtypes each operation was given; an operation that mixes devices is an error of the fake tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = (kwargs or {}).get("device")
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        on_cuda = any(isinstance(value, FakeTensor) for value in tensors)
        if not on_cuda and (device is None or torch.device(device).type == "cpu"):
            with _disable_current_modes():  # the host's own, with its values
                return func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name == "_to_copy" and not on_cuda:
            return empty(args[0].shape, (kwargs or {}).get("dtype") or args[0].dtype)
        made = func(*args, **(kwargs or {}))
        self.seen[name] |= {value.dtype for value in tensors if value.is_floating_point() and value.ndim}
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                assert value.device.type == "cuda", f"{name} made a tensor on {value.device}"
        return made

    def of(self, names: set[str]) -> set[torch.dtype]:
        return set().union(*(self.seen[name] for name in names if name in self.seen))


@pytest.fixture
def dtypes(monkeypatch) -> Dtypes:
    """Notes what runs; PyTorch believes in a GPU, which tensors without values never ask for anything."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    return Dtypes()


def empty(shape: Any, dtype: torch.dtype = FP32) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="cuda:0")


def on_cuda(module: Any) -> Any:
    """The module, its parameters and buffers without values on cuda (inside the fake mode)."""
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            part._parameters[name] = torch.nn.Parameter(empty(value.shape, value.dtype), value.requires_grad)
        for name, value in list(part.named_buffers(recurse=False)):
            part._buffers[name] = empty(value.shape, value.dtype)
    return module


def test_encoder_and_decoder(dtypes):
    sizes: dict[str, Any] = {"image_size": 16, "image_channels": 1, "base_width": 8, "width_multipliers": [1, 1, 1]}
    tokenizer = Tokenizer(
        TokenizerConfig(**sizes, num_res_blocks=1, norm_groups=4, latent_channels=4, codebook_size=16)
    )
    with FakeTensorMode(), torch.no_grad():
        on_cuda(tokenizer)
        with dtypes:
            latent = tokenizer.encode(empty((2, 1, 16, 16)))
            image = tokenizer.decode(latent)
    assert {latent.device.type, image.device.type} == {"cuda"}
    assert dtypes.of({"convolution", *PRODUCTS, *ATTENTION}) == {FP32}
