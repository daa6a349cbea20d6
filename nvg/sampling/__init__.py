"""Generating visual granularity sequences; one enters by `sample`.

sampler    Algorithm 2, structure and content in turn
schedules  guidance and top-p over stages, flow times: `SamplingConfig`
noise      the random numbers of a sample
graphs     forward passes as CUDA graphs, for few images: `capture_passes`
control    prefixes that are given: a mask, maps, first contents
region     a region of a picture that is kept: the rule, stage by stage
following  the same from pictures and arrays as a user has them: `follow`
"""

from nvg.sampling.control import (
    MaskStructure,
    check_given_structure,
    give_contents,
    give_structure,
    label_bend,
    label_structure,
    mask_structure,
    score_structure,
)
from nvg.sampling.graphs import capture_passes
from nvg.sampling.region import Region, keep_region, kept_positions
from nvg.sampling.sampler import Given, SampledSequence, Watch, gumbel_scores, integrate_flow, sample
from nvg.sampling.schedules import SamplingConfig, draw_by_gumbels, draw_tokens, flow_times, guide, top_p_filter

__all__ = [
    "Given",
    "MaskStructure",
    "Region",
    "SampledSequence",
    "SamplingConfig",
    "Watch",
    "capture_passes",
    "check_given_structure",
    "draw_by_gumbels",
    "draw_tokens",
    "flow_times",
    "give_contents",
    "give_structure",
    "guide",
    "gumbel_scores",
    "integrate_flow",
    "keep_region",
    "kept_positions",
    "label_bend",
    "label_structure",
    "mask_structure",
    "sample",
    "score_structure",
    "top_p_filter",
]
