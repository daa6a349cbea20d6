"""Bytes that a compiled block moves on a GPU, counted without one, and what they allow of its peak.

    .venv/bin/python benchmarks/block_bytes.py

Forward and backward of one transformer block at the published sizes, under bf16 autocast, are lowered by inductor as
for an H100. The reads and writes of the kernels it makes are counted, and those of the project's own; matrix products
and attention are not. The unit is bytes per token and width: a tensor of the model's width costs 2 in bf16 each time it
is read or written, 4 in fp32.

bound = operations / (operations / 700 TFLOP/s + bytes / 2.8 TB/s) / 989 TFLOP/s: what is left of the dense bf16 peak
when products run as fast as on an H100 and nothing overlaps. Only the blocks' bytes are counted, so it is not reached.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo.device_interface as device_interface
import torch._inductor.config as inductor_config
import torch.nn.functional as F
import torch.utils._triton as triton_support
from functorch.compile import aot_function, min_cut_rematerialization_partition
from torch import Tensor
from torch._functorch._aot_autograd.schemas import AOTConfig
from torch._guards import detect_fake_mode
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.overrides import TorchFunctionMode

from nvg.layers import SingleStreamBlock
from nvg.layers.triton_heads import turn_heads
from nvg.models import ContentGeneratorConfig, StructureGeneratorConfig
from pipelines.train.costs import flops_per_image

PEAK, PRODUCTS, MEMORY = 989e12, 700e12, 2.8e12  # FLOP/s, FLOP/s, bytes/s of an H100; the last two as measured on one
NUM_IMAGES = 24  # of a micro batch, each with all its stages
WIDTH_PER_DEPTH, TOKENS, NUM_STAGES = (
    {"content": 64, "structure": 32},
    {"content": 257, "structure": 513},
    {"content": 9, "structure": 7},
)
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=85_000_000_000,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    L2_cache_size=50 << 20,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    gcnArchName="",
    is_integrated=0,
    uuid="0",
)


def main() -> None:
    """Prints bytes and bounds, and the same as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["content:16", "content:24", "structure:16"])
    rows = []
    for size in parser.parse_args().sizes:
        kind, depth = size.split(":")
        moved = compiled_bytes(WIDTH_PER_DEPTH[kind] * int(depth), TOKENS[kind], NUM_IMAGES * NUM_STAGES[kind])
        bound = utilisation_bound(kind, int(depth), sum(moved.values()))
        sys.stdout.write(
            f"{kind} d{depth}: forward {moved['forward']:.0f} + backward {moved['backward']:.0f} = "
            f"{sum(moved.values()):.0f} bytes per token and width; at most {bound:.0%} of the peak\n"
        )
        rows.append({"kind": kind, "depth": int(depth), **moved, "bound": bound})
    sys.stdout.write(json.dumps({"torch": torch.__version__, "rows": rows}) + "\n")


def utilisation_bound(kind: str, depth: int, bytes_per_element: float) -> float:
    """Share of the peak that blocks which move so many bytes per token and width can reach."""
    config = (ContentGeneratorConfig if kind == "content" else StructureGeneratorConfig)(depth=depth)
    flops = flops_per_image(config, None)
    elements = NUM_STAGES[kind] * TOKENS[kind] * WIDTH_PER_DEPTH[kind] * depth * depth
    return flops / (flops / PRODUCTS + bytes_per_element * elements / MEMORY) / PEAK


def compiled_bytes(width: int, num_tokens: int, num_sequences: int) -> dict[str, float]:
    """Bytes per token and width that the generated kernels of one block move, in forward and in backward."""
    moved: dict[str, float] = {}
    quiet = patch.multiple(inductor_config, compile_threads=1, fx_graph_cache=False)
    with _backward_lowered_at_once(), quiet, FakeTensorMode():
        block = SingleStreamBlock(width, 4)
        names = [name for name, _ in block.named_parameters()]
        x_NSD = torch.randn(num_sequences, num_tokens, width, requires_grad=True)
        vec_ND = torch.randn(num_sequences, width, requires_grad=True)
        table_NSP2, scale_N = torch.randn(num_sequences, num_tokens, 32, 2), torch.rand(num_sequences)

        def forward(x: Tensor, vec: Tensor, table: Tensor, scale: Tensor, *parameters: Tensor) -> Tensor:
            with _FlashAttention(), torch.autocast("cpu", torch.bfloat16):
                weights = dict(zip(names, parameters, strict=True))
                return torch.func.functional_call(block, weights, (x, vec, table, scale, turn_heads))

        compiled = aot_function(
            forward,
            fw_compiler=_counting("forward", moved),
            bw_compiler=_counting("backward", moved),
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )
        compiled(x_NSD, vec_ND, table_NSP2, scale_N, *block.parameters())
    return {part: number / x_NSD.numel() for part, number in moved.items()}


