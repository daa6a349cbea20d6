"""The transformer block both generators are made of, and its modulation.

Legend: N sequences, S tokens, D model width, H heads, P = 32 rotated pairs of a head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.layers.rope import HEAD_WIDTH, NORM_EPS, rotate
from nvg.precision import refused_by_triton

logger = logging.getLogger(__name__)

Turn: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class HeadNorm(nn.Module):
    """Gain of the RMS norm over the 64 channels of a head, shared by the heads; see `normed_and_turned`.

    Release: eps 1e-6
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(HEAD_WIDTH))


def normed_and_turned(qk_NS2HD: Tensor, gain_2D: Tensor, table_NSP2: Tensor) -> tuple[Tensor, Tensor]:
    """RMS norm over each head and rotation of queries and keys, both at once and where they lie, in float32.

    Args:
        qk_NS2HD: queries and keys, any float dtype.
        gain_2D: of the norms, one for queries and one for keys.
        table_NSP2: rotations from `rotary_table`.

    Returns:
        queries and keys (N, S, H, D) in the dtype they came in; it is also that of what is turned.

    Paper: §2.2.2 (structure-aware RoPE); Release: eps 1e-6
    """
    normed = F.rms_norm(qk_NS2HD.float(), qk_NS2HD.shape[-1:], eps=NORM_EPS) * gain_2D.float()[:, None]
    heads_NSHD = normed.type_as(qk_NS2HD).float().flatten(2, 3)
    query, key = rotate(heads_NSHD, table_NSP2).type_as(qk_NS2HD).view_as(qk_NS2HD).unbind(2)
    return query, key


@cache
def turning_on(device: torch.device) -> Turn:
    """How queries and keys are normed and turned on a device: in one kernel where Triton works, else in torch.

    Paper: §2.2.2 (structure-aware RoPE)
    """
    if device.type != "cuda":
        return normed_and_turned
    if reason := refused_by_triton(device, _triton_turns_alike):
        logger.warning(
            "queries and keys on %s are turned by PyTorch, with two to three times the traffic: %s", device, reason
        )
        return normed_and_turned
    from nvg.layers.triton_heads import turn_heads

    return turn_heads


@torch.inference_mode(False)
@torch.enable_grad()
def _triton_turns_alike(device: torch.device) -> str | None:
    """Two sequences turned both ways: None, or in which way Triton differs."""
    from nvg.layers.triton_heads import turn_heads

    number = torch.arange(2 * 9 * 2 * 3 * HEAD_WIDTH, device=device).sin()
    qk_NS2HD = number.view(2, 9, 2, 3, HEAD_WIDTH).requires_grad_()
    gain_2D = torch.linspace(0.5, 2, 2 * HEAD_WIDTH, device=device).view(2, HEAD_WIDTH).requires_grad_()
    angle_NSP = torch.linspace(0, 9, 2 * 9 * 32, device=device).view(2, 9, 32)
    table_NSP2 = torch.stack([angle_NSP.cos(), angle_NSP.sin()], dim=-1)
    found = []
    for turn in (turn_heads, normed_and_turned):
        query, key = turn(qk_NS2HD, gain_2D, table_NSP2)
        found.append([query, key, *torch.autograd.grad((query * key.square()).sum(), (qk_NS2HD, gain_2D))])
    alike = all(torch.allclose(*pair, rtol=1e-4, atol=1e-4) for pair in zip(*found, strict=True))
    return None if alike else "Triton turns heads otherwise than PyTorch"


class Modulation(nn.Module):
    """`num_parts` vectors of width D from the conditioning vector: linear(SiLU(vec)).

    Paper: App. A.4 (modulation of FLUX)
    """

    def __init__(self, width: int, num_parts: int) -> None:
        super().__init__()
        self.num_parts = num_parts
        self.linear = nn.Linear(width, num_parts * width)

    def forward(self, vec_ND: Tensor) -> tuple[Tensor, ...]:
        """`num_parts` vectors (N, 1, D) that broadcast over the tokens, from the conditioning vector (N, D)."""
        return self.linear(F.silu(vec_ND))[:, None, :].chunk(self.num_parts, dim=-1)


