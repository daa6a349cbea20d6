"""Dtypes and devices on tensors without values that lie on cuda: every operation stays there, in full precision."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.sampling import SamplingConfig, sample
from nvg.tokenizer import Dequantizer, DequantizerConfig, Tokenizer, TokenizerConfig
from nvg.training import (
    ContentObjective,
    GeneratorLossConfig,
    StructureObjective,
    TokenizerLossConfig,
    TokenizerObjective,
)

FP32, BF16 = torch.float32, torch.bfloat16
CUDA, META = 1, 14  # numbers of device types in PyTorch
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
TOKENIZER = TokenizerConfig(
    image_size=16, image_channels=1, base_width=8, width_multipliers=[1, 1, 1], num_res_blocks=1, norm_groups=4,
    latent_channels=4, codebook_size=16,
)  # fmt: skip
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
def dtypes(monkeypatch) -> Iterator[Dtypes]:
    """Notes what runs; PyTorch believes in a GPU, which tensors without values never ask for anything.

    Who makes a tensor or a graph on cuda asks for its current stream: the guard of `meta`, which does nothing, answers.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[CUDA]
    guards[CUDA] = guards[META]
    yield Dtypes()
    guards[CUDA] = before


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
    tokenizer = Tokenizer(TOKENIZER)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        on_cuda(tokenizer)
        with dtypes:
            latent = tokenizer.encode(empty((2, 1, 16, 16)))
            image = tokenizer.decode(latent)
    assert {latent.device.type, image.device.type} == {"cuda"}
    assert dtypes.of({"convolution", *PRODUCTS, *ATTENTION}) == {FP32}


CODES, POSITIONS, CHANNELS = 16, 16, 4
SPACE: dict[str, Any] = {"num_positions": POSITIONS, "latent_channels": CHANNELS}
SIZES: dict[str, Any] = {"depth": 2, "width": 64, "num_classes": 3, **SPACE}


def networks() -> tuple[ContentGenerator, StructureGenerator, Dequantizer]:
    content = ContentGenerator(ContentGeneratorConfig(**SIZES, codebook_size=CODES))
    structure = StructureGenerator(StructureGeneratorConfig(**SIZES))
    return content, structure, Dequantizer(DequantizerConfig(**SPACE, codebook_size=CODES))


@pytest.mark.parametrize("kind", ["content", "structure"])
def test_a_generators_loss_in_bf16(dtypes, kind):
    """By autocast's rules for CUDA; canvases, norms, rotations and losses keep full precision."""
    content, structure, dequantizer = networks()
    objective = (
        ContentObjective(content, dequantizer, GeneratorLossConfig())
        if kind == "content"
        else StructureObjective(structure, dequantizer, GeneratorLossConfig())
    )
    noise = objective.draw_noise(seed=0, step=0, global_batch=3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_cuda(objective)
        shapes = {"label": (3,), "content_ids": (3, 2 * POSITIONS - 1), "structure": (3, POSITIONS)}
        batch = {name: empty(shape, torch.int64) for name, shape in shapes.items()}
        sent = {
            name: value if name in objective.host_noise else empty(value.shape, value.dtype)
            for name, value in noise.items()
        }
        with dtypes, torch.autocast("cuda", BF16):
            loss, metrics = objective(batch, sent)
    assert (loss.device.type, loss.dtype, loss.requires_grad) == ("cuda", FP32, True)
    assert {value.dtype for value in metrics.values()} == {FP32}
    assert dtypes.of({"addmm", "gelu"}) == {BF16}
    losses = {"mse_loss", "nll_loss_forward"} if kind == "content" else {"mean"}
    for name in ("convolution", "embedding", "native_layer_norm", "_fused_rms_norm", "view_as_complex", *losses):
        assert dtypes.of({name}) == {FP32}, name


def test_samples_in_bf16(dtypes):
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        content, structure, dequantizer = map(on_cuda, networks())
        for network in (content, structure):
            network.trunk.matmul_dtype = BF16
        with dtypes:
            drawn = sample(
                content=content, structure=structure, dequantizer=dequantizer, labels_B=torch.arange(3),
                sample_indices_B=torch.arange(3), seed=0, config=SamplingConfig(num_flow_steps=2),
            )  # fmt: skip
    assert drawn.canvases_BSLC.dtype == FP32
    assert dtypes.of({"gelu"}) == {BF16}
    for name in ("convolution", "embedding", "native_layer_norm", "_fused_rms_norm", "view_as_complex"):
        assert dtypes.of({name}) == {FP32}, name


def test_a_tokenizers_loss_in_bf16(dtypes, monkeypatch):
    """Distances to the codebook decide ids: they, the canvases and the loss are in full precision."""
    tokenizer = Tokenizer(TOKENIZER)
    objective = TokenizerObjective(tokenizer, TokenizerLossConfig())
    noise = objective.draw_noise(seed=0, step=0, global_batch=2)
    monkeypatch.setattr(tokenizer, "structure_maps", lambda latent, checked: empty(latent.shape[:2], torch.int64))
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_cuda(objective)
        with dtypes, torch.autocast("cuda", BF16):
            loss, _ = objective({"image": empty((2, 1, 16, 16))}, noise)
    assert (loss.device.type, loss.dtype, loss.requires_grad) == ("cuda", FP32, True)
    assert BF16 in dtypes.of({"convolution"})
    for name in ("mm", "argmin", "sub", "gather", "embedding", "mse_loss", "native_group_norm"):
        assert dtypes.of({name}) <= {FP32}, name
