"""Generating visual granularity sequences (Algorithm 2)."""

from nvg.sampling.sampler import Given, SampledSequence, gumbel_scores, integrate_flow, sample
from nvg.sampling.schedules import SamplingConfig, draw_tokens, flow_times, guide, top_p_filter

__all__ = [
    "Given",
    "SampledSequence",
    "SamplingConfig",
    "draw_tokens",
    "flow_times",
    "guide",
    "gumbel_scores",
    "integrate_flow",
    "sample",
    "top_p_filter",
]
