"""From ids and maps back to canvases: the codebook and the per-stage refiners.

It is all that generators need of the tokenizer.

Legend: B images, S = K + 1 stages, L positions, T = 2L - 1 tokens, U tokens of one stage, C latent channels,
V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from nvg.errors import UserError
from nvg.granularity import StageLayout, place


@dataclass(frozen=True, kw_only=True)
class DequantizerConfig:
    """Shape of the token space."""

    num_positions: int = 256
    latent_channels: int = 32
    codebook_size: int = 4096

    def __post_init__(self) -> None:
        StageLayout(self.num_positions)
        if self.codebook_size < 2 or self.latent_channels < 1:
            raise UserError(
                f"codebook_size is {self.codebook_size} and latent_channels {self.latent_channels}; "
                "at least 2 and 1 are needed"
            )


class Refiner(nn.Module):
    """φ_i(h) = h + 0.5 · conv3×3_i(h): smooths what a stage paints; one per stage, not shared.

    Release: one convolution per stage, ratio 0.5
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, painted_BLC: Tensor) -> Tensor:
        """Smooths a painted canvas (B, L, C) on its grid; the shape stays."""
        side = StageLayout(painted_BLC.shape[1]).side
        image = rearrange(painted_BLC, "b (h w) c -> b c h w", h=side)
        return painted_BLC + 0.5 * rearrange(self.conv(image), "b c h w -> b (h w) c")


class Dequantizer(nn.Module):
    """Codebook a(c, s) and refiners φ: x_i = Σ_{j<=i} φ_j(a(c_j, s_j)).

    Paper: App. A.2
    """

    def __init__(self, config: DequantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = StageLayout(config.num_positions)
        bound = 1.0 / config.codebook_size
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.latent_channels).uniform_(-bound, bound))
        self.refiners = nn.ModuleList(Refiner(config.latent_channels) for _ in range(self.layout.num_stages))

    def contribution(self, codes_BUC: Tensor, structure_BL: Tensor, stage: int) -> Tensor:
        """What one stage adds to the canvas: φ_i(a(c_i, s_i)).

        Args:
            codes_BUC: codebook entries of the stage's tokens.
            structure_BL: int64 finest map, its `stage` leading bits are read.
            stage: 0..K.

        Returns:
            (B, L, C).

        Paper: Eq. (5), Alg. 2 line 9
        """
        return self.refiners[stage](place(codes_BUC, structure_BL, stage))

    def canvases(self, content_ids_BT: Tensor, structure_BL: Tensor) -> Tensor:
        """Rebuilds x_0..x_K from a record.

        Args:
            content_ids_BT: int64 (B, 2L - 1), stages in order, values 0..V-1.
            structure_BL: int64 (B, L) finest map.

        Returns:
            (B, K + 1, L, C); the last one is what the decoder turns into an image.

        Paper: Eq. (5), App. A.2
        """
        canvas, canvases = None, []
        for stage in range(self.layout.num_stages):
            codes_BUC = self.codebook[content_ids_BT[:, self.layout.tokens(stage)]]
            added = self.contribution(codes_BUC, structure_BL, stage)
            canvas = added if canvas is None else canvas + added
            canvases.append(canvas)
        return torch.stack(canvases, dim=1)
