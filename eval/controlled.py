"""Samples drawn by a given structure, beside free ones, and how well each follows it.

Legend: B samples, L positions, S = K + 1 stages, C latent channels, G given splits, N candidates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.pool.samplers import GeneratorSampler
from eval.scores.adherence import Adherence, encode_images, measure, split_agreement
from nvg.granularity import StageLayout
from nvg.pixels import ImageArray, to_model_range, to_uint8
from nvg.sampling import Given, SampledSequence, give_contents, give_structure

_BATCH_SIZE = 250
_CANDIDATE_STRIDE = 1 << 32  # candidate n of sample k is drawn with the noise of sample k + n · stride
_MEASURE = (
    "share of positions on the given side of each split, better label order per parent, parents as given, "
    "after encoding and clustering the image again; mean over splits. maps: whole maps, children swapped wherever "
    "that helps. explained: share of the latent's variance between the given clusters; own_explained: between its own"
)


@dataclass(frozen=True, kw_only=True)
class ControlledSamples:
    """Samples and what came out of them.

    Attributes:
        sequences: as drawn.
        images_BHWC: uint8.
        latent_BLC: the images, encoded again.
    """

    sequences: SampledSequence
    images_BHWC: ImageArray
    latent_BLC: Tensor


def draw_samples(
    sampler: GeneratorSampler, labels_B: Tensor, indices_B: Tensor, given: Given | None = None
) -> ControlledSamples:
    """Draw, decode and encode again; the samples are on the CPU.

    Args:
        sampler: the networks.
        labels_B: int64 classes asked for.
        indices_B: int64 sample indices.
        given: prefix with one row for each sample; None draws free.
    """
    parts, images = [], []
    for rows in torch.arange(len(labels_B)).split(_BATCH_SIZE):
        drawn = sampler.draw_sequences(
            labels_B[rows], indices_B[rows], None if given is None else given.each(itemgetter(rows))
        )
        with torch.inference_mode():
            decoded = sampler.tokenizer.decode(drawn.canvases_BSLC[:, -1])
        parts.append(drawn)
        images.append(to_uint8(decoded, sampler.spec.rounding))
    sequences = SampledSequence(
        torch.cat([part.content_ids_BT for part in parts]).cpu(),
        torch.cat([part.structure_BL for part in parts]).cpu(),
        torch.cat([part.canvases_BSLC for part in parts]).cpu(),
    )
    images_BHWC = np.concatenate(images)
    return ControlledSamples(
        sequences=sequences, images_BHWC=images_BHWC, latent_BLC=encode_images(sampler.tokenizer, images_BHWC)
    )


def draw_best(
    sampler: GeneratorSampler,
    labels_B: Tensor,
    indices_B: Tensor,
    given: Given | None,
    structure_BL: Tensor,
    num_splits: int,
    *,
    num_candidates: int,
) -> ControlledSamples:
    """Draw each sample several times and keep the draw that follows a structure best.

    Args:
        sampler, labels_B, indices_B, given: as of `draw_samples`.
        structure_BL: int64 finest map each draw is compared with.
        num_splits: G, how many of its splits are compared, at least 1.
        num_candidates: N; the first draw is that of `draw_samples`.

    Returns:
        The best draw of each sample, the first one of equals.
    """
    best = draw_samples(sampler, labels_B, indices_B, given)
    best_B = split_agreement(best.latent_BLC, structure_BL, num_splits).mean(1)
    for candidate in range(1, num_candidates):
        drawn = draw_samples(sampler, labels_B, indices_B + candidate * _CANDIDATE_STRIDE, given)
        drawn_B = split_agreement(drawn.latent_BLC, structure_BL, num_splits).mean(1)
        best = _choose(drawn_B > best_B, drawn, best)
        best_B = torch.maximum(best_B, drawn_B)
    return best


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Agreement with the given structure, of the samples and of what they must be held against.

    Attributes:
        samples: of the samples drawn by it.
        free: of free samples of the same classes from the same noise, one draw each.
        free_best: of the best of as many free draws as the samples had; None when they had one.
        reconstruction: of the image the structure was taken from, through the tokenizer and back: what is within
            reach; None for a structure that was not taken from an image.
    """

    samples: Adherence
    free: Adherence
    free_best: Adherence | None = None
    reconstruction: Adherence | None = None

    @property
    def margin(self) -> float:
        """Agreement of the samples above that of free ones, mean over splits."""
        return self.samples.mean - self.free.mean

    def as_json(self) -> dict[str, Any]:
        """JSON values, what the figures mean included."""
        return {"measure": _MEASURE, **asdict(self), "margin": self.margin}


