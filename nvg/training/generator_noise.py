"""Random choices of a generator's step, and how they lay out its sequences.

Legend: B images, M stages drawn per image, N = B · M sequences, L positions, K structure channels, D blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nvg.bounds import check_fields
from nvg.errors import UserError
from nvg.randomness import Purpose, permutation, uniforms

# Which rows belong to which stage decides what is computed, so the host reads it and no device is waited for.
HOST_NOISE = frozenset({"stages"})


@dataclass(frozen=True, kw_only=True)
class GeneratorLossConfig:
    """How a generator is trained.

    Attributes:
        class_dropout_prob: share of images that train the null class.
        stages_per_image: stages trained of each image in a step; None is all of them, as published.
        repa_weight: weight of the alignment of the content generator's hidden tokens with DINOv2; published 0.5, and 0
            needs no features. The structure generator has none.
        repa_block: block, from 1, after which they are taken; published 8.

    Paper: App. A.5
    """

    class_dropout_prob: float = 0.1
    stages_per_image: int | None = None
    repa_weight: float = 0.0
    repa_block: int = 8

    def __post_init__(self) -> None:
        check_fields(self, "loss")
        if not 0.0 <= self.class_dropout_prob < 1.0:
            raise UserError(f"class_dropout_prob is {self.class_dropout_prob}; a share from 0 to below 1 is needed")
        if self.repa_weight < 0:
            raise UserError(f"repa_weight is {self.repa_weight}; it must be 0 or more")
        if self.stages_per_image is not None and self.stages_per_image < 1:
            raise UserError(f"stages_per_image is {self.stages_per_image}; at least 1, or null for all stages")


def common_noise(
    config: GeneratorLossConfig, seed: int, step: int, global_batch: int, num_stages: int, depth: int
) -> dict[str, Tensor]:
    """Stages, class dropout and drop-path uniforms of a step.

    Args:
        config: share of dropped classes, stages of an image.
        seed, step: what the numbers are drawn from.
        global_batch: leading dimension of each.
        num_stages: to choose from.
        depth: blocks that stochastic depth may drop.

    Returns:
        stages int64 (global_batch, M), class_dropped bool (global_batch,), drop_path float32 (global_batch, M, depth).

    Paper: App. A.5
    """
    drawn = num_stages if config.stages_per_image is None else min(config.stages_per_image, num_stages)
    return {
        "stages": draw_stages(seed, step, global_batch, num_stages, drawn),
        "class_dropped": uniforms(seed, 0, Purpose.TRAIN_CLASS_DROPOUT, step, (global_batch,))
        < config.class_dropout_prob,
        "drop_path": uniforms(seed, 0, Purpose.TRAIN_DROP_PATH, step, (global_batch, drawn, depth)).float(),
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
        rows: (stage, int64 rows of its sequences in ascending order, on the device), for the stages that occur.

    Release: the stages of an image are sequences of their own
    """

    def __init__(self, stage_BM: Tensor, device: torch.device) -> None:
        host_N = stage_BM.flatten().cpu()
        image_B = torch.arange(len(stage_BM), device=device)
        self.image_N = image_B.repeat_interleave(stage_BM.shape[1])
        self.stage_N = host_N.to(device, non_blocking=True)
        order_N = host_N.argsort(stable=True).to(device, non_blocking=True)
        counts = torch.bincount(host_N).tolist()
        self.rows = [(stage, rows) for stage, rows in enumerate(order_N.split(counts)) if len(rows)]


def kept_branches(noise: dict[str, Tensor], training: bool) -> Tensor | None:
    """Uniforms (N, D) that decide which branches are dropped; None outside training. Release: one draw a sequence"""
    return noise["drop_path"].flatten(0, 1) if training else None


def dropped_labels(label_B: Tensor, dropped_B: Tensor, null_class: int) -> Tensor:
    """Class ids (B,) with the null class where the class is dropped. Release: one draw an image, in training only"""
    return torch.where(dropped_B, null_class, label_B)


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
