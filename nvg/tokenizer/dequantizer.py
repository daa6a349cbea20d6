"""From ids and maps back to canvases: the codebook and the per-stage refiners.

It is all that generators need of the tokenizer.

Legend: B images, S = K + 1 stages, L positions, T = 2L - 1 tokens, U tokens of one stage, C latent channels,
V codebook size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.errors import UserError
from nvg.granularity import StageLayout, place, place_all


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
        side = math.isqrt(painted_BLC.shape[1])
        image_BCHW = painted_BLC.transpose(1, 2).unflatten(2, (side, side))
        return torch.add(painted_BLC, self.conv(image_BCHW).flatten(2).transpose(1, 2), alpha=0.5)


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
        """Rebuilds x_0..x_K from a record: the codes of all stages are gathered at once, then refined and added up.

        Args:
            content_ids_BT: int64 (B, 2L - 1), stages in order, values 0..V-1.
            structure_BL: int64 (B, L) finest map.

        Returns:
            (B, K + 1, L, C); the last one is what the decoder turns into an image.

        Paper: Eq. (5), App. A.2
        """
        painted_BSLC = F.embedding(place_all(content_ids_BT, structure_BL), self.codebook)
        added = [refine(painted_BSLC[:, stage]) for stage, refine in enumerate(self.refiners)]
        return torch.stack(list(accumulate(added)), dim=1)
