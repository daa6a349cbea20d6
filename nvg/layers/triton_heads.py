"""Norm and rotation of queries and keys on a GPU, in Triton: each tensor is read once and written once.

Inductor's kernels for the same formulas move two to three times the bytes in the backward pass, and read heads at half
the memory's speed. The heads are those of `normed_and_turned`: float32 inside, rounded where it rounds.

Legend: T = N · S tokens, W = 2 (queries, keys), H heads, D = 64 channels of a head, P = 32 rotated pairs, R tokens that
a program takes.
"""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
# A kernel's numbers are Triton's, whose own annotations say otherwise.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvg.layers.rope import HEAD_WIDTH, NORM_EPS

_TOKENS = 16  # R: a tile is 16 · 64 numbers, eight for each thread of four warps


@triton.jit
def _pairs(row_RD, R: tl.constexpr):
    """Tile (R, 64) as the first and the second channel of each pair, (R, 32) both."""
    return tl.split(tl.reshape(row_RD, [R, 32, 2]))


@triton.jit
def _turn(heads_TWHD, gain_WD, table_TPW, query_THD, key_THD, num_tokens, eps, H: tl.constexpr, R: tl.constexpr):
    """RMS norm of each head, its gain, its rotation.

    Paper: §2.2.2 (structure-aware RoPE)
    """
    t_R = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    d_D = tl.arange(0, 64)
    inside_RD = (t_R < num_tokens)[:, None] & (d_D >= 0)[None, :]
    cos_RP, sin_RP = _pairs(tl.load(table_TPW + t_R[:, None] * 64 + d_D[None, :], mask=inside_RD, other=0.0), R)
    for which in tl.static_range(2):
        gain_RD = tl.broadcast_to(tl.load(gain_WD + which * 64 + d_D)[None, :], (R, 64))
        even_RP, odd_RP = _pairs(gain_RD, R)
        turned = query_THD if which == 0 else key_THD
        for head in range(H):
            place_RD = ((t_R * 2 + which) * H + head)[:, None] * 64 + d_D[None, :]
            row_RD = tl.load(heads_TWHD + place_RD, mask=inside_RD, other=0.0)
            x_RP, y_RP = _pairs(row_RD.to(tl.float32), R)
            scale_R1 = tl.rsqrt(tl.sum(x_RP * x_RP + y_RP * y_RP, 1) / 64 + eps)[:, None]
            x_RP = (x_RP * scale_R1 * even_RP).to(row_RD.dtype).to(tl.float32)
            y_RP = (y_RP * scale_R1 * odd_RP).to(row_RD.dtype).to(tl.float32)
            out_RPW = tl.join(x_RP * cos_RP - y_RP * sin_RP, x_RP * sin_RP + y_RP * cos_RP)
            out_RD = tl.reshape(out_RPW, [R, 64]).to(row_RD.dtype)
            tl.store(turned + (t_R * H + head)[:, None] * 64 + d_D[None, :], out_RD, mask=inside_RD)


