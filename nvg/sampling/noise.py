"""The random numbers of sampling.

Legend: B samples, L positions, C latent channels, K structure channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nvg.randomness import Purpose, per_sample_normals, per_sample_uniforms


class SampleNoise:
    """All random numbers of a batch of samples, each from its own counter-based stream.

    Paper: Alg. 2 line 1
    """

    def __init__(self, seed: int, sample_indices_B: Tensor, device: torch.device) -> None:
        self.seed, self.indices_B, self.device = seed, sample_indices_B, device

    def token_uniforms(self, stage: int) -> Tensor:
        """Float64 (B, 2^stage) in [0, 1)."""
        return per_sample_uniforms(self.seed, self.indices_B, Purpose.TOKEN, stage, (1 << stage,)).to(self.device)

    def split_uniforms(self, stage: int, num_positions: int) -> Tensor:
        """Float64 (B, L) in [0, 1)."""
        return per_sample_uniforms(self.seed, self.indices_B, Purpose.SPLIT, stage, (num_positions,)).to(self.device)

    def flow_noise(self, num_positions: int, num_channels: int) -> Tensor:
        """Float32 normals (B, L, K), the same for every stage of a sample. Release: one ε serves all stages"""
        shape = (num_positions, num_channels)
        return per_sample_normals(self.seed, self.indices_B, Purpose.FLOW_NOISE, 0, shape).to(self.device)

    def canvas_noise(self, stage: int, num_positions: int, num_channels: int) -> Tensor:
        """Float32 normals (B, L, C) for a content generator that sees a noised canvas.

        They are new at every stage: in training, too, the noise of a stage says nothing about its canvas.
        """
        shape = (num_positions, num_channels)
        return per_sample_normals(self.seed, self.indices_B, Purpose.CANVAS_NOISE, stage, shape).to(self.device)