def modulate(x_NSD: Tensor, shift_N1D: Tensor, scale_N1D: Tensor) -> Tensor:
    """(1 + scale) · LayerNorm(x) + shift, without affine parameters: float32 (N, S, D), shift and scale (N, 1, D).

    Paper: App. A.4 (modulation of FLUX)
    """
    normed = F.layer_norm(x_NSD.float(), x_NSD.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(shift_N1D.float(), normed, 1 + scale_N1D.float())


class SingleStreamBlock(nn.Module):
    """Attention and MLP side by side on one modulated input, gated onto a float32 residual stream.

    Every token attends to every other: a stage sees its whole canvas.

    Paper: App. A.4 (FLUX single-stream block)
    """

    def __init__(self, width: int, mlp_ratio: int) -> None:
        super().__init__()
        self.num_heads = width // HEAD_WIDTH
        self.mlp_width = mlp_ratio * width
        self.modulation = Modulation(width, 3)
        self.linear_in = nn.Linear(width, 3 * width + self.mlp_width)
        self.query_norm = HeadNorm()
        self.key_norm = HeadNorm()
        self.linear_out = nn.Linear(width + self.mlp_width, width)

    def forward(
        self,
        x_NSD: Tensor,
        vec_ND: Tensor,
        table_NSP2: Tensor,
        branch_scale_N: Tensor | None = None,
        turn: Turn = normed_and_turned,
    ) -> Tensor:
        """Applies the block.

        Args:
            x_NSD: float32 residual stream.
            vec_ND: conditioning vector, any float dtype.
            table_NSP2: float32 rotations from `rotary_table`.
            branch_scale_N: drop-path multiplier of the gated branch, one a sequence (0 or 1 / keep rate); None is 1.
            turn: see `turning_on`.

        Returns:
            float32 (N, S, D).
        """
        shift, scale, gate = self.modulation(vec_ND)
        heads, mlp = _split_linear(self.linear_in, _as_factor(modulate(x_NSD, shift, scale)), self.mlp_width, turn)
        qk_NS2HD, value_NS1HD = (part.unflatten(-1, (-1, self.num_heads, HEAD_WIDTH)) for part in heads)
        gain_2D = torch.stack([self.query_norm.gain, self.key_norm.gain])
        query, key = turn(qk_NS2HD, gain_2D, table_NSP2)
        # Attention takes views of what lies token by token, and gives back what the next product reads in order.
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value_NS1HD.squeeze(2).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        branch = _joined_linear(self.linear_out, attended, mlp)
        gate = gate.float() if branch_scale_N is None else gate.float() * branch_scale_N[:, None, None]
        return torch.addcmul(x_NSD, gate, branch.float())


def _as_factor(x: Tensor) -> Tensor:
    """The input of several matrix products, rounded once to their precision."""
    kind = x.device.type
    # Not `is_autocast_available`: in torch 2.11 it would cut the compiled block in two.
    return x.to(torch.get_autocast_dtype(kind)) if kind != "meta" and torch.is_autocast_enabled(kind) else x


def _split_linear(linear: nn.Linear, x: Tensor, last: int, turn: Turn) -> tuple[tuple[Tensor, ...], Tensor]:
    """linear(x) as ((queries and keys, values), the rest), GELU on the rest, without the copies of a split backwards.

    A kernel of its own for queries and keys gives their gradient apart; then they are a product of their own, too.
    """
    first = linear.out_features - last
    parts = (first // 3 * 2, first // 3)
    sizes = [first] if turn is normed_and_turned else parts
    *heads, mlp = zip(linear.weight.split([*sizes, last]), linear.bias.split([*sizes, last]), strict=True)
    made = [F.linear(x, *weights) for weights in heads]
    return tuple(made if len(made) == len(parts) else made[0].split(parts, dim=-1)), _linear_gelu(x, *mlp)


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu(linear(x)), the tanh form; on a CPU that keeps no gradient as one operation of oneDNN.

    PyTorch's own tanh form takes longer there than the matrix product: its tanh is the accurate, slow one.
    """
    fuses = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
    )
    if fuses:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def _joined_linear(linear: nn.Linear, first: Tensor, second: Tensor) -> Tensor:
    """linear([first | second]) without building the concatenation; the second product adds onto the first."""
    left, right = linear.weight.split([first.shape[-1], second.shape[-1]], dim=1)
    begun = F.linear(first, left, linear.bias)
    return torch.addmm(begun.flatten(0, 1), second.flatten(0, 1), right.t()).view_as(begun)


class ModulatedHead(nn.Module):
    """Last LayerNorm with shift and scale from the conditioning vector, then a linear layer.

    Release: head of both generators
    """

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, 2)
        self.linear = nn.Linear(width, out_channels)

    def forward(self, x_NSD: Tensor, vec_ND: Tensor) -> Tensor:
        """Float32 (N, S, out_channels) of the stream (N, S, D) under the conditioning vector (N, D)."""
        shift, scale = self.modulation(vec_ND)
        return self.linear(modulate(x_NSD, shift, scale)).float()