def compare(
    sampler: GeneratorSampler,
    labels_B: Tensor,
    indices_B: Tensor,
    given: Given,
    *,
    num_candidates: int = 1,
    images_BHWC: ImageArray | None = None,
) -> tuple[ControlledSamples, ControlledSamples, Comparison | None]:
    """Draw by a given structure and free, and measure both.

    Args:
        sampler, labels_B, indices_B, given: as of `draw_samples`.
        num_candidates: N draws of each sample, of which the one that follows best is kept.
        images_BHWC: the images the structures were taken from, for what is within reach; None where there are none.

    Returns:
        The samples, free samples, and the comparison; None where nothing can be followed: no split was given, or all
        images have the same spatial maps.
    """
    structure_BL = given.structure_BL
    if structure_BL is None or given.num_splits == 0 or sampler.structure is None:
        return draw_samples(sampler, labels_B, indices_B, given), draw_samples(sampler, labels_B, indices_B), None
    num_splits = given.num_splits

    def drawn(prefix: Given | None, candidates: int) -> ControlledSamples:
        return draw_best(sampler, labels_B, indices_B, prefix, structure_BL, num_splits, num_candidates=candidates)

    samples, free = drawn(given, num_candidates), drawn(None, 1)
    comparison = Comparison(
        samples=measure(samples.latent_BLC, structure_BL, num_splits),
        free=measure(free.latent_BLC, structure_BL, num_splits),
        free_best=None
        if num_candidates == 1
        else measure(drawn(None, num_candidates).latent_BLC, structure_BL, num_splits),
        reconstruction=None
        if images_BHWC is None
        else measure(_reconstructed(sampler, images_BHWC), structure_BL, num_splits),
    )
    return samples, free, comparison


@dataclass(frozen=True, kw_only=True)
class StagewiseSamples:
    """Samples of which more and more stages are those of a reference image.

    Attributes:
        reference_SHWC: uint8 reference, painted up to each stage.
        contents_SBHWC: uint8 samples; in entry i contents of stages 0..i-1 and structure up to s_i are the reference's.
        structures_SBHWC: likewise, structures alone; None where all images have the same.
    """

    reference_SHWC: ImageArray
    contents_SBHWC: ImageArray
    structures_SBHWC: ImageArray | None


def draw_stagewise(
    sampler: GeneratorSampler, labels_B: Tensor, indices_B: Tensor, content_ids_1T: Tensor, structure_1L: Tensor
) -> StagewiseSamples:
    """Generate stages i..K for every i, after the stages below of a reference image.

    Args:
        sampler: the networks.
        labels_B: int64 classes asked for.
        indices_B: int64 sample indices; a sample has the same noise for every i.
        content_ids_1T, structure_1L: int64 sequence of the reference.

    Paper: §3.2, Fig. 7
    """
    count, layout = len(labels_B), StageLayout(structure_1L.shape[1])
    ids_BT, structure_BL = content_ids_1T.expand(count, -1), structure_1L.expand(count, -1)

    def drawn(given: Given | None) -> ImageArray:
        return draw_samples(sampler, labels_B, indices_B, given).images_BHWC

    free = drawn(None)
    stages = range(1, layout.num_stages)
    contents = [free, *(drawn(give_contents(ids_BT, structure_BL, stage)) for stage in stages)]
    structures = None
    if sampler.structure is not None:
        structures = np.stack([free, *(drawn(give_structure(structure_BL, stage)) for stage in stages)])
    with torch.inference_mode():
        canvases_SLC = sampler.tokenizer.dequantizer.canvases(
            content_ids_1T.to(sampler.device), structure_1L.to(sampler.device)
        )[0]
        reference = to_uint8(sampler.tokenizer.decode(canvases_SLC), sampler.spec.rounding)
    return StagewiseSamples(reference_SHWC=reference, contents_SBHWC=np.stack(contents), structures_SBHWC=structures)


def _reconstructed(sampler: GeneratorSampler, images_BHWC: ImageArray) -> Tensor:
    """Latents of images that went through the tokenizer and back, as bytes."""
    with torch.inference_mode():
        images = sampler.tokenizer.reconstruct(to_model_range(images_BHWC).to(sampler.device))
    return encode_images(sampler.tokenizer, to_uint8(images, sampler.spec.rounding))


def _choose(take_B: Tensor, ours: ControlledSamples, theirs: ControlledSamples) -> ControlledSamples:
    """Row by row `ours` where asked for, else `theirs`."""

    def pick(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(take_B.view(-1, *[1] * (one.ndim - 1)), one, other)

    one, other = ours.sequences, theirs.sequences
    return ControlledSamples(
        sequences=SampledSequence(
            pick(one.content_ids_BT, other.content_ids_BT),
            pick(one.structure_BL, other.structure_BL),
            pick(one.canvases_BSLC, other.canvases_BSLC),
        ),
        images_BHWC=np.where(take_B.numpy()[:, None, None, None], ours.images_BHWC, theirs.images_BHWC),
        latent_BLC=pick(ours.latent_BLC, theirs.latent_BLC),
    )
