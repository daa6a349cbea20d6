"""Canvases painted with mistakes: a generator learns to put them right, a decoder to look past them.

A stage's tokens are drawn each by itself, so that a sampled canvas holds mistakes no record holds. A generator trained
on records alone has never seen one and builds on it, and a decoder trained on them alone shows it. Here some tokens are
wrong in training, and what each stage has to paint is found anew from what is still missing.

Legend: B images, S = K + 1 stages, L positions, T = 2L - 1 tokens, U tokens of one stage, C latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nvg.granularity import cluster_mean
from nvg.precision import without_autocast
from nvg.randomness import Purpose, normals, uniforms
from nvg.tokenizer import Dequantizer
from nvg.tokenizer.quantizer import nearest_codes


@dataclass(frozen=True)
class MistakenCanvases:
    """Canvases x_0..x_K with mistakes, float32 (B, S, L, C), and the right ids on each one before, int64 (B, T)."""

    canvases_BSLC: Tensor
    content_ids_BT: Tensor


def drawn_mistakes(
    dequantizer: Dequantizer, largest: float, seed: int, step: int, global_batch: int, rows: slice
) -> dict[str, Tensor]:
    """Moves of the tokens of a step: mistakes (B, T, C), normals, and mistake_size (B,), 0 to below `largest`.

    Release: trains on no mistakes
    """
    shape = (global_batch, dequantizer.layout.num_tokens, dequantizer.config.latent_channels)
    size_B = uniforms(seed, 0, Purpose.TRAIN_MISTAKE_SIZE, step, (global_batch,), rows)
    return {
        "mistakes": normals(seed, 0, Purpose.TRAIN_MISTAKES, step, shape, rows),
        "mistake_size": (largest * size_B).float(),
    }


@torch.no_grad()
def mistaken_canvases(
    dequantizer: Dequantizer,
    content_ids_BT: Tensor,
    structure_BL: Tensor,
    final_BLC: Tensor,
    error_BTC: Tensor,
    size_B: Tensor,
) -> MistakenCanvases:
    """Paints records with mistakes and says what each stage has to add to the canvas it then finds.

    Stage by stage the mean of what is missing towards the final canvas is moved at random and the nearest code is
    painted. The size of a move is measured by what the stage has to add, so that all stages err alike. Up to the first
    mistake of an image everything is the record's own, to the bit.

    DEVIATION: neither the paper nor the release trains on mistakes; `loss.self_correction` (of the content generator,
    the idea is Infinity's, where bits are flipped) and `loss.token_perturbation` (of the tokenizer, the idea is
    RobustTok's, where tokens are swapped for near ones) are 0 in their presets.

    Args:
        dequantizer: codebook and refiners.
        content_ids_BT, structure_BL: int64, of the records.
        final_BLC: their final canvas x_K, which later stages still lead to.
        error_BTC: float32 standard normals, one a token and channel.
        size_B: float32, 0 for no mistake, 1 for moves as large as what is to be added.

    Paper: Eq. (4)-(5), App. A.2 (how tokens are found and painted)
    """
    codebook_VC, layout = dequantizer.codebook, dequantizer.layout
    with without_autocast(structure_BL.device):
        canvas_BLC, canvases, ids = torch.zeros_like(final_BLC), [], []
        right_B = torch.ones_like(size_B, dtype=torch.bool)
        for stage in range(layout.num_stages):
            recorded_BU = content_ids_BT[:, layout.tokens(stage)]
            missing_BUC = cluster_mean(final_BLC - canvas_BLC, structure_BL, stage)
            nearest_BU = nearest_codes(missing_BUC, codebook_VC)
            ids.append(torch.where(right_B[:, None], recorded_BU, nearest_BU))
            scale_B1C = size_B[:, None, None] * missing_BUC.square().mean(1, keepdim=True).sqrt()
            moved_BU = nearest_codes(missing_BUC + scale_B1C * error_BTC[:, layout.tokens(stage)], codebook_VC)
            painted_BU = torch.where(moved_BU == nearest_BU, ids[-1], moved_BU)
            right_B = right_B & (painted_BU == recorded_BU).all(1)
            canvas_BLC = canvas_BLC + dequantizer.contribution(codebook_VC[painted_BU], structure_BL, stage)
            canvases.append(canvas_BLC)
    return MistakenCanvases(torch.stack(canvases, 1), torch.cat(ids, 1))
