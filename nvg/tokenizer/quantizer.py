"""Multi-granularity residual quantiser: a latent becomes K + 1 stages of content ids on a given structure.

Legend: B images, L positions, T = 2L - 1 tokens, U tokens of one stage, C latent channels, V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvg.granularity import cluster_mean
from nvg.tokenizer.dequantizer import Dequantizer


@dataclass(frozen=True)
class Quantized:
    """What quantising gives back.

    content_ids_BT: int64 (B, 2L - 1); canvas_BLC: the final canvas x_K with straight-through gradient to the latent;
    loss: scalar quantiser loss, the mean over the stages.
    """

    content_ids_BT: Tensor
    canvas_BLC: Tensor
    loss: Tensor


def nearest_codes(features_BUC: Tensor, codebook_VC: Tensor) -> Tensor:
    """Ids (B, U) of the nearest codebook entries, ℓ2 in float32, the lowest id among equals.

    Paper: Eq. (4), App. A.2
    """
    return squared_distances(features_BUC, codebook_VC).argmin(-1)


def squared_distances(features_BUC: Tensor, codebook_VC: Tensor) -> Tensor:
    """Squared ℓ2 distances up to each feature's own norm, which no comparison needs.

    Args:
        features_BUC: means of the clusters, float32.
        codebook_VC: entries, float32.

    Returns:
        float32 (B, U, V); may be negative.

    Paper: Eq. (4), App. A.2
    """
    return codebook_VC.square().sum(1) - 2.0 * features_BUC @ codebook_VC.t()


def quantize_ids(latent_BLC: Tensor, structure_BL: Tensor, dequantizer: Dequantizer) -> Tensor:
    """Content ids of a latent on a structure: int64 (B, 2L - 1), stages in order.

    Each stage averages the residual inside its clusters, takes the nearest entries, paints them and subtracts.

    Args:
        latent_BLC: any float dtype, computed in float32.
        structure_BL: int64 finest map.
        dequantizer: codebook and refiners.

    Paper: Eq. (4)-(5), Alg. 1 lines 2, 5, 7-8 (of line 2 c_0)
    """
    residual_BLC, ids = latent_BLC.detach().float(), []
    for stage in range(dequantizer.layout.num_stages):
        ids.append(nearest_codes(cluster_mean(residual_BLC, structure_BL, stage), dequantizer.codebook))
        residual_BLC = residual_BLC - dequantizer.contribution(dequantizer.codebook[ids[-1]], structure_BL, stage)
    return torch.cat(ids, dim=1)


def quantize_for_training(
    latent_BLC: Tensor,
    structure_BL: Tensor,
    dequantizer: Dequantizer,
    *,
    commitment_weight: float,
    soft_assignment: bool,
) -> Quantized:
    """Quantises with the training losses.

    The codebook and the refiners learn from the quantiser loss alone; the encoder learns through the straight-through
    estimate and the commitment term. With `soft_assignment` (the warm-up of index backpropagation) ids stay hard in the
    forward pass while the gradient reaches every entry through softmax(-distance), never the encoder.

    Args:
        latent_BLC: float32, with gradient to the encoder.
        structure_BL: int64 finest map of the latent.
        dequantizer: codebook and refiners that are trained.
        soft_assignment: whether gradients reach every codebook entry.
        commitment_weight: β of the loss β · mse(sg(x_i), Z) + mse(x_i, sg(Z)).

    Paper: Eq. (4)-(5), App. A.2 and A.5; Release: losses, softmax(-distance) at temperature 1
    """
    target_BLC = latent_BLC.detach()
    canvas_BLC, ids, loss = torch.zeros_like(latent_BLC), [], latent_BLC.new_zeros(())
    for stage in range(dequantizer.layout.num_stages):
        features_BUC = cluster_mean(target_BLC - canvas_BLC.detach(), structure_BL, stage)
        distances_BUV = squared_distances(features_BUC, dequantizer.codebook)
        ids.append(distances_BUV.argmin(-1))
        if soft_assignment:
            soft_BUV = (-distances_BUV).softmax(-1)
            hard_BUV = F.one_hot(ids[-1], soft_BUV.shape[-1]).to(soft_BUV)
            codes_BUC = (hard_BUV + soft_BUV - soft_BUV.detach()) @ dequantizer.codebook
        else:
            codes_BUC = dequantizer.codebook[ids[-1]]
        canvas_BLC = canvas_BLC + dequantizer.contribution(codes_BUC, structure_BL, stage)
        commitment = F.mse_loss(canvas_BLC.detach(), latent_BLC)
        loss = loss + commitment_weight * commitment + F.mse_loss(canvas_BLC, target_BLC)
    return Quantized(
        content_ids_BT=torch.cat(ids, dim=1),
        canvas_BLC=latent_BLC + (canvas_BLC - latent_BLC).detach(),
        loss=loss / dequantizer.layout.num_stages,
    )
