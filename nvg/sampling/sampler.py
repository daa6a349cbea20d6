"""Algorithm 2: structure and content in turn, from an empty canvas to the final one.

Legend: B samples, L positions, T = 2L - 1 tokens, U tokens of a stage, C latent channels, K structure channels,
S = K + 1 stages, V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nvg.errors import UserError
from nvg.granularity import StageLayout, balanced_split, raster_split, structure_embedding
from nvg.models import ContentGenerator, StructureGenerator
from nvg.sampling.noise import SampleNoise
from nvg.sampling.schedules import SamplingConfig, draw_tokens, flow_times, guide, top_p_filter
from nvg.tokenizer import Dequantizer

LEAST_PROBABILITY = 1e-9


@dataclass(frozen=True)
class SampledSequence:
    """Generated sequences: content_ids_BT int64, structure_BL int64 (finest map), canvases_BSLC float32 (x_0..x_K)."""

    content_ids_BT: Tensor
    structure_BL: Tensor
    canvases_BSLC: Tensor


@dataclass(frozen=True, kw_only=True)
class Given:
    """A prefix of the sequence that is fixed instead of drawn.

    Attributes:
        structure_BL: finest map of which the first `num_splits` splits are used.
        content_ids_BT: ids of which the first `num_contents` stages are used.

    Paper: §3.2
    """

    structure_BL: Tensor | None = None
    num_splits: int = 0
    content_ids_BT: Tensor | None = None
    num_contents: int = 0


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
) -> SampledSequence:
    """Generates one sequence per label.

    The noise of a sample depends on (seed, sample index) alone, so a sample is the same in any batch up to rounding.

    Args:
        content: in evaluation mode, on the device of the others.
        structure: likewise; None is possible when every split is given.
        dequantizer: of the tokenizer both were trained with.
        labels_B: int64 class ids.
        sample_indices_B: int64 index of each sample in the whole set.
        seed: of the whole set, 0 <= seed < 2^63.
        config: guidance, top-p and flow steps.
        given: prefix that is fixed instead of drawn.

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
    noise = SampleNoise(seed, sample_indices_B, device)
    labels_B = labels_B.to(device)
    structure_BL = torch.zeros(len(labels_B), layout.num_positions, dtype=torch.int64, device=device)
    canvas_BLC = torch.zeros(*structure_BL.shape, dequantizer.config.latent_channels, device=device)
    ids, canvases = [], []
    for stage in range(layout.num_stages):
        if given.content_ids_BT is not None and stage < given.num_contents:
            ids_BU = given.content_ids_BT[:, layout.tokens(stage)].to(device)
        else:
            ids_BU = _next_content(content, canvas_BLC, structure_BL, labels_B, stage, config, noise)
        codes_BUC = dequantizer.codebook[ids_BU]
        canvas_BLC = canvas_BLC + dequantizer.contribution(codes_BUC, structure_BL, stage)
        ids.append(ids_BU)
        canvases.append(canvas_BLC)
        if stage == layout.last_stage:
            break
        if given.structure_BL is not None and stage < given.num_splits:
            unknown = layout.last_stage - stage - 1
            structure_BL = (given.structure_BL.to(device) >> unknown) << unknown
        elif stage < layout.num_structure_stages:
            assert structure is not None
            structure_BL = _next_structure(structure, canvas_BLC, structure_BL, labels_B, stage, config, noise)
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
) -> Tensor:
    """Draws the ids (B, U) of one stage: guidance, top-p, one draw per unique token. Paper: Alg. 2 line 8"""
    last_stage = model.layout.last_stage
    scale = config.content_scale(stage, last_stage)
    noise_BLC = noise.canvas_noise(stage, *canvas_BLC.shape[1:]) if model.config.needs_noise else None

    def logits(classes_B: Tensor) -> Tensor:
        final = model(canvas_BLC, structure_BL, torch.full_like(classes_B, stage), classes_B, noise_NLC=noise_BLC)
        return model.token_logits(final, canvas_BLC, structure_BL, stage)

    logits_BUV = logits(labels_B)
    if scale != 1.0:
        logits_BUV = guide(logits_BUV, logits(torch.full_like(labels_B, model.null_class)), scale)
    probabilities_BUV = top_p_filter(logits_BUV, config.top_p(stage, last_stage))
    return draw_tokens(probabilities_BUV, noise.token_uniforms(stage))


def _next_structure(
    model: StructureGenerator,
    canvas_BLC: Tensor,
    structure_BL: Tensor,
    labels_B: Tensor,
    stage: int,
    config: SamplingConfig,
    noise: SampleNoise,
) -> Tensor:
    """Integrates the flow for the split of one stage and divides every cluster in halves.

    DEVIATION: without Gumbel noise the channel is ranked as it is, ties to the lower position; the release clamps it
    first and leaves ties to the sort.

    Paper: Eq. (2), Alg. 2 line 5
    """
    last_stage = model.layout.last_stage
    start_BLK = noise.flow_noise(model.layout.num_positions, last_stage)
    denoised_BLK = integrate_flow(
        model,
        start_BLK,
        canvas_BLC,
        structure_BL,
        labels_B,
        stage=stage,
        guidance_scale=config.structure_scale(stage, last_stage),
        num_steps=config.num_flow_steps,
        known_clean=model.config.known_clean,
    )
    score_BL = denoised_BLK[..., stage]
    if config.gumbel_split:
        uniform_BL = noise.split_uniforms(stage, model.layout.num_positions)
        score_BL = gumbel_scores(score_BL, uniform_BL)
    return balanced_split(structure_BL, score_BL, stage, last_stage)


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
    embedding_BLK = structure_embedding(structure_BL, stage, model.layout.last_stage)
    known_K = torch.arange(model.layout.last_stage, device=noise_BLK.device) < (stage if known_clean else 0)
    clean_BLK = (embedding_BLK - 1).float()
    asked = model.condition(canvas_BLC, structure_BL, torch.full_like(labels_B, stage), labels_B)
    free = model.with_class(asked, torch.full_like(labels_B, model.null_class))
    z_BLK = torch.where(known_K, clean_BLK, noise_BLK)
    times = flow_times(num_steps, model.layout.num_positions)
    for now, then in pairwise(times):
        time_B = torch.full((len(labels_B),), now, device=noise_BLK.device)
        velocity = model.velocity(z_BLK, time_B, asked)
        if guidance_scale != 1.0:
            velocity = guide(velocity, model.velocity(z_BLK, time_B, free), guidance_scale)
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
