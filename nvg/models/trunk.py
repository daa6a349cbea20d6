"""Sizes, initialisation and the stack of blocks common to both generators.

Legend: N sequences, S tokens, D model width.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvg.errors import UserError
from nvg.granularity import StageLayout
from nvg.layers import HEAD_WIDTH, SingleStreamBlock, Turn, branch_scales, drop_path_rates, turning_on

CONTENT_WIDTH_PER_DEPTH = 64
STRUCTURE_WIDTH_PER_DEPTH = 32
_MOST_BLOCKS = 1024


def resolve_width(depth: int, width: int | None, width_per_depth: int) -> int:
    """Model width: `width_per_depth` · depth unless a width is given; heads are always 64 wide.

    Raises:
        UserError: the width is no positive multiple of 64.

    Paper: Eq. (8), Eq. (10), App. A.4
    """
    resolved = width_per_depth * depth if width is None else width
    if not 1 <= depth <= _MOST_BLOCKS or resolved < HEAD_WIDTH or resolved % HEAD_WIDTH:
        raise UserError(
            f"depth {depth} and width {width} give a model width of {resolved}; "
            f"a positive multiple of {HEAD_WIDTH} (the width of one head) and at most {_MOST_BLOCKS} blocks are needed"
        )
    return resolved


def check_token_space(num_positions: int, num_classes: int, codebook_size: int, latent_channels: int) -> None:
    """Raises UserError when the shape of the data is impossible."""
    StageLayout(num_positions)
    for name, value in (
        ("num_classes", num_classes),
        ("codebook_size", codebook_size),
        ("latent_channels", latent_channels),
    ):
        if value < 1:
            raise UserError(f"{name} is {value}; at least 1 is needed")


@dataclass
class HiddenTokens:
    """Asks a forward pass for its stream after a block.

    Attributes:
        after_block: number of the block, from 1.
        tokens_NSD: float32 stream, once the pass is made.
    """

    after_block: int
    tokens_NSD: Tensor | None = None


class Trunk(nn.Module):
    """`depth` single-stream blocks under one conditioning vector and one table of rotations.

    With `recompute_activations` the backward pass computes each block again instead of keeping what it needs: the same
    numbers, a third more work, a fraction of the memory. No block draws random numbers. With `matmul_dtype` the blocks'
    matrix products are in that precision (autocast), whatever the caller's is; None leaves it to the caller.

    Paper: Eq. (9), App. A.4 (15 w² weights a block)
    """

    rates: Tensor

    def __init__(self, depth: int, width: int, mlp_ratio: int, drop_path_rate: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SingleStreamBlock(width, mlp_ratio) for _ in range(depth))
        self.recompute_activations = False
        self.compiled = False
        self.matmul_dtype: torch.dtype | None = None
        self.register_buffer("rates", drop_path_rates(depth, depth, drop_path_rate), persistent=False)

    def compile_blocks(self) -> None:
        """Has each block compiled at its first call; all of them share the code, for each shape of input."""
        for block in self.blocks:
            block.compile(fullgraph=True)
        self.compiled = True

    def forward(
        self,
        x_NSD: Tensor,
        vec_ND: Tensor,
        table_NSP2: Tensor,
        drop_path_ND: Tensor | None = None,
        hidden: HiddenTokens | None = None,
    ) -> Tensor:
        """Runs the blocks.

        Args:
            x_NSD: embedded tokens, any float dtype.
            vec_ND: conditioning vector.
            table_NSP2: float32 rotations from `rotary_table`.
            drop_path_ND: uniforms (N, depth) that decide which branches are dropped; None keeps all.
            hidden: takes the stream after one of the blocks.

        Returns:
            float32 (N, S, D).

        Raises:
            UserError: the blocks were to be compiled and cannot be.
        """
        precision = nullcontext() if self.matmul_dtype is None else torch.autocast(x_NSD.device.type, self.matmul_dtype)
        with precision:
            scales = None if drop_path_ND is None else branch_scales(drop_path_ND, self.rates)
            x_NSD, turn = x_NSD.float(), turning_on(x_NSD.device)
            for number, block in enumerate(self.blocks):
                scale_N = None if scales is None else scales[number]
                x_NSD = self._after(block, x_NSD, vec_ND, table_NSP2, scale_N, turn)
                if hidden is not None and number + 1 == hidden.after_block:
                    hidden.tokens_NSD = x_NSD
        return x_NSD

    def _after(self, block: nn.Module, *given: Tensor | Turn | None) -> Tensor:
        try:
            if self.recompute_activations and torch.is_grad_enabled():
                return checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False)
            return block(*given)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # seconds to load, where nothing is compiled

            if self.compiled and isinstance(error, TorchDynamoException):
                raise UserError(
                    f"the blocks cannot be compiled: {str(error).strip().partition(chr(10))[0]}; expected a C++ "
                    "compiler for a CPU, Triton for a GPU; install it, or set compile=false (compute.compile in a "
                    "training) to run them as they are, slower"
                ) from error
            raise


def initialize(module: nn.Module) -> None:
    """Xavier-uniform linears with zero bias, N(0, 0.02) embeddings; nothing starts at zero.

    Release: applies to modulations and heads too
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
