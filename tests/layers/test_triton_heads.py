"""Queries and keys turned in Triton: in its interpreter, which every machine has, and compiled for an absent GPU."""

import json
import logging
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from nvg import precision
from nvg.layers import block, turning_on
from nvg.layers.block import SingleStreamBlock, normed_and_turned

pytest.importorskip("triton")
triton_heads: Any = import_module("nvg.layers.triton_heads")

# Triton's own library is bound to the interpreter when it is imported: so it has a process of its own.
INTERPRETED = """
import json
import torch
from test_block import block_as_written, inputs, make_block
from nvg.layers.block import _triton_turns_alike, normed_and_turned
from nvg.layers.triton_heads import turn_heads

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
worst = {}

def run(turn, heads, gain, table, weights):
    query, key = turn(heads, gain, table)
    sums = sum((out.double() * weight).sum() for out, weight in zip((query, key), weights))
    return query, key, *torch.autograd.grad(sums, (heads, gain))

for dtype in (torch.float32, torch.bfloat16):
    for number in (1, 3):  # 5 and 15 tokens, of 16 that a program takes; then 2 programs, the second not full
        for tokens in (5, 9):
            heads = torch.randn(number, tokens, 2, 3, 64, generator=generator).to(dtype).requires_grad_()
            gain = torch.rand(2, 64, generator=generator).requires_grad_()
            angle = 6 * torch.rand(number, tokens, 32, generator=generator)
            table = torch.stack([angle.cos(), angle.sin()], dim=-1)
            weights = [torch.randn(number, tokens, 3, 64, generator=generator).double() for _ in range(2)]
            ours, theirs = (run(turn, heads, gain, table, weights) for turn in (turn_heads, normed_and_turned))
            for name, one, other in zip(("query", "key", "heads", "gain"), ours, theirs):
                assert one.dtype == other.dtype and one.shape == other.shape, name
                error = float((one - other).double().norm() / other.double().norm())
                worst[f"{name} {dtype}"] = max(error, worst.get(f"{name} {dtype}", 0.0))

# The whole block, also compiled: every output and gradient is that of the block as its formulas are written.
(x, vec, table), scale = inputs(), torch.tensor([1.25, 1.0, 0.0])
expected = make_block().double()
exact = block_as_written(expected, x.double(), 0.3 * vec.double(), table.double(), scale.double())
exact.square().mean().backward()
for name in ("eager", "compiled"):
    found = make_block()
    if name == "compiled":
        found.compile(backend="aot_eager", fullgraph=True)
    out = found(x, 0.3 * vec, table, scale, turn_heads)
    out.square().mean().backward()
    worst[f"block {name}"] = float((out.double() - exact).abs().max())
    for (weight, ours), theirs in zip(found.named_parameters(), expected.parameters(), strict=True):
        error = float((ours.grad.double() - theirs.grad).abs().max() / theirs.grad.abs().max())
        worst[f"block {name} {weight}"] = error
print(json.dumps({"worst": worst, "trial": _triton_turns_alike(torch.device("cpu"))}))
"""


@pytest.mark.slow
def test_heads_and_gradients_are_those_of_pytorch():
    here = Path(__file__).resolve()
    paths = os.pathsep.join(map(str, (here.parents[2], here.parent)))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["trial"] is None
    assert len(found["worst"]) == 2 * 4 + 2 * (1 + 8)
    bars = {"torch.bfloat16": 1e-2}  # the interpreter cuts a number to bf16 where a GPU rounds it
    assert {what: error for what, error in found["worst"].items() if error > bars.get(what.split()[1], 3e-6)} == {}


@pytest.mark.parametrize(("name", "most_registers"), [("_turn", 64), ("_turn_back", 80)])
def test_compiles_for_sm_90_without_a_spill(name, most_registers, tmp_path):
    """Ahead of time; every tensor is read 16 bytes at a time, and nothing of a head passes through shared memory."""
    pytest.importorskip("triton.backends.nvidia.compiler")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(triton_heads, name)
    types = {"num_tokens": "i32", "eps": "fp32", "H": "constexpr", "R": "constexpr"}
    signature = {
        arg: types.get(arg) or ("*fp32" if "gain" in arg or "table" in arg else "*bf16") for arg in kernel.arg_names
    }
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature, {"H": 16, "R": triton_heads._TOKENS}, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    ptx: str = compiled.asm["ptx"]
    assert not re.search(r"ld\.global\.(v2|b)|st\.global\.v2", ptx)
    (tmp_path / "kernel.ptx").write_text(ptx)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    words = [tool, "-v", "-arch=sm_90a", tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in said
    assert int(re.findall(r"Used (\d+) registers", said)[0]) <= most_registers


def test_a_cpu_turns_in_pytorch():
    assert turning_on(torch.device("cpu")) is normed_and_turned


@pytest.mark.parametrize(
    ("found", "said"), [("turned otherwise", "turned otherwise"), (RuntimeError("no driver\nat all"), "no driver")]
)
def test_where_triton_does_not_work_pytorch_turns_and_it_is_said_once(found, said, monkeypatch, caplog):
    def trial(device):
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(precision, "too_old_for_triton", lambda device: None)
    monkeypatch.setattr(block, "_triton_turns_alike", trial)
    turning_on.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert [turning_on(torch.device("cuda:0")) for _ in range(3)] == [normed_and_turned] * 3
    finally:
        turning_on.cache_clear()
    assert len(caplog.records) == 1
    assert said in caplog.text
    assert "at all" not in caplog.text


def test_a_block_is_one_graph():
    """A graph that breaks costs a GPU two more passes over the stream; `fullgraph` refuses it."""
    x, vec, table = torch.randn(2, 5, 64), torch.randn(2, 64), torch.randn(2, 5, 32, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        explained = torch._dynamo.explain(SingleStreamBlock(64, 4))(x, vec, table)
    assert explained.graph_count == 1
    assert explained.graph_break_count == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_is_used_and_turns_alike(dtype):
    device = torch.device("cuda:0")
    turn = turning_on(device)
    assert turn is not normed_and_turned
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(7, 257, 2, 4, 64, generator=generator).to(device, dtype).requires_grad_()
    gain = torch.rand(2, 64, generator=generator).to(device).requires_grad_()
    angle = 6 * torch.rand(7, 257, 32, generator=generator).to(device)
    table = torch.stack([angle.cos(), angle.sin()], dim=-1)
    found = []
    for way in (turn, normed_and_turned):
        query, key = way(heads, gain, table)
        found.append([query, key, *torch.autograd.grad((query.float() * key.float().square()).sum(), (heads, gain))])
    for ours, theirs in zip(*found, strict=True):
        error = (ours - theirs).double().norm() / theirs.double().norm()
        assert error < (1e-5 if dtype == torch.float32 else 6e-3)
