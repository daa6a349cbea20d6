"""Structure-aware rotary position embedding.

Legend: N sequences, S tokens, A id axes (kind, K structure channels, row, column), H heads, P = 32 rotated pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nvg.granularity import StageLayout, structure_embedding

HEAD_WIDTH = 64
NORM_EPS = 1e-6
THETA = 10_000.0
KIND_WIDTH = 8


def axis_widths(last_stage: int) -> list[int]:
    """Channels of a head given to each id axis: [8] kind, [2] × K structure, [28 - K] row, [28 - K] column; 64 in all.

    Paper: §2.2.2 (8 + 2·8 + 20 + 20 at K = 8)
    """
    return [KIND_WIDTH, *[2] * last_stage, 28 - last_stage, 28 - last_stage]


def rotary_table(ids_NSA: Tensor) -> Tensor:
    """Rotation of every pair of channels as cosine and sine.

    Each axis of width w turns its w / 2 interleaved pairs by id · θ^(-2j/w), θ = 10⁴: by the id alone where w is 2.

    Args:
        ids_NSA: int64 id rows from `token_ids`, A = 3 + K.

    Returns:
        float32 (N, S, 32, 2).

    Paper: §2.2.2 (structure-aware RoPE); Release: θ = 10⁴, interleaved pairs
    """
    kind_width, *_, grid_width = axis_widths(ids_NSA.shape[-1] - 3)
    grid_P = _frequencies(grid_width, ids_NSA.device)
    row_NS1, column_NS1 = ids_NSA[..., -2:-1], ids_NSA[..., -1:]
    kind_NSP = ids_NSA[..., :1] * _frequencies(kind_width, ids_NSA.device)
    angle_NSP = torch.cat([kind_NSP, ids_NSA[..., 1:-2].float(), row_NS1 * grid_P, column_NS1 * grid_P], dim=-1)
    return torch.stack([angle_NSP.cos(), angle_NSP.sin()], dim=-1)


def _frequencies(width: int, device: torch.device) -> Tensor:
    return THETA ** -(torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)


def rotate(x_NSHD: Tensor, table_NSP2: Tensor) -> Tensor:
    """Turns the interleaved channel pairs of queries or keys, where they lie.

    As a product of complex numbers, or written out where it is compiled: no code is generated for complex numbers. On a
    GPU where Triton works, `turning_on` gives another way.

    Args:
        x_NSHD: float32 heads of width D = 64.
        table_NSP2: rotations from `rotary_table`.

    Returns:
        float32 (N, S, H, D).

    Paper: §2.2.2 (structure-aware RoPE)
    """
    pairs_NSHP2, table_NS1P2 = x_NSHD.unflatten(-1, (-1, 2)), table_NSP2[:, :, None]
    if torch.compiler.is_compiling():
        (first, second), (cos, sin) = pairs_NSHP2.unbind(-1), table_NS1P2.unbind(-1)
        return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
    product = torch.view_as_complex(pairs_NSHP2) * torch.view_as_complex(table_NS1P2)
    return torch.view_as_real(product).flatten(-2)


def token_ids(structure_NL: Tensor, stage_N: Tensor, kinds: list[int], *, structure_aware: bool = True) -> Tensor:
    """Id rows of a sequence [class token, L tokens of each kind].

    Every kind carries the stage's structure embedding and the grid position; the whole row of the class token is 1.

    Args:
        structure_NL: int64 finest map, its `stage_N` leading bits are read.
        stage_N: int64, 0..K.
        kinds: kind id of each group of L tokens, e.g. [0] for content, [2, 0] for structure generation.
        structure_aware: False fills the structure channels with 1 (the ablation without structure-aware RoPE).

    Returns:
        int64 (N, 1 + L · len(kinds), 3 + K).

    Paper: §2.2.2, App. A.4 (kinds); Release: class row all ones
    """
    num_sequences, num_positions = structure_NL.shape
    layout = StageLayout(num_positions)
    embedding_NLK = structure_embedding(structure_NL, stage_N if structure_aware else 0, layout.last_stage)
    position_L = torch.arange(num_positions, device=structure_NL.device)
    grid_L2 = torch.stack([position_L // layout.side, position_L % layout.side], dim=-1)
    grid_NL2 = grid_L2.expand(num_sequences, -1, -1)
    rows = [embedding_NLK.new_ones(num_sequences, 1, layout.last_stage + 3)]
    for kind in kinds:
        kind_NL1 = torch.full_like(grid_NL2[..., :1], kind)
        rows.append(torch.cat([kind_NL1, embedding_NLK.expand(num_sequences, -1, -1), grid_NL2], dim=-1))
    return torch.cat(rows, dim=1)
