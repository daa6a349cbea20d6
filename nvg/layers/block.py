"""The transformer block both generators are made of, and its modulation.

Legend: N sequences, S tokens, D model width, H heads, P = 32 rotated pairs of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nvg.layers.rope import HEAD_WIDTH, rotate

NORM_EPS = 1e-6


class HeadNorm(nn.Module):
    """RMS norm over the 64 channels of a head in float32, one gain shared by the heads.

    Release: eps 1e-6
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(HEAD_WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (..., 64), computed in float32, returned in the dtype of `x`."""
        return F.rms_norm(x.float(), (HEAD_WIDTH,), self.gain.float(), NORM_EPS).type_as(x)


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
        self, x_NSD: Tensor, vec_ND: Tensor, table_NSP2: Tensor, branch_scale_N: Tensor | None = None
    ) -> Tensor:
        """Applies the block.

        Args:
            x_NSD: float32 residual stream.
            vec_ND: conditioning vector, any float dtype.
            table_NSP2: float32 rotations from `rotary_table`.
            branch_scale_N: drop-path multiplier of the gated branch, one a sequence (0 or 1 / keep rate); None is 1.

        Returns:
            float32 (N, S, D).
        """
        shift, scale, gate = self.modulation(vec_ND)
        qkv, mlp = _split_linear(self.linear_in, modulate(x_NSD, shift, scale), self.mlp_width)
        query, key, value = rearrange(qkv, "n s (three h d) -> three n h s d", three=3, h=self.num_heads)
        query = rotate(self.query_norm(query), table_NSP2)
        key = rotate(self.key_norm(key), table_NSP2)
        attended = rearrange(F.scaled_dot_product_attention(query, key, value), "n h s d -> n s (h d)")
        branch = _joined_linear(self.linear_out, attended, mlp)
        gated = gate.float() * branch.float()
        if branch_scale_N is not None:
            gated = gated * branch_scale_N[:, None, None]
        return x_NSD + gated


def _split_linear(linear: nn.Linear, x: Tensor, last: int) -> tuple[Tensor, Tensor]:
    """linear(x) as two tensors, GELU on the last of them, without the copies of a split in the backward pass."""
    first = linear.out_features - last
    heads = linear.weight.split([first, last]), linear.bias.split([first, last])
    return F.linear(x, heads[0][0], heads[1][0]), _linear_gelu(x, heads[0][1], heads[1][1])


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
    """linear([first | second]) without building the concatenation."""
    left, right = linear.weight.split([first.shape[-1], second.shape[-1]], dim=1)
    return F.linear(first, left, linear.bias) + F.linear(second, right)


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
