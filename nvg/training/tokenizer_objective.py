"""Training loss of the tokenizer.

Legend: B images, L positions, C latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.errors import UserError
from nvg.tokenizer import Tokenizer, quantize_for_training


@dataclass(frozen=True, kw_only=True)
class TokenizerLossConfig:
    """Weights of the losses.

    Attributes:
        commitment_weight: β of the quantiser loss.
        codebook_weight: weight of the quantiser loss beside the reconstruction.
        soft_assignment_images: for how many images from the start every codebook entry receives gradient.

    Paper: App. A.5 (β = 0.25, one epoch of warm-up)
    """

    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    soft_assignment_images: int = 1_281_167

    def __post_init__(self) -> None:
        if min(self.commitment_weight, self.codebook_weight, self.soft_assignment_images) < 0:
            raise UserError("commitment_weight, codebook_weight and soft_assignment_images must not be negative")


class TokenizerObjective(nn.Module):
    """L1 reconstruction plus the quantiser loss.

    DEVIATION: perceptual and adversarial losses are not there yet.

    Paper: Eq. (4)-(5), App. A.5
    """

    def __init__(self, network: Tokenizer, config: TokenizerLossConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config

    def draw_noise(self, *, seed: int, step: int, global_batch: int) -> dict[str, Tensor]:
        """Nothing is random here; tells whether the warm-up of the codebook is still on, (global_batch,) bool."""
        warm = step * global_batch < self.config.soft_assignment_images
        return {"soft_assignment": torch.full((global_batch,), warm)}

    def forward(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of `batch["image"]`, float32 (B, channels, S, S) in [-1, 1].

        Returns:
            scalar loss; metrics l1, quantizer and the share of distinct codebook entries in the batch.
        """
        latent_BLC = self.network.encode(batch["image"])
        structure_BL = self.network.structure_maps(latent_BLC)
        quantized = quantize_for_training(
            latent_BLC,
            structure_BL,
            self.network.dequantizer,
            commitment_weight=self.config.commitment_weight,
            soft_assignment=bool(noise["soft_assignment"].any()),
        )
        l1 = F.l1_loss(self.network.decode(quantized.canvas_BLC), batch["image"])
        used = torch.bincount(quantized.content_ids_BT.flatten(), minlength=self.network.config.codebook_size) > 0
        loss = l1 + self.config.codebook_weight * quantized.loss
        metrics = {"l1": l1, "quantizer": quantized.loss, "codebook_used": used.float().mean()}
        return loss, {name: value.detach() for name, value in metrics.items()}
