"""Adversarial losses of the tokenizer, and the discriminator's side of a training step.

Legend: B images, C channels, S side, N logits of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.bounds import check_fields
from nvg.errors import UserError
from nvg.tokenizer.augmentation import augment
from nvg.tokenizer.discriminator import Discriminator


@dataclass(frozen=True, kw_only=True)
class DiscriminatorLossConfig:
    """Loss of the discriminator.

    Attributes:
        lecam_weight: weight of the LeCam regulariser; 0 switches it off.
        lecam_decay: share of the old value that its averages keep in a step.
    """

    lecam_weight: float = 0.001
    lecam_decay: float = 0.999

    def __post_init__(self) -> None:
        check_fields(self, "judges.loss")
        if self.lecam_weight < 0 or not 0 <= self.lecam_decay < 1:
            raise UserError(
                f"lecam_weight is {self.lecam_weight} and lecam_decay {self.lecam_decay}; a weight of 0 or more and a "
                "share from 0 to below 1 are needed"
            )


def generator_loss(fake_logits_BN: Tensor) -> Tensor:
    """Non-saturating loss: softplus of minus the mean logit of each image. Release: mean per image first"""
    return F.softplus(-fake_logits_BN.float().mean(1)).mean()


def hinge_loss(real_logits_BN: Tensor, fake_logits_BN: Tensor) -> Tensor:
    """Half the sum of the two hinges: real logits should pass 1, fake ones stay below -1. Release: over all logits"""
    return 0.5 * (F.relu(1.0 - real_logits_BN.float()).mean() + F.relu(1.0 + fake_logits_BN.float()).mean())


class LeCam(nn.Module):
    """Regulariser that keeps each side's logits near the running mean of the other side's.

    The averages start at 0 and are updated before use.

    Paper: App. A.5
    """

    real_mean: Tensor
    fake_mean: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))

    def forward(self, real_logits_BN: Tensor, fake_logits_BN: Tensor) -> Tensor:
        """Scalar penalty; in training the averages take in these logits, over all ranks, first."""
        real_logits_BN, fake_logits_BN = real_logits_BN.float(), fake_logits_BN.float()
        if self.training:
            means_2 = torch.stack([real_logits_BN.mean(), fake_logits_BN.mean()]).detach()
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(means_2)
                means_2 /= dist.get_world_size()
            self.real_mean.lerp_(means_2[0], 1.0 - self.decay)
            self.fake_mean.lerp_(means_2[1], 1.0 - self.decay)
        real_excess = F.relu(real_logits_BN - self.fake_mean).square().mean()
        fake_excess = F.relu(self.real_mean - fake_logits_BN).square().mean()
        return real_excess + fake_excess


class DiscriminatorObjective(nn.Module):
    """Hinge loss of real against reconstructed images, plus LeCam.

    Paper: App. A.5
    """

    def __init__(self, network: Discriminator, config: DiscriminatorLossConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.lecam = LeCam(config.lecam_decay)

    def forward(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch.

        Args:
            batch: image and reconstruction, float (B, C, S, S).
            noise: rows of the tokenizer objective's `draw_noise`: augment_real, augment_fake (B, 7), crop_real,
                crop_fake (B, 3), of which the first row counts.

        Returns:
            scalar loss; metrics discriminator, lecam, real_logit and fake_logit.
        """
        real_BN = self._logits(batch["image"], noise["augment_real"], noise["crop_real"])
        fake_BN = self._logits(batch["reconstruction"].detach(), noise["augment_fake"], noise["crop_fake"])
        hinge = hinge_loss(real_BN, fake_BN)
        lecam = self.lecam(real_BN, fake_BN)
        metrics = {"discriminator": hinge, "lecam": lecam, "real_logit": real_BN.mean(), "fake_logit": fake_BN.mean()}
        loss = hinge + self.config.lecam_weight * lecam
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _logits(self, images_BCSS: Tensor, augment_B7: Tensor, crop_B3: Tensor) -> Tensor:
        return self.network(augment(images_BCSS, augment_B7), crop_B3[0])
