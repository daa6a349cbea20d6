"""Random choices of a generator's step, and how they lay out its sequences.

Legend: B images, M stages drawn per image, N = B · M sequences, L positions, K structure channels, D blocks,
U tokens of one sequence, Q of all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nvg.bounds import at_least, between, check_fields, positive, refuse
from nvg.randomness import EVERY_ROW, Purpose, permutation, uniforms
from nvg.records import DINOV2, RepaTarget

# Which rows belong to which stage decides what is computed, so the host reads it and no device is waited for.
HOST_NOISE = frozenset({"stages"})
PUBLISHED_BLOCK = 8


@dataclass(frozen=True, kw_only=True)
class GeneratorLossConfig:
    """How a generator is trained.

    Attributes:
        class_dropout_prob: share of images that train the null class; held-out losses never see it.
        stages_per_image: stages trained of each image in a step; None is all of them, as published.
        repa_weight: weight of the alignment of the content generator's hidden tokens with a frozen network; published
            0.5, and 0 needs no features. The structure generator has none.
        repa_block: block, from 1, after which they are taken; published 8. None is 8, in the first half of the network
            where it has fewer than 16 blocks.
        repa_target: the frozen network: DINOv2, as published, or EfficientNet-Lite0, which a CPU can afford.
        self_correction: largest size of the mistakes on canvases that the content generator learns to put right, in
            what a stage has to add; each image's is drawn from 0 to it. 0 is none, as published.
        foreign_regions: share of images on whose canvases the content generator finds a region that is not theirs. 0
            is none, as published.

    DEVIATION: hidden tokens may be aligned with a feature map of EfficientNet-Lite0 (`repa_target`), for those without
    a GPU; the paper has DINOv2.

    Paper: §2.2.2 (10 % null condition, RePA at the 8th layer); Release: weight 0.5 of RePA
    """

    class_dropout_prob: float = 0.1
    stages_per_image: int | None = positive(None)
    repa_weight: float = at_least(0, 0.0)
    repa_block: int | None = positive(None)
    repa_target: RepaTarget = DINOV2
    self_correction: float = at_least(0, 0.0)
    foreign_regions: float = between(0, 1, 0.0)

    def __post_init__(self) -> None:
        check_fields(self, "loss")
        if not 0.0 <= self.class_dropout_prob < 1.0:
            raise refuse("loss.class_dropout_prob", self.class_dropout_prob, "a share from 0 to below 1")

    def aligned_block(self, depth: int) -> int:
        """The block whose tokens are aligned in a network of so many."""
        return self.repa_block or max(1, min(PUBLISHED_BLOCK, depth // 2))


def common_noise(
    config: GeneratorLossConfig,
    seed: int,
    step: int,
    global_batch: int,
    num_stages: int,
    depth: int,
    rows: slice = EVERY_ROW,
) -> dict[str, Tensor]:
    """Stages, class dropout and drop-path uniforms of a step.

    Args:
        config: share of dropped classes, stages of an image.
        seed, step: what the numbers are drawn from.
        global_batch: images of the step.
        num_stages: to choose from.
        depth: blocks that stochastic depth may drop.
        rows: B places in the global batch; no other's are drawn.

    Returns:
        stages int64 (B, M), class_dropped bool (B,), drop_path float32 (B, M, depth).

    Paper: §2.2.2 (null condition), App. A.4 (drop path)
    """
    drawn = num_stages if config.stages_per_image is None else min(config.stages_per_image, num_stages)
    return {
        "stages": draw_stages(seed, step, global_batch, num_stages, drawn)[rows],
        "class_dropped": uniforms(seed, 0, Purpose.TRAIN_CLASS_DROPOUT, step, (global_batch,), rows)
        < config.class_dropout_prob,
        "drop_path": uniforms(seed, 0, Purpose.TRAIN_DROP_PATH, step, (global_batch, drawn, depth), rows).float(),
    }


def draw_stages(seed: int, step: int, global_batch: int, num_stages: int, drawn: int) -> Tensor:
    """Distinct stages of each image, int64 (B, drawn); over the batch every stage comes equally often (± 1).

    DEVIATION: where `stages_per_image` picks a subset, it is dealt evenly over the batch; each image's stages stay
    uniform. The release trains all stages of an image in every step.

    Release: all stages of an image in every step
    """
    order_B = permutation(seed, 0, Purpose.TRAIN_STAGES, step, global_batch)
    first_B = torch.empty_like(order_B)
    first_B[order_B] = torch.arange(global_batch)
    return (first_B[:, None] * drawn + torch.arange(drawn)) % num_stages


class Sequences:
    """The sequences (image, stage) of a step.

    Args:
        stage_BM: int64 stages drawn of each image, on the CPU; elsewhere the host waits for them once.
        device: of the network.

    Attributes:
        image_N, stage_N: int64 image row and stage of every sequence, on the device.
        order_N: int64 rows of the sequences stage by stage, in ascending order within one, on the device.
        counts: sequences of stage 0, 1, .. up to the highest that occurs.

    Release: the stages of an image are sequences of their own
    """

    def __init__(self, stage_BM: Tensor, device: torch.device) -> None:
        host_N = stage_BM.flatten().cpu()
        self.counts: list[int] = torch.bincount(host_N).tolist()
        image_B = torch.arange(len(stage_BM), device=device)
        self.image_N = image_B.repeat_interleave(stage_BM.shape[1])
        host_2N = torch.stack([host_N, host_N.argsort(stable=True)])
        self.stage_N, self.order_N = host_2N.to(device, non_blocking=True).unbind()

    def tokens(self) -> Tokens:
        """The unique tokens of all sequences."""
        sizes = [count << stage for stage, count in enumerate(self.counts)]
        size_N = 1 << self.stage_N[self.order_N]
        sequence_Q = torch.repeat_interleave(size_N, output_size=sum(sizes))
        # A sequence's tokens follow those of earlier stages in its record, and those of earlier sequences here.
        shift_N = (size_N - 1) - (size_N.cumsum(0) - size_N)
        token_Q = torch.arange(sum(sizes), device=size_N.device) + shift_N[sequence_Q]
        return Tokens(sizes, self.image_N[self.order_N][sequence_Q], token_Q, size_N.reciprocal()[sequence_Q])

    def sums(self, values: dict[str, Tensor], sizes: list[int]) -> dict[str, Tensor]:
        """Sum over the sequences of every stage that occurs, and their number: batches and ranks have other numbers.

        Their common mean is the sum of their sums by the sum of their numbers.

        Args:
            values: float32 (X,) by name, stage by stage: of each sequence, or of each token divided by their number.
            sizes: how many values each stage has.

        Returns:
            float32 (2,) by name and stage, e.g. accuracy_0.
        """
        stages = [stage for stage, count in enumerate(self.counts) if count]
        values_VX = torch.stack(list(values.values()))
        parts = values_VX.split(sizes, dim=1)
        sums_SV = torch.stack([parts[stage].sum(1) for stage in stages])
        counts_SV = torch.stack([values_VX.new_full((len(values),), self.counts[stage]) for stage in stages])
        pairs = torch.stack([sums_SV, counts_SV], dim=-1).transpose(0, 1).flatten(0, 1).unbind()
        names = [f"{name}_{stage}" for name in values for stage in stages]
        return dict(zip(names, pairs, strict=True))


@dataclass(frozen=True)
class Tokens:
    """Unique tokens of all sequences of a step, stage by stage and sequence after sequence.

    Attributes:
        sizes: tokens of stage 0, 1, .. up to the highest that occurs.
        image_Q, token_Q: int64, row of the batch and place in `content_ids`.
        weight_Q: float32, 1 / U: sequences weigh equally, however many tokens they have.
    """

    sizes: list[int]
    image_Q: Tensor
    token_Q: Tensor
    weight_Q: Tensor


def kept_branches(noise: dict[str, Tensor], training: bool) -> Tensor | None:
    """Uniforms (N, D) that decide which branches are dropped; None outside training. Release: one draw a sequence"""
    return noise["drop_path"].flatten(0, 1) if training else None


def dropped_labels(label_B: Tensor, noise: dict[str, Tensor], null_class: int, training: bool) -> Tensor:
    """Class ids (B,), in training with the null class where the class is dropped.

    Paper: §2.2.2 (10 %); Release: one draw an image, in training only
    """
    return torch.where(noise["class_dropped"], null_class, label_B) if training else label_B


def noisy_structure(
    data_NLK: Tensor, noise_NLK: Tensor, time_N: Tensor, stage_N: Tensor, *, known_clean: bool
) -> tuple[Tensor, Tensor]:
    """Input z(t) = t·ε + (1 - t)·s of the structure generator, and the velocity it learns.

    Channels below the stage are known: clean with target 0, or in the ablation with pure noise like all others.

    Args:
        data_NLK: structure embedding in [-1, 1].
        noise_NLK: standard normals.
        time_N: t in [0, 1], 1 is noise.
        stage_N: int64, 0..K-2.
        known_clean: False for the ablation.

    Returns:
        input and target, float32 (N, L, K) each.

    Paper: Eq. (1), §2.2.1; pure noise: §3.2 (b)
    """
    time_N11 = time_N[:, None, None]
    mixed_NLK, velocity_NLK = time_N11 * noise_NLK + (1 - time_N11) * data_NLK, noise_NLK - data_NLK
    if not known_clean:
        return mixed_NLK, velocity_NLK
    known_N1K = torch.arange(data_NLK.shape[-1], device=stage_N.device) < stage_N[:, None, None]
    return torch.where(known_N1K, data_NLK, mixed_NLK), torch.where(known_N1K, 0.0, velocity_NLK)
