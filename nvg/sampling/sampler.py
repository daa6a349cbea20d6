"""Algorithm 2: structure and content in turn, from an empty canvas to the final one.

Legend: B samples, L positions, T = 2L - 1 tokens, U tokens of a stage, C latent channels, K structure channels,
S = K + 1 stages, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from nvg.errors import UserError
from nvg.granularity import StageLayout, balanced_split, raster_split, structure_embedding
from nvg.layers import SingleStreamBlock
from nvg.models import ContentGenerator, StructureGenerator
from nvg.sampling.noise import SampleNoise
from nvg.sampling.region import Region
from nvg.sampling.schedules import SamplingConfig, draw_by_gumbels, draw_tokens, flow_times, guide, top_p_filter
from nvg.tokenizer import Dequantizer

LEAST_PROBABILITY = 1e-9
# Both passes of guidance are one batch up to so many sequences; beyond, it is not the number of kernels that costs.
_MOST_SEQUENCES_PAIRED = 64
# What a thread of a CPU computes at a time, the widest activation of a block, has to stay in its cache.
_CACHE_BYTES = 4 * 2**20
_LEAST_AT_ONCE = 4
# Looks on: rows of the batch, stage, its canvas (rows, L, C) and its map (rows, L), both copies.
Watch = Callable[[slice, int, Tensor, Tensor], None]


@dataclass(frozen=True)
class SampledSequence:
    """Generated sequences: content_ids_BT int64, structure_BL int64 (finest map), canvases_BSLC float32 (x_0..x_K)."""

    content_ids_BT: Tensor
    structure_BL: Tensor
    canvases_BSLC: Tensor


@dataclass(frozen=True, kw_only=True)
class Given:
    """What is fixed instead of drawn: a prefix of the sequence, or a region of a picture.

    Attributes:
        structure_BL: finest map of which the first `num_splits` splits are used.
        content_ids_BT: ids of which the first `num_contents` stages are used.
        region: what is kept of a picture; a map given beside it must be the picture's.

    Paper: §3.2
    """

    structure_BL: Tensor | None = None
    num_splits: int = 0
    content_ids_BT: Tensor | None = None
    num_contents: int = 0
    region: Region | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Given:
        """The same with every tensor changed: other rows, another device."""
        return Given(
            structure_BL=None if self.structure_BL is None else change(self.structure_BL),
            num_splits=self.num_splits,
            content_ids_BT=None if self.content_ids_BT is None else change(self.content_ids_BT),
            num_contents=self.num_contents,
            region=None if self.region is None else self.region.each(change),
        )


@torch.no_grad()
def sample(
    *,
    content: ContentGenerator,
    structure: StructureGenerator | None,
    dequantizer: Dequantizer,
    labels_B: Tensor,
    sample_indices_B: Tensor,
    seed: int,
    config: SamplingConfig,
    given: Given | None = None,
    watch: Watch | None = None,
) -> SampledSequence:
    """Generates one sequence per label.

    The noise of a sample depends on (seed, sample index) alone, so a sample is the same in any batch up to rounding.
    On a CPU batches are drawn in slices that fit its cache. On a GPU nothing waits for the host but the check of labels
    that are there already.

    Args:
        content: in evaluation mode, on the device of the others.
        structure: likewise; None is possible when every split is given.
        dequantizer: of the tokenizer both were trained with.
        labels_B: int64 class ids.
        sample_indices_B: int64 index of each sample in the whole set.
        seed: of the whole set, 0 <= seed < 2^63.
        config: guidance, top-p and flow steps.
        given: what is fixed instead of drawn.
        watch: is called after every stage of the rows that are drawn together; what it raises ends the drawing.

    Returns:
        one sequence a label, on the device of the dequantizer.

    Raises:
        UserError: networks and token space do not fit, or a label is out of range.

    Paper: Alg. 2 lines 1-4, 10, §2.2
    """
    given = given or Given()
    layout = StageLayout(dequantizer.config.num_positions)
    _check(content, structure, dequantizer, labels_B, given, layout)
    device = dequantizer.codebook.device
    length = min(len(labels_B), sequences_at_once(structure or content)) if device.type == "cpu" else len(labels_B)
    parts = []
    for start in range(0, len(labels_B), max(1, length)):
        rows = slice(start, start + length)
        noise = SampleNoise.draw(
            seed,
            sample_indices_B[rows],
            layout,
            device,
            predicts_splits=given.num_splits < layout.num_structure_stages,
            gumbel_split=config.gumbel_split,
            canvas_channels=dequantizer.config.latent_channels if content.config.needs_noise else 0,
            shared_noise=config.shared_noise,
            codebook_size=dequantizer.config.codebook_size,
        )
        labels = labels_B[rows].to(device)
        part = _rows(given, rows, device)
        look = None if watch is None else partial(watch, rows)
        parts.append(_draw(content, structure, dequantizer, labels, noise, config, part, look))
    return SampledSequence(
        *(torch.cat(tensors) for tensors in zip(*(vars(part).values() for part in parts), strict=True))
    )


def _rows(given: Given, rows: slice, device: torch.device) -> Given:
    return given.each(lambda tensor: tensor[rows].to(device))


def sequences_at_once(network: ContentGenerator | StructureGenerator) -> int:
    """How many sequences a network takes at a time on a CPU, so that what a block computes stays in the cache."""
    first = network.trunk.blocks[0]
    assert isinstance(first, SingleStreamBlock)
    kinds = 1 if isinstance(network, ContentGenerator) else 2
    bytes_a_sequence = 4 * (1 + kinds * network.layout.num_positions) * first.linear_in.out_features
    return max(_LEAST_AT_ONCE, torch.get_num_threads() * _CACHE_BYTES // bytes_a_sequence)


def _draw(
    content: ContentGenerator,
    structure: StructureGenerator | None,
    dequantizer: Dequantizer,
    labels_B: Tensor,
    noise: SampleNoise,
    config: SamplingConfig,
    given: Given,
    watch: Callable[[int, Tensor, Tensor], None] | None = None,
) -> SampledSequence:
    """Algorithm 2 for samples that fit together, all of them and what is given on one device."""
    layout = dequantizer.layout
    structure_BL = torch.zeros(len(labels_B), layout.num_positions, dtype=torch.int64, device=labels_B.device)
    canvas_BLC = dequantizer.codebook.new_zeros(*structure_BL.shape, dequantizer.config.latent_channels)
    ids, canvases = [], []
    for stage in range(layout.num_stages):
        if given.content_ids_BT is not None and stage < given.num_contents:
            ids_BU = given.content_ids_BT[:, layout.tokens(stage)]
        else:
            painted_BL = None if given.region is None else ~given.region.keep_BL
            ids_BU = _next_content(content, canvas_BLC, structure_BL, labels_B, stage, config, noise, painted_BL)
        if given.region is not None:
            ids_BU = given.region.contents(ids_BU, structure_BL, stage)
        codes_BUC = dequantizer.codebook[ids_BU]
        canvas_BLC = canvas_BLC + dequantizer.contribution(codes_BUC, structure_BL, stage)
        if given.region is not None:
            canvas_BLC = given.region.canvas(canvas_BLC, stage)
        ids.append(ids_BU)
        canvases.append(canvas_BLC)
        if watch is not None:
            watch(stage, canvas_BLC.clone(), structure_BL.clone())
        if stage == layout.last_stage:
            break
        if given.structure_BL is not None and stage < given.num_splits:
            unknown = layout.last_stage - stage - 1
            structure_BL = (given.structure_BL >> unknown) << unknown
        elif stage < layout.num_structure_stages:
            assert structure is not None
            scale = config.structure_scale(stage, layout.last_stage, is_edit=given.region is not None)
            score_BL = _next_scores(structure, canvas_BLC, structure_BL, labels_B, stage, scale, config, noise)
            if given.region is not None:
                score_BL = given.region.score(score_BL, stage)
            structure_BL = balanced_split(structure_BL, score_BL, stage, layout.last_stage)
        else:
            structure_BL = raster_split(structure_BL, layout.last_stage)
    return SampledSequence(torch.cat(ids, dim=1), structure_BL, torch.stack(canvases, dim=1))


def _next_content(
    model: ContentGenerator,
    canvas_BLC: Tensor,
    structure_BL: Tensor,
    labels_B: Tensor,
    stage: int,
    config: SamplingConfig,
    noise: SampleNoise,
    painted_BL: Tensor | None,
) -> Tensor:
    """Draws the ids (B, U) of one stage: guidance, top-p, one draw per unique token. Paper: Alg. 2 line 8"""
    layout = model.layout
    scale = config.content_scale(stage, layout.last_stage, is_edit=painted_BL is not None)
    both = []
    for classes_N in _passes(labels_B, model.null_class, scale):
        copies = len(classes_N) // len(labels_B)
        canvas_NLC, structure_NL = torch.cat([canvas_BLC] * copies), torch.cat([structure_BL] * copies)
        noise_NLC = None if noise.canvas_BSLC is None else torch.cat([noise.canvas_BSLC[:, stage]] * copies)
        final_NLC = model(canvas_NLC, structure_NL, torch.full_like(classes_N, stage), classes_N, noise_NLC=noise_NLC)
        painted_NL = None if painted_BL is None else torch.cat([painted_BL] * copies)
        logits_NUV = model.token_logits(final_NLC, canvas_NLC, structure_NL, stage, painted_NL=painted_NL)
        both += logits_NUV.chunk(copies)
    probabilities_BUV = top_p_filter(guide(both[0], both[-1], scale), config.top_p(stage, layout.last_stage))
    if noise.gumbel_BTV is not None:
        return draw_by_gumbels(probabilities_BUV, noise.gumbel_BTV[:, layout.tokens(stage)])
    assert noise.tokens_BT is not None
    return draw_tokens(probabilities_BUV, noise.tokens_BT[:, layout.tokens(stage)])


def _passes(labels_B: Tensor, null_class: int, scale: float) -> list[Tensor]:
    """Classes of each forward pass: guided ones, then those of no class, as one batch where these are few."""
    if scale == 1.0:
        return [labels_B]
    both = [labels_B, torch.full_like(labels_B, null_class)]
    return [torch.cat(both)] if 2 * len(labels_B) <= _MOST_SEQUENCES_PAIRED else both


def _next_scores(
    model: StructureGenerator,
    canvas_BLC: Tensor,
    structure_BL: Tensor,
    labels_B: Tensor,
    stage: int,
    scale: float,
    config: SamplingConfig,
    noise: SampleNoise,
) -> Tensor:
    """Integrates the flow for the split of one stage; the half of a cluster with the highest scores is child 2j + 1.

    DEVIATION: without Gumbel noise the channel is ranked as it is, ties to the lower position; the release clamps it
    first and leaves ties to the sort.

    Paper: Eq. (2), Alg. 2 line 5
    """
    assert noise.flow_BLK is not None
    denoised_BLK = integrate_flow(
        model,
        noise.flow_BLK,
        canvas_BLC,
        structure_BL,
        labels_B,
        stage=stage,
        guidance_scale=scale,
        num_steps=config.num_flow_steps,
        known_clean=model.config.known_clean,
    )
    score_BL = denoised_BLK[..., stage]
    return score_BL if noise.splits_BZL is None else gumbel_scores(score_BL, noise.splits_BZL[:, stage])


def integrate_flow(
    model: StructureGenerator,
    noise_BLK: Tensor,
    canvas_BLC: Tensor,
    structure_BL: Tensor,
    labels_B: Tensor,
    *,
    stage: int,
    guidance_scale: float,
    num_steps: int,
    known_clean: bool = True,
) -> Tensor:
    """Euler steps of the rectified flow from noise (t = 1) to structure data (t = 0).

    Channels of known splits are set clean before the first step and after each one. Rotations and embeddings of what
    stays the same are computed once.

    Args:
        model: predicts velocities.
        noise_BLK: float32 standard normals.
        canvas_BLC: x_i.
        structure_BL: int64 map with `stage` known splits.
        labels_B: int64 class ids.
        stage: 0..K-2, whose split is integrated.
        guidance_scale: 1 for no guidance (and half the work).
        num_steps: Euler steps.
        known_clean: False leaves known channels to the flow, as in the ablation with pure noise.

    Returns:
        float32 (B, L, K), data range [-1, 1] up to overshoot.

    Paper: Eq. (1), §2.2.1; Release: one ε for all stages, times shifted
    """
    stage_B = torch.full_like(labels_B, stage)
    clean_BLK = (structure_embedding(structure_BL, stage_B, model.layout.last_stage) - 1).float()
    known_K = torch.arange(model.layout.last_stage, device=noise_BLK.device) < (stage if known_clean else 0)
    first_N, *more = _passes(labels_B, model.null_class, guidance_scale)
    copies = len(first_N) // len(labels_B)
    canvas_NLC, structure_NL, stage_N = (torch.cat([x] * copies) for x in (canvas_BLC, structure_BL, stage_B))
    asked = model.condition(canvas_NLC, structure_NL, stage_N, first_N)
    conditions = [asked, *(model.with_class(asked, free_B) for free_B in more)]
    z_BLK = torch.where(known_K, clean_BLK, noise_BLK)
    times = flow_times(num_steps, model.layout.num_positions)
    for now, then in pairwise(times):
        z_NLK, time_N = torch.cat([z_BLK] * copies), torch.full((len(first_N),), now, device=noise_BLK.device)
        both = [part for seen in conditions for part in model.velocity(z_NLK, time_N, seen).chunk(copies)]
        velocity = guide(both[0], both[-1], guidance_scale)
        z_BLK = torch.where(known_K, clean_BLK, z_BLK + (then - now) * velocity)
    return z_BLK


def gumbel_scores(channel_BL: Tensor, uniform_BL: Tensor) -> Tensor:
    """Gumbel-top-k keys: log p + G with p = clamp(z, -1, 1) + 1 as unnormalised probability of child 2j + 1.

    Args:
        channel_BL: integrated channel of the split, data in [-1, 1].
        uniform_BL: float64 in [0, 1).

    Returns:
        float64 (B, L); the larger half of a cluster becomes child 2j + 1.

    Paper: §2.2.1 (Gumbel-top-k)
    """
    probability = (channel_BL.double().clamp(-1.0, 1.0) + 1.0).clamp_min(LEAST_PROBABILITY)
    gumbel = -torch.log(-torch.log(uniform_BL.clamp_min(2.0**-54)))
    return probability.log() + gumbel


def _check(
    content: ContentGenerator,
    structure: StructureGenerator | None,
    dequantizer: Dequantizer,
    labels_B: Tensor,
    given: Given,
    layout: StageLayout,
) -> None:
    space = dequantizer.config
    found = (content.config.num_positions, content.config.latent_channels, content.config.codebook_size)
    expected = (space.num_positions, space.latent_channels, space.codebook_size)
    if found != expected:
        raise UserError(
            f"the content generator was trained for (positions, channels, codebook) = {found}, the dequantizer has "
            f"{expected}: give the weights that belong together"
        )
    if structure is None and given.num_splits < layout.num_structure_stages:
        raise UserError(
            f"without a structure generator all {layout.num_structure_stages} splits must be given, "
            f"found {given.num_splits}"
        )
    if structure is not None:
        pair = (
            structure.config.num_positions,
            structure.config.latent_channels,
            structure.config.num_classes,
        )
        if pair != (space.num_positions, space.latent_channels, content.config.num_classes):
            raise UserError(
                f"the structure generator was trained for (positions, channels, classes) = {pair}, the content "
                f"generator for {(*expected[:2], content.config.num_classes)}: give two generators of the same data"
            )
    if len(labels_B) and not 0 <= int(labels_B.min()) <= int(labels_B.max()) < content.config.num_classes:
        raise UserError(f"labels must lie in 0..{content.config.num_classes - 1}, found {labels_B.unique().tolist()}")