def _counting(part: str, moved: dict[str, float]) -> Callable[..., Any]:
    """A compiler that lowers the graph for CUDA, notes its bytes and leaves the graph as it is."""

    def compiler(graph: Any, examples: Any) -> Any:
        mode = detect_fake_mode(examples)
        assert mode is not None
        lowered = torch.fx.GraphModule(graph, graph.graph.__deepcopy__({}))
        for node in lowered.graph.nodes:
            if node.op == "call_function" and node.kwargs.get("device") is not None:
                node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
        lowered.recompile()
        with _pretended_h100():
            with mode:
                inputs = [_on_cuda(value) for value in examples]
                FakeTensorProp(lowered, mode=mode).propagate_dont_convert_inputs(*inputs)
            lowering = GraphLowering(
                lowered, example_inputs=inputs, shape_env=mode.shape_env, is_backward=part == "backward"
            )
            with V.set_debug_handler(DebugContext()), V.set_graph_handler(lowering), V.set_fake_mode(mode):
                lowering.run(*inputs)
                lowering.codegen()
                _, by_node, _ = lowering.count_bytes()
        heads = [node for node in graph.graph.nodes if "nvg.turn_heads" in str(node.target)]
        moved[part] = 4.0 * sum(words for node, words in by_node if not _is_call(node)) + sum(map(_bytes_of, heads))
        return graph

    return compiler


def _bytes_of(node: Any) -> int:
    """What a kernel of the project reads and writes: each of its tensors once."""
    tensors = [one.meta["val"] for one in node.args if isinstance(one, torch.fx.Node)] + [*node.meta["val"]]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _is_call(node: Any) -> bool:
    """Whether a scheduled node is a product or attention, a kernel that inductor calls and does not generate."""
    return not node.is_foreach() and node.is_extern()


def _on_cuda(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda:0")


class _Flash(torch.autograd.Function):
    """CUDA's attention, where tensors say that they lie on a CPU."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        result = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, False)
        ctx.save_for_backward(query, key, value, result[0], result[1])
        ctx.rest = result[2:8]
        return result[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        first_q, first_k, most_q, most_k, seed, offset = ctx.rest
        return torch.ops.aten._scaled_dot_product_flash_attention_backward(
            gradient, *ctx.saved_tensors, first_q, first_k, most_q, most_k, 0.0, False, seed, offset
        )


class _FlashAttention(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Flash.apply(*args)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _backward_lowered_at_once() -> Iterator[None]:
    """The backward graph is given to the compiler with the forward one, not when a gradient is first asked for."""
    begin = AOTConfig.__init__

    def changed(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        object.__setattr__(self, "force_non_lazy_backward_lowering", True)

    with patch.object(AOTConfig, "__init__", changed):
        yield


@contextlib.contextmanager
def _pretended_h100() -> Iterator[None]:
    """torch and inductor are told of an H100; nothing is run on it."""
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: H100,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: H100.name,
        "_lazy_init": lambda: None,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "synchronize": lambda device=None: None,
        "mem_get_info": lambda device=None: (80 << 30, 80 << 30),
    }
    interface: dict[str, Any] = {
        name: staticmethod(answers[name])
        for name in ("is_available", "device_count", "current_device", "get_device_properties")
    }
    interface |= {
        "get_compute_capability": staticmethod(lambda device=None: 90),
        "is_triton_capable": staticmethod(lambda device=None: True),
        "raise_if_triton_unavailable": staticmethod(lambda device=None: None),
    }
    yes: dict[str, Any] = {
        "has_triton": lambda *args, **kwargs: True,
        "has_triton_package": lambda *args, **kwargs: True,
    }
    torch._C._ensureCUDADeviceGuardSet()
    with (
        patch.multiple(torch.cuda, **answers),
        patch.multiple(device_interface.CudaInterface, **interface),
        patch.multiple(triton_support, **yes),
        patch.dict(device_interface.caching_worker_device_properties, {"cuda": [H100]}),
        patch.dict(device_interface.caching_worker_current_devices, {"cuda": 0}),
        _active_driver(),
    ):
        yield


@contextlib.contextmanager
def _active_driver() -> Iterator[None]:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    pretended = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_device_interface=lambda: torch.cuda,
    )
    with patch.object(driver, "_active", pretended):
        yield


if __name__ == "__main__":
    main()
