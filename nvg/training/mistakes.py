"""Canvases with mistakes or a foreign region: a generator learns to put them right, a decoder to look past them.

A stage's tokens are drawn each by itself, so that a sampled canvas holds mistakes no record holds. A generator trained
on records alone has never seen one and builds on it, and a decoder trained on them alone shows it. Here some tokens are
wrong in training, and what each stage has to paint is found anew from what is still missing. In an edit a region of the
canvas is another picture's; trained on records alone, the generator follows it rather than the class asked for.

Legend: B images, S = K + 1 stages, L positions, T = 2L - 1 tokens, U tokens of one stage, C latent channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvg.granularity import cluster_mean
from nvg.precision import without_autocast
from nvg.randomness import Purpose, normals, uniforms
from nvg.tokenizer import Dequantizer, Tokenizer
from nvg.tokenizer.quantizer import nearest_codes


@dataclass(frozen=True)
class Painted:
    """Canvases x_0..x_K, float32 (B, S, L, C), and the right ids of each stage on the one before, int64 (B, T)."""

    canvases_BSLC: Tensor
    ids_BT: Tensor


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
) -> Painted:
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
    return Painted(torch.stack(canvases, 1), torch.cat(ids, 1))


def drawn_regions(
    num_positions: int, share: float, seed: int, step: int, global_batch: int, rows: slice
) -> dict[str, Tensor]:
    """Foreign regions of a step: foreign bool (B, L), where the picture is seen turned; turn int64 (B,), 0 to 6: how.

    A region is what lies on one side of a line in any direction, from an eighth of the positions to seven eighths. In
    it the picture is turned or mirrored, in one of seven ways. Images beyond the share have none.

    Release: trains on no foreign regions
    """
    chosen_B, angle_B, size_B, turn_B = uniforms(
        seed, 0, Purpose.TRAIN_FOREIGN_REGION, step, (global_batch, 4), rows
    ).unbind(1)
    side = math.isqrt(num_positions)
    row_L, column_L = torch.arange(num_positions) // side, torch.arange(num_positions) % side
    angle_B1 = 2 * math.pi * angle_B[:, None]
    rank_BL = (torch.sin(angle_B1) * row_L + torch.cos(angle_B1) * column_L).argsort(1).argsort(1)
    size_B = torch.where(chosen_B < share, (num_positions * (1 + 6 * size_B) / 8).floor(), 0)
    return {"foreign": rank_BL < size_B[:, None], "turn": (7 * turn_B).long()}


def turned_positions(turn_B: Tensor, side: int) -> Tensor:
    """Where each position of a turned square comes from, in raster order: int64 (B, side²).

    Args:
        turn_B: int64, 0 to 6: which of the square's seven turns and mirrorings.
        side: of the square, in positions of a latent or in pixels.

    Release: trains on no foreign regions
    """
    upright = torch.arange(side**2, device=turn_B.device).view(side, side)
    forms = [form for start in (upright, upright.T) for form in (start, start.flip(0), start.flip(1), start.flip(0, 1))]
    return torch.stack(forms).flatten(1)[1 + turn_B]


@torch.no_grad()
def with_foreign_region(
    dequantizer: Dequantizer,
    painted: Painted,
    recorded_BSLC: Tensor,
    structure_BL: Tensor,
    foreign_BL: Tensor,
    turn_B: Tensor,
) -> Painted:
    """Shows the record's canvases turned in a region, and says what each stage then has to add.

    A turned picture is one that does not fit: so the canvas of an edit looks, where another picture is kept. The final
    canvas that the stages lead to stays the record's. Images without a region stay as they are, to the bit.

    DEVIATION: neither the paper nor the release trains on foreign regions; `loss.foreign_regions` (the idea is
    CutMix's, with the picture itself as the other one, so that an image needs no second) is 0 in their presets.

    Args:
        dequantizer: codebook and refiners.
        painted: canvases and ids, with mistakes or without.
        recorded_BSLC, structure_BL: canvases and maps of the records.
        foreign_BL, turn_B: of `drawn_regions`.

    Paper: Eq. (4)-(5), App. A.2 (how tokens are found)
    """
    from_BL = turned_positions(turn_B, math.isqrt(foreign_BL.shape[1]))
    turned_BSLC = recorded_BSLC.take_along_dim(from_BL[:, None, :, None], 2)
    canvases_BSLC = torch.where(foreign_BL[:, None, :, None], turned_BSLC, painted.canvases_BSLC)
    before_BSLC = F.pad(canvases_BSLC[:, :-1], (0, 0, 0, 0, 1, 0))
    with without_autocast(structure_BL.device):
        ids = [
            nearest_codes(
                cluster_mean(recorded_BSLC[:, -1] - before_BSLC[:, stage], structure_BL, stage), dequantizer.codebook
            )
            for stage in range(dequantizer.layout.num_stages)
        ]
    return Painted(canvases_BSLC, torch.where(foreign_BL.any(1, keepdim=True), torch.cat(ids, 1), painted.ids_BT))


def beside_turned(
    network: Tokenizer, canvas_BLC: Tensor, images_BCSS: Tensor, foreign_BL: Tensor, turn_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Canvases and images that show the picture turned in a region: what a decoder sees in an edit, and has to paint.

    The turned picture is tokenised by itself and no gradient goes through it. Images without a region stay as they are,
    to the bit.

    DEVIATION: neither the paper nor the release trains a decoder on two pictures in one canvas; `loss.foreign_regions`
    of the tokenizer is 0 in their presets.

    Args:
        network: encoder, codebook and refiners.
        canvas_BLC: final canvases.
        images_BCSS: float32 in [-1, 1], which they are of.
        foreign_BL, turn_B: of `drawn_regions`.

    Returns:
        canvases (B, L, C) and images (B, C, S, S).

    Release: trains on no foreign regions
    """
    side, pixels = network.config.latent_side, images_BCSS.shape[-1]
    from_BP = turned_positions(turn_B, pixels)
    with torch.no_grad():
        turned_BCSS = images_BCSS.flatten(2).take_along_dim(from_BP[:, None], 2).view_as(images_BCSS)
        latent_BLC = network.encode(turned_BCSS).float()
        with without_autocast(latent_BLC.device):
            ids_BT, structure_BL = network.tokenize_latent(latent_BLC, checked=False)
            turned_BLC = network.dequantizer.canvases(ids_BT, structure_BL)[:, -1]
    seen_BCSS = F.interpolate(foreign_BL.view(-1, 1, side, side).float(), size=(pixels, pixels), mode="nearest") > 0
    return (
        torch.where(foreign_BL[..., None], turned_BLC, canvas_BLC),
        torch.where(seen_BCSS, turned_BCSS, images_BCSS),
    )
