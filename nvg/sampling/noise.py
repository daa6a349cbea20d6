"""The random numbers of sampling.

Legend: B samples, L positions, T = 2L - 1 tokens, C latent channels, K structure channels, Z = K - 1 splits that a
model predicts, S = K + 1 stages, U tokens of one stage, V codebook size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nvg.granularity import StageLayout
from nvg.randomness import Purpose, per_sample_normals, per_sample_uniforms


@dataclass(frozen=True, kw_only=True)
class SampleNoise:
    """All random numbers of a batch of samples, each from its own counter-based stream.

    They are drawn and sent to the device before the first stage, so that no stage waits for the host.

    Attributes:
        tokens_BT: float64 in [0, 1), one for each token; None where tokens have noise in common.
        gumbel_BTV: float32 Gumbel numbers of each token and code, of tokens that have noise in common; else None.
        flow_BLK: float32 normals, the same for every stage of a sample; None where no split is predicted. Release:
            one ε serves all stages
        splits_BZL: float64 in [0, 1) for Gumbel-top-k; None where the top half is taken.
        canvas_BSLC: float32 normals for a content generator that sees a noised canvas, None for one that does not.
            They are new at every stage: in training, too, the noise of a stage says nothing about its canvas.

    Paper: Alg. 2 line 1
    """

    tokens_BT: Tensor | None = None
    gumbel_BTV: Tensor | None = None
    flow_BLK: Tensor | None = None
    splits_BZL: Tensor | None = None
    canvas_BSLC: Tensor | None = None

    @classmethod
    def draw(
        cls,
        seed: int,
        indices_B: Tensor,
        layout: StageLayout,
        device: torch.device,
        *,
        predicts_splits: bool = True,
        gumbel_split: bool = False,
        canvas_channels: int = 0,
        shared_noise: float = 0.0,
        codebook_size: int = 0,
    ) -> SampleNoise:
        """Draws what a batch needs; see `nvg.randomness`.

        Args:
            seed: of the whole set, 0 <= seed < 2^63.
            indices_B: int64 index of each sample in the whole set.
            layout: of the token space.
            device: where the numbers are used.
            predicts_splits: False leaves out the noise of the flow.
            gumbel_split: True draws the uniforms of predicted splits too.
            canvas_channels: C of a canvas that is noised, 0 for none.
            shared_noise: share that the tokens of a stage have in common; above 0 there are T · V numbers a sample.
            codebook_size: V, where that is above 0.
        """
        num_positions, device = layout.num_positions, torch.device(device)
        splits, stages = range(layout.num_structure_stages), range(layout.num_stages)

        def uniforms(purpose: Purpose, stage: int, count: int) -> Tensor:
            return per_sample_uniforms(seed, indices_B, purpose, stage, (count,))

        def normals(purpose: Purpose, stage: int, channels: int, rows: int = num_positions) -> Tensor:
            return per_sample_normals(seed, indices_B, purpose, stage, (rows, channels))

        def gumbels(stage: int) -> Tensor:
            shared_B1V = normals(Purpose.TOKEN_SHARED, stage, codebook_size, 1)
            own_BUV = normals(Purpose.TOKEN_OWN, stage, codebook_size, 1 << stage)
            return coupled_gumbels(shared_B1V, own_BUV, shared_noise)

        def send(numbers: Tensor) -> Tensor:
            return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)

        tokens_BT = gumbel_BTV = flow_BLK = splits_BZL = canvas_BSLC = None
        if shared_noise:
            gumbel_BTV = send(torch.cat([gumbels(stage) for stage in stages], dim=1))
        else:
            tokens_BT = send(torch.cat([uniforms(Purpose.TOKEN, stage, 1 << stage) for stage in stages], dim=1))
        if predicts_splits:
            flow_BLK = send(normals(Purpose.FLOW_NOISE, 0, layout.last_stage))
            if gumbel_split:
                splits_BZL = send(torch.stack([uniforms(Purpose.SPLIT, stage, num_positions) for stage in splits], 1))
        if canvas_channels:
            canvas_BSLC = send(
                torch.stack([normals(Purpose.CANVAS_NOISE, stage, canvas_channels) for stage in stages], 1)
            )
        return cls(
            tokens_BT=tokens_BT,
            gumbel_BTV=gumbel_BTV,
            flow_BLK=flow_BLK,
            splits_BZL=splits_BZL,
            canvas_BSLC=canvas_BSLC,
        )


def coupled_gumbels(shared_B1V: Tensor, own_BUV: Tensor, share: float) -> Tensor:
    """Gumbel numbers of a stage's tokens, alike between tokens as far as their normals are.

    Each token's are standard Gumbel numbers, so each token is drawn from its own probabilities as ever. But tokens with
    like probabilities mostly become the same code: a cloth is even, where draws each by itself would speckle it.

    Args:
        shared_B1V: normals that all tokens have in common, one a code.
        own_BUV: normals of each token.
        share: of the variance that is common, 0 to 1.

    Returns:
        float32 (B, U, V).

    DEVIATION: the paper and the release draw each token by itself, as `sampling.shared_noise: 0`, the default, does.

    Release: no noise in common
    """
    normal_BUV = math.sqrt(share) * shared_B1V.double() + math.sqrt(1.0 - share) * own_BUV.double()
    return -(-torch.special.log_ndtr(normal_BUV)).log().float()