@triton.jit
def _turn_back(
    query_THD, key_THD, heads_TWHD, gain_WD, table_TPW, heads_grad_TWHD, gain_grad_GWD, num_tokens, eps,
    H: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Gradient of the heads from those of queries and keys, and of the gains, a row for each program.

    With u = x / rms(x), v the gradient turned back and g = v · gain: the gain's is Σ v · u, that of x is
    (g - u · mean(g · u)) / rms(x).
    """
    program = tl.program_id(0).to(tl.int64)
    t_R = program * R + tl.arange(0, R)
    d_D = tl.arange(0, 64)
    inside_RD = (t_R < num_tokens)[:, None] & (d_D >= 0)[None, :]
    cos_RP, sin_RP = _pairs(tl.load(table_TPW + t_R[:, None] * 64 + d_D[None, :], mask=inside_RD, other=0.0), R)
    for which in tl.static_range(2):
        gain_RD = tl.broadcast_to(tl.load(gain_WD + which * 64 + d_D)[None, :], (R, 64))
        even_RP, odd_RP = _pairs(gain_RD, R)
        given = query_THD if which == 0 else key_THD
        even_grad_RP = tl.zeros([R, 32], tl.float32)
        odd_grad_RP = tl.zeros([R, 32], tl.float32)
        for head in range(H):
            row_RD = tl.load(given + (t_R * H + head)[:, None] * 64 + d_D[None, :], mask=inside_RD, other=0.0)
            a_RP, b_RP = _pairs(row_RD.to(tl.float32), R)
            v_RP, w_RP = a_RP * cos_RP + b_RP * sin_RP, b_RP * cos_RP - a_RP * sin_RP
            place_RD = ((t_R * 2 + which) * H + head)[:, None] * 64 + d_D[None, :]
            kept_RD = tl.load(heads_TWHD + place_RD, mask=inside_RD, other=0.0)
            x_RP, y_RP = _pairs(kept_RD.to(tl.float32), R)
            scale_R1 = tl.rsqrt(tl.sum(x_RP * x_RP + y_RP * y_RP, 1) / 64 + eps)[:, None]
            x_RP, y_RP = x_RP * scale_R1, y_RP * scale_R1
            even_grad_RP += v_RP * x_RP
            odd_grad_RP += w_RP * y_RP
            v_RP, w_RP = v_RP * even_RP, w_RP * odd_RP
            mean_R1 = (tl.sum(v_RP * x_RP + w_RP * y_RP, 1) / 64)[:, None]
            out_RPW = tl.join((v_RP - x_RP * mean_R1) * scale_R1, (w_RP - y_RP * mean_R1) * scale_R1)
            tl.store(heads_grad_TWHD + place_RD, tl.reshape(out_RPW, [R, 64]).to(kept_RD.dtype), mask=inside_RD)
        grad_PW = tl.join(tl.sum(even_grad_RP, 0), tl.sum(odd_grad_RP, 0))
        tl.store(gain_grad_GWD + (program * 2 + which) * 64 + d_D, tl.reshape(grad_PW, [64]))


def _grid(heads_NSWHD: Tensor) -> tuple[int]:
    return (triton.cdiv(heads_NSWHD.shape[0] * heads_NSWHD.shape[1], _TOKENS),)


def _constants(heads_NSWHD: Tensor) -> dict[str, Any]:
    return {"H": heads_NSWHD.shape[3], "R": _TOKENS, "num_warps": 4}


def _turned(heads_NSWHD: Tensor, gain_WD: Tensor, table_NSP2: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Queries and keys (N, S, H, D) from heads that lie in order, float32 gains (2, D) and float32 rotations."""
    heads_NSWHD = heads_NSWHD.contiguous()
    shape = heads_NSWHD.shape[:2] + heads_NSWHD.shape[3:]
    query_NSHD, key_NSHD = heads_NSWHD.new_empty(shape), heads_NSWHD.new_empty(shape)
    num_tokens = shape[0] * shape[1]
    _turn[_grid(heads_NSWHD)](
        heads_NSWHD, gain_WD.contiguous(), table_NSP2.contiguous(), query_NSHD, key_NSHD, num_tokens, eps,
        **_constants(heads_NSWHD),
    )  # fmt: skip
    return query_NSHD, key_NSHD


def _turned_back(
    query_NSHD: Tensor, key_NSHD: Tensor, heads_NSWHD: Tensor, gain_WD: Tensor, table_NSP2: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of heads and gains from those of queries and keys."""
    heads_NSWHD = heads_NSWHD.contiguous()
    heads_grad_NSWHD = torch.empty_like(heads_NSWHD)
    grid = _grid(heads_NSWHD)
    gain_grad_GWD = gain_WD.new_empty(grid[0], 2, HEAD_WIDTH)
    num_tokens = heads_NSWHD.shape[0] * heads_NSWHD.shape[1]
    _turn_back[grid](
        query_NSHD.contiguous(), key_NSHD.contiguous(), heads_NSWHD, gain_WD.contiguous(), table_NSP2.contiguous(),
        heads_grad_NSWHD, gain_grad_GWD, num_tokens, eps, **_constants(heads_NSWHD),
    )  # fmt: skip
    return heads_grad_NSWHD, gain_grad_GWD.sum(0)


_forward = torch.library.custom_op("nvg::turn_heads", _turned, mutates_args=())
_backward = torch.library.custom_op("nvg::turn_heads_backward", _turned_back, mutates_args=())


@_forward.register_fake
def _(heads_NSWHD: Tensor, gain_WD: Tensor, table_NSP2: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    shape = heads_NSWHD.shape[:2] + heads_NSWHD.shape[3:]
    return heads_NSWHD.new_empty(shape), heads_NSWHD.new_empty(shape)


@_backward.register_fake
def _(
    query_NSHD: Tensor, key_NSHD: Tensor, heads_NSWHD: Tensor, gain_WD: Tensor, table_NSP2: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return heads_NSWHD.new_empty(heads_NSWHD.shape), torch.empty_like(gain_WD)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, query_NSHD: Tensor, key_NSHD: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(query_NSHD, key_NSHD, *ctx.saved_tensors, ctx.eps), None, None


_forward.register_autograd(_gradients, setup_context=_keep)


def turn_heads(heads_NSWHD: Tensor, gain_WD: Tensor, table_NSP2: Tensor) -> tuple[Tensor, Tensor]:
    """What `nvg.layers.block.normed_and_turned` gives, on a GPU; gradients reach the heads and the gains.

    Args:
        heads_NSWHD: queries and keys, any float dtype.
        gain_WD: of the norms.
        table_NSP2: float32 rotations from `rotary_table`.

    Returns:
        queries and keys (N, S, H, D), each in order.

    Paper: §2.2.2 (structure-aware RoPE); Release: eps 1e-6
    """
    return _forward(heads_NSWHD, gain_WD.float(), table_NSP2, NORM_EPS)
