"""Schedules of sampling: guidance and top-p over stages, flow times.

Legend: B samples, U tokens, V codebook size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nvg.bounds import at_least, between, check_fields, positive, refuse


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How Algorithm 2 draws; the defaults are the paper's but for the structure guidance, which is the release's.

    Guidance scales rise linearly over stages: g_i = 1 + (last - 1) · i / K for content, whose stages run to K. The
    splits that a model predicts end at stage K - 2; `structure_guidance_at` says which stage has `structure_guidance`.

    Attributes:
        content_guidance: content scale at stage K.
        structure_guidance: structure scale at the stage that `structure_guidance_at` names.
        structure_guidance_at: `last_split` divides by K - 2, so that the last predicted split has the scale (paper);
            `last_stage` divides by K, so that it has 1 + (last - 1) · (K - 2) / K (release).
        constant_guidance: True uses the two scales at every stage (as in the ablations).
        top_p_last: nucleus at stage K, reached from 1 at stage 0; 1 switches top-p off.
        shared_noise: share of the random numbers that all tokens of a stage have in common, of their variance; 0 draws
            each token by itself (`nvg.sampling.noise`).
        num_flow_steps: Euler steps of each structure stage.
        gumbel_split: True draws each split by Gumbel-top-k (paper), False takes the top half (release).
        edit_guidance: content and structure scale at every stage where a region of a picture is kept, whose own class
            speaks from stage 0 on; None is as everywhere else.

    DEVIATION: by default the structure guidance ends at 2.125, as in the release; the paper says 2.5, and the preset
    `configs/sampling/paper.yaml` reaches it.

    Paper: App. A.6
    """

    content_guidance: float = at_least(0, 3.5)
    structure_guidance: float = at_least(0, 2.5)
    structure_guidance_at: Literal["last_split", "last_stage"] = "last_stage"
    constant_guidance: bool = False
    top_p_last: float = 0.5
    shared_noise: float = between(0, 1, 0.0)
    num_flow_steps: int = positive(25)
    gumbel_split: bool = True
    edit_guidance: float | None = at_least(0, None)

    def __post_init__(self) -> None:
        check_fields(self, "sampling")
        if not 0.0 < self.top_p_last <= 1.0:
            raise refuse("sampling.top_p_last", self.top_p_last, "a share above 0 and at most 1, which keeps all")

    def content_scale(self, stage: int, last_stage: int, *, is_edit: bool = False) -> float:
        """Guidance scale of a content stage; `is_edit` where a region is kept."""
        return self._scale(self.content_guidance, stage, last_stage, is_edit)

    def structure_scale(self, stage: int, last_stage: int, *, is_edit: bool = False) -> float:
        """Guidance scale while the split of `stage` is predicted. Release: divides by K, not by K - 2."""
        # A grid of 2 x 2 has one split to predict, at stage 0, where every schedule is 1.
        reached_at = max(1, last_stage - 2) if self.structure_guidance_at == "last_split" else last_stage
        return self._scale(self.structure_guidance, stage, reached_at, is_edit)

    def _scale(self, last: float, stage: int, reached_at: int, is_edit: bool) -> float:
        if is_edit and self.edit_guidance is not None:
            return self.edit_guidance
        return last if self.constant_guidance else 1.0 + (last - 1.0) * stage / reached_at

    def top_p(self, stage: int, last_stage: int) -> float:
        """Nucleus of a stage: p_i = p_K + (1 - p_K) · (K - K^{i/K}) / (K - 1).

        Args:
            stage: content stage, 0..K.
            last_stage: K, at least 2.

        Returns:
            share of the probability that is kept, (0, 1].

        Paper: App. A.6
        """
        falling = (last_stage - last_stage ** (stage / last_stage)) / (last_stage - 1)
        return self.top_p_last + (1.0 - self.top_p_last) * falling


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance u + g · (c - u).

    Args:
        conditional, unconditional: logits or velocities of the same shape.
        scale: g; 1 gives the conditional one.

    Paper: App. A.6
    """
    return conditional if scale == 1.0 else unconditional + scale * (conditional - unconditional)


def top_p_filter(logits_BUV: Tensor, top_p: float) -> Tensor:
    """Probabilities with everything below the nucleus removed; the token that crosses `top_p` stays.

    Args:
        logits_BUV: any float dtype.
        top_p: share of the probability that is kept, (0, 1]; 1 keeps all.

    Returns:
        float32 (B, U, V), each row sums to 1.

    Paper: App. A.6
    """
    probabilities = logits_BUV.float().softmax(-1)
    if top_p >= 1.0:
        return probabilities
    ordered, index = probabilities.sort(dim=-1, descending=True, stable=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    kept = torch.zeros_like(probabilities).scatter(-1, index, ordered)
    return kept / kept.sum(-1, keepdim=True)


def draw_tokens(probabilities_BUV: Tensor, uniform_BU: Tensor) -> Tensor:
    """Draws ids by the inverse CDF: one uniform decides each token.

    Args:
        probabilities_BUV: rows need not sum to exactly 1.
        uniform_BU: float64 in [0, 1).

    Returns:
        int64 (B, U), 0..V-1, never an id of probability 0.

    DEVIATION: a token is the inverse CDF of one uniform of a counter-based stream, not a draw of the device's own
    generator, so that CPU and GPU, one worker and many draw the same.

    Paper: App. A.6
    """
    cdf = probabilities_BUV.double().cumsum(-1)
    drawn = torch.searchsorted(cdf, (uniform_BU[..., None].to(cdf) * cdf[..., -1:]).contiguous(), right=True)[..., 0]
    last = (probabilities_BUV > 0).long().cumsum(-1).argmax(-1)
    return torch.minimum(drawn, last)


def draw_by_gumbels(probabilities_BUV: Tensor, gumbel_BUV: Tensor) -> Tensor:
    """Draws ids by the Gumbel-max trick: int64 (B, U), never an id of probability 0.

    Args:
        probabilities_BUV: rows need not sum to exactly 1.
        gumbel_BUV: of `nvg.sampling.noise.coupled_gumbels`, finite.

    Paper: App. A.6
    """
    return (probabilities_BUV.log() + gumbel_BUV).argmax(-1)


def flow_times(num_steps: int, num_positions: int) -> list[float]:
    """Times from 1 (noise) to 0 (data), shifted by resolution.

    t' = e^μ / (e^μ + 1/t - 1) with μ = 0.5 + 0.65 (L - 256) / 3840.

    Args:
        num_steps: Euler steps.
        num_positions: L.

    Returns:
        num_steps + 1 times, strictly falling.

    Release: 25 steps, μ = 0.5 at 256 positions
    """
    shift = math.exp(0.5 + 0.65 * (num_positions - 256) / 3840)
    linear = [1.0 - step / num_steps for step in range(num_steps)]
    return [shift / (shift + 1.0 / time - 1.0) for time in linear] + [0.0]
