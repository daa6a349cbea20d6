"""Training loss of the tokenizer.

Legend: B images, L positions, C latent channels, S side of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.bounds import at_least, between, check_fields, refuse
from nvg.errors import UserError
from nvg.precision import without_autocast
from nvg.randomness import EVERY_ROW, Purpose, uniforms
from nvg.tokenizer import Discriminator, FeatureDistance, PerceptualDistance, Tokenizer, quantize_for_training
from nvg.tokenizer.augmentation import NUM_UNIFORMS, augment
from nvg.tokenizer.discriminator import NUM_CALL_UNIFORMS
from nvg.tokenizer.frozen import Companion
from nvg.training.adversarial import generator_loss
from nvg.training.codebook_revival import CodebookRevival
from nvg.training.codebook_watch import CodebookWatch
from nvg.training.mistakes import beside_turned, drawn_mistakes, drawn_regions, mistaken_canvases

VIEWS = ("generator", "real", "fake")  # what the discriminator looks at in a step, each augmented on its own


@dataclass(frozen=True, kw_only=True)
class TokenizerLossConfig:
    """Weights of the losses; a weight of 0 switches a loss off and needs no weight file.

    Attributes:
        commitment_weight: β of the quantiser loss.
        codebook_weight: weight of the quantiser loss beside the reconstruction.
        soft_assignment_images: for how many images from the start every codebook entry receives gradient.
        perceptual_weight: weight of LPIPS; published 1.
        feature_weight: weight of the distance in feature maps of EfficientNet-Lite0, where there is no VGG.
        adversarial_weight: weight of the generator's loss, from the first step; published 0.1.
        token_perturbation: largest size of the mistakes on canvases that the decoder learns to look past, in what a
            stage has to add; each image's is drawn from 0 to it. 0 is none, as published.
        foreign_regions: share of images on whose canvases the decoder finds a region that is not theirs, and has to
            paint both. 0 is none, as published.
        warn_usage_below: a stage that uses less than this share of the entries that even draws would use is warned of,
            once the warm-up of the codebook is over.
        revive_after_images: images after which an entry that nothing drew is put beside a used one; None never does.

    Paper: App. A.5 (losses of Open-MAGVIT2, one epoch of warm-up); Release: β = 0.25 and the weights of all losses
    """

    commitment_weight: float = at_least(0, 0.25)
    codebook_weight: float = at_least(0, 1.0)
    soft_assignment_images: int = at_least(0, 1_281_167)
    perceptual_weight: float = at_least(0, 0.0)
    feature_weight: float = at_least(0, 0.0)
    adversarial_weight: float = at_least(0, 0.0)
    token_perturbation: float = at_least(0, 0.0)
    foreign_regions: float = between(0, 1, 0.0)
    warn_usage_below: float = at_least(0, 0.1)
    revive_after_images: int | None = at_least(0, None)

    def __post_init__(self) -> None:
        check_fields(self, "loss")
        if self.foreign_regions and self.adversarial_weight:
            meant = "0 beside an adversarial loss, whose discriminator would learn to see where two pictures meet"
            raise refuse("loss.foreign_regions", self.foreign_regions, meant)


class TokenizerObjective(nn.Module):
    """L1, perceptual and feature reconstruction, the generator's adversarial loss, the quantiser loss.

    The discriminator is fixed here; its own turn is `DiscriminatorObjective`.

    Paper: Eq. (4)-(5), App. A.5
    """

    def __init__(
        self,
        network: Tokenizer,
        config: TokenizerLossConfig,
        *,
        perceptual: PerceptualDistance | None = None,
        feature: FeatureDistance | None = None,
        discriminator: Discriminator | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.perceptual = _needed(perceptual, config.perceptual_weight, "perceptual")
        self.feature = _needed(feature, config.feature_weight, "feature")
        self.discriminator = _needed(discriminator, config.adversarial_weight, "adversarial")
        self.watch = CodebookWatch(
            network.dequantizer.layout, network.config.codebook_size, warn_below=config.warn_usage_below
        )
        self.revival = None
        if config.revive_after_images is not None:
            self.revival = CodebookRevival(network.config.codebook_size, config.revive_after_images)
        self._reconstruction: Tensor | None = None

    @property
    def host_noise(self) -> frozenset[str]:
        """Noise that is read on the host: it decides what is computed, and where images are cut."""
        return frozenset({"soft_assignment", *(f"crop_{view}" for view in VIEWS)})

    def draw_noise(self, *, seed: int, step: int, global_batch: int, rows: slice = EVERY_ROW) -> dict[str, Tensor]:
        """Random choices of one step for B rows of the global batch, which are all that is drawn.

        Returns:
            soft_assignment (B,): whether the warm-up of the codebook is still on; with token perturbation mistakes
            (B, T, C) and mistake_size (B,); with foreign regions foreign (B, L) and turn (B,); with an adversarial
            loss, for each of VIEWS, augment_<view> (B, 7) and crop_<view> (B, 3), whose rows are all alike.
        """
        warm = step * global_batch < self.config.soft_assignment_images
        noise = {"soft_assignment": torch.full((global_batch,), warm)[rows]}
        if self.config.token_perturbation:
            noise |= drawn_mistakes(
                self.network.dequantizer, self.config.token_perturbation, seed, step, global_batch, rows
            )
        if self.config.foreign_regions:
            num_positions = self.network.config.num_positions
            noise |= drawn_regions(num_positions, self.config.foreign_regions, seed, step, global_batch, rows)
        if self.discriminator is None:
            return noise
        for index, view in enumerate(VIEWS):
            shape = (global_batch, NUM_UNIFORMS)
            noise[f"augment_{view}"] = uniforms(seed, index, Purpose.TRAIN_AUGMENT, step, shape, rows)
            crop_3 = uniforms(seed, index, Purpose.TRAIN_CROP, step, (NUM_CALL_UNIFORMS,))
            noise[f"crop_{view}"] = crop_3.expand(global_batch, -1)[rows]
        return noise

    def forward(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch.

        Args:
            batch: image, float32 (B, channels, S, S) in [-1, 1].
            noise: rows of `draw_noise`.

        Returns:
            scalar loss; metrics l1, quantizer, and perceptual, feature and adversarial where they are on.
        """
        images_BCSS = batch["image"]
        is_warm_up = bool(noise["soft_assignment"].any())
        latent_BLC = self.network.encode(images_BCSS).float()
        with without_autocast(latent_BLC.device):  # distances decide maps and ids
            structure_BL = self.network.structure_maps(latent_BLC, checked=False)
            quantized = quantize_for_training(
                latent_BLC,
                structure_BL,
                self.network.dequantizer,
                commitment_weight=self.config.commitment_weight,
                soft_assignment=is_warm_up,
            )
        canvas_BLC = quantized.canvas_BLC
        if self.training and self.config.token_perturbation:
            mistaken = mistaken_canvases(
                self.network.dequantizer, quantized.content_ids_BT, structure_BL, canvas_BLC.detach(),
                noise["mistakes"], noise["mistake_size"],
            )  # fmt: skip
            canvas_BLC = canvas_BLC + (mistaken.canvases_BSLC[:, -1] - canvas_BLC).detach()  # straight through
        if self.training and self.config.foreign_regions:
            canvas_BLC, images_BCSS = beside_turned(
                self.network, canvas_BLC, images_BCSS, noise["foreign"], noise["turn"]
            )
        reconstruction_BCSS = self.network.decode(canvas_BLC)
        self._reconstruction = reconstruction_BCSS.detach()
        if self.training:
            self.watch.add(quantized.content_ids_BT, is_settling=is_warm_up)
            if self.revival is not None:
                self.revival.note(quantized.content_ids_BT)
        parts = {"l1": F.l1_loss(reconstruction_BCSS, images_BCSS), "quantizer": quantized.loss}
        loss = parts["l1"] + self.config.codebook_weight * parts["quantizer"]
        loss = loss.where(structure_BL.any(1).all(), torch.nan)  # a map of zeros: a latent that cannot be clustered
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(reconstruction_BCSS, images_BCSS).mean()
            loss = loss + self.config.perceptual_weight * parts["perceptual"]
        if self.feature is not None:
            parts["feature"] = self.feature(reconstruction_BCSS, images_BCSS).mean()
            loss = loss + self.config.feature_weight * parts["feature"]
        if self.discriminator is not None:
            parts["adversarial"] = self.adversarial_loss(reconstruction_BCSS, noise)
            loss = loss + self.config.adversarial_weight * parts["adversarial"]
        return loss, {name: value.detach() for name, value in parts.items()}

    def take_reconstruction(self) -> Tensor:
        """Images (B, channels, S, S) of the last forward pass, detached; once, so that none is kept alive."""
        assert self._reconstruction is not None
        reconstruction_BCSS, self._reconstruction = self._reconstruction, None
        return reconstruction_BCSS

    def adversarial_loss(self, images_BCSS: Tensor, noise: dict[str, Tensor]) -> Tensor:
        """The generator's loss; the discriminator's weights receive no gradient. Release: heads do not move here"""
        assert self.discriminator is not None
        heads = self.discriminator.network
        heads.train(self.training)
        heads.requires_grad_(False)
        try:
            seen_BCSS = augment(images_BCSS, noise["augment_generator"])
            return generator_loss(self.discriminator(seen_BCSS, noise["crop_generator"][0]))
        finally:
            heads.requires_grad_(True)


def _needed(network: nn.Module | None, weight: float, loss: str) -> Companion | None:
    """The network of a loss that is on; None for one that is off."""
    if (network is not None) != (weight > 0):
        found = "none" if network is None else "one"
        raise UserError(f"{loss}_weight is {weight} and there is {found} of its networks; give both or neither")
    return None if network is None else Companion(network)
