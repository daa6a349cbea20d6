"""The tokenizer: images ↔ visual granularity sequences.

Legend: B images, L positions, T = 2L - 1 tokens, C latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from nvg.bounds import at_least, between, check_fields, refuse
from nvg.errors import UserError
from nvg.granularity import StageLayout, cluster_latents, spatial_structure
from nvg.tokenizer.autoencoder import Decoder, Encoder
from nvg.tokenizer.dequantizer import Dequantizer, DequantizerConfig
from nvg.tokenizer.quantizer import quantize_ids

GRANULARITY = "granularity"
SPATIAL = "spatial"
STRUCTURES = (GRANULARITY, SPATIAL)
_MOST_LEVELS = 16


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Architecture of autoencoder and quantiser; the defaults are the published 256×256 tokenizer.

    `structure` says where the maps come from: "granularity" clusters each latent, "spatial" halves the grid, the same
    for every image (the comparison with a resolution pyramid).

    Paper: App. A.5
    """

    image_size: int = at_least(1, 256)
    image_channels: int = 3
    base_width: int = at_least(1, 128)
    width_multipliers: list[int] = at_least(1, [1, 2, 4, 4, 4])
    num_res_blocks: int = between(1, 64, 2)
    norm_groups: int = at_least(1, 32)
    latent_channels: int = at_least(1, 32)
    codebook_size: int = at_least(2, 4096)
    structure: str = GRANULARITY

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= len(self.width_multipliers) <= _MOST_LEVELS:
            raise refuse("width_multipliers", self.width_multipliers, f"1 to {_MOST_LEVELS} of them, one a level")
        factor = 1 << (len(self.width_multipliers) - 1)
        if self.image_size % factor:
            raise UserError(
                f"image_size {self.image_size} is no multiple of {factor}, which {len(self.width_multipliers)} "
                "width_multipliers (levels) need: change one of them"
            )
        StageLayout(self.num_positions)
        if self.image_channels not in (1, 3):
            raise UserError(f"image_channels is {self.image_channels}; 1 (grey) or 3 (colour) is possible")
        if self.structure not in STRUCTURES:
            raise UserError(f"structure is {self.structure!r}; choose one of {', '.join(STRUCTURES)}")
        odd = [width for width in self.widths if width % self.norm_groups]
        if odd:
            raise UserError(
                f"widths {odd} are no multiples of norm_groups {self.norm_groups}: change base_width or norm_groups"
            )

    @property
    def widths(self) -> list[int]:
        """Channel width of every level, finest first."""
        return [self.base_width * multiplier for multiplier in self.width_multipliers]

    @property
    def latent_side(self) -> int:
        """Rows of the latent grid."""
        return self.image_size >> (len(self.width_multipliers) - 1)

    @property
    def num_positions(self) -> int:
        """L, positions of the latent grid."""
        return self.latent_side**2

    @property
    def dequantizer(self) -> DequantizerConfig:
        """The token space this tokenizer defines."""
        return DequantizerConfig(
            num_positions=self.num_positions,
            latent_channels=self.latent_channels,
            codebook_size=self.codebook_size,
        )


class Tokenizer(nn.Module):
    """Encoder, multi-granularity quantiser and decoder.

    Images are float32 (B, channels, S, S) in [-1, 1] everywhere.

    Paper: §2.1, Fig. 2
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        shape = {
            "image_channels": config.image_channels,
            "widths": config.widths,
            "num_res_blocks": config.num_res_blocks,
            "latent_channels": config.latent_channels,
            "norm_groups": config.norm_groups,
        }
        self.encoder = Encoder(**shape)
        self.decoder = Decoder(**shape)
        self.dequantizer = Dequantizer(config.dequantizer)

    def encode(self, images: Tensor) -> Tensor:
        """Latent Z of images.

        Args:
            images: float32 (B, channels, S, S) in [-1, 1].

        Returns:
            float32 (B, L, C), positions in raster order.

        Raises:
            UserError: the images have another size or number of channels.
        """
        expected = (self.config.image_channels, self.config.image_size, self.config.image_size)
        if tuple(images.shape[1:]) != expected:
            raise UserError(f"images have shape {tuple(images.shape[1:])}; this tokenizer takes {expected}")
        return rearrange(self.encoder(images), "b c h w -> b (h w) c")

    def decode(self, canvas_BLC: Tensor) -> Tensor:
        """Image (B, channels, S, S) in [-1, 1] of a canvas; any stage's canvas can be shown."""
        return self.decoder(rearrange(canvas_BLC, "b (h w) c -> b c h w", h=self.config.latent_side))

    def structure_maps(self, latent_BLC: Tensor, *, checked: bool = True) -> Tensor:
        """Finest structure map of each latent: its own clusters, or for `structure` spatial the same for all images.

        Args:
            latent_BLC: from `encode`.
            checked: as of `cluster_latents`.

        Returns:
            int64 (B, L).

        Paper: Alg. 1 lines 2-4, 6; spatial: §2.1 (resizing in space, as in VAR)
        """
        if self.config.structure == SPATIAL:
            structure_L = spatial_structure(self.config.num_positions).to(latent_BLC.device)
            return structure_L.repeat(len(latent_BLC), 1)
        return cluster_latents(latent_BLC, checked=checked)

    @torch.no_grad()
    def tokenize(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Visual granularity sequence of images.

        Args:
            images: float32 (B, channels, S, S) in [-1, 1].

        Returns:
            content_ids int64 (B, 2L - 1), stages in order; structure int64 (B, L), the finest map.

        Paper: Alg. 1 lines 1, 9
        """
        return self.tokenize_latent(self.encode(images))

    @torch.no_grad()
    def tokenize_latent(self, latent_BLC: Tensor, *, checked: bool = True) -> tuple[Tensor, Tensor]:
        """Visual granularity sequence of latents; result as of `tokenize`.

        Args:
            latent_BLC: from `encode`.
            checked: as of `cluster_latents`.

        Paper: Alg. 1 lines 2-9
        """
        structure_BL = self.structure_maps(latent_BLC, checked=checked)
        return quantize_ids(latent_BLC, structure_BL, self.dequantizer), structure_BL

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Decoded final canvas of the images' own sequences: (B, channels, S, S) in [-1, 1], as the images."""
        return self.decode(self.dequantizer.canvases(*self.tokenize(images))[:, -1])
