"""Training losses of the two generators.

Legend: B images, M stages drawn per image, N = B · M sequences, S = K + 1 stages, L positions, C latent channels,
K structure channels, D blocks, T tokens of all stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.errors import UserError
from nvg.granularity import structure_embedding
from nvg.models import FINAL_CANVAS, ContentGenerator, StructureGenerator
from nvg.randomness import Purpose, normals, permutation, uniforms
from nvg.tokenizer import Dequantizer


@dataclass(frozen=True, kw_only=True)
class GeneratorLossConfig:
    """How a generator is trained.

    Attributes:
        class_dropout_prob: share of images that train the null class.
        stages_per_image: stages trained of each image in a step; None is all of them, as published.

    Paper: App. A.5
    """

    class_dropout_prob: float = 0.1
    stages_per_image: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.class_dropout_prob < 1.0:
            raise UserError(f"class_dropout_prob is {self.class_dropout_prob}; a share from 0 to below 1 is needed")
        if self.stages_per_image is not None and self.stages_per_image < 1:
            raise UserError(f"stages_per_image is {self.stages_per_image}; at least 1, or null for all stages")


class ContentObjective(nn.Module):
    """Mean squared error of the final canvas plus cross-entropy of the stage's tokens, stages weighing equally.

    With `prediction` next_content there is no canvas to compare with: the cross-entropy stands alone.

    DEVIATION: the paper names no loss of the next-content ablation; here it has no squared error at all, since the
    paper explains its failure by the missing supervision of the final canvas.

    DEVIATION: the alignment of hidden tokens with DINOv2 (REPA, weight 0.5) is not there yet.

    Paper: Eq. (3), §2.2.2
    """

    def __init__(self, network: ContentGenerator, dequantizer: Dequantizer, config: GeneratorLossConfig) -> None:
        super().__init__()
        self.network = network
        self.dequantizer = frozen(dequantizer)
        self.config = config

    def draw_noise(self, *, seed: int, step: int, global_batch: int) -> dict[str, Tensor]:
        """Random choices of one step for the whole global batch, each with leading dimension global_batch."""
        network = self.network
        noise = _common_noise(self.config, seed, step, global_batch, network.layout.num_stages, network.config.depth)
        if network.config.needs_noise:
            shape = (global_batch, network.config.num_positions, network.config.latent_channels)
            noise["canvas_noise"] = normals(seed, 0, Purpose.TRAIN_CANVAS_NOISE, step, shape)
        return noise

    def forward(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of records.

        Args:
            batch: label (B,), content_ids (B, T) and structure (B, L), int64.
            noise: rows of `draw_noise`; outside training every branch is kept.

        Returns:
            scalar loss; metrics mse, cross_entropy and cross_entropy_0.. per stage.
        """
        structure_BL, stage_BM = batch["structure"], noise["stages"]
        with torch.no_grad():
            canvases_BSLC = self.dequantizer.canvases(batch["content_ids"], structure_BL)
        final_BLC = canvases_BSLC[:, -1]
        before_BSLC = F.pad(canvases_BSLC[:, :-1], (0, 0, 0, 0, 1, 0))
        image_N, stage_N = _sequences(stage_BM)
        canvas_NLC = before_BSLC[image_N, stage_N]
        structure_NL = structure_BL[image_N]
        class_N = _dropped_labels(batch["label"], noise["class_dropped"], self.network.null_class)[image_N]
        noise_NLC = noise["canvas_noise"][image_N] if self.network.config.needs_noise else None
        estimate_NLC = self.network(
            canvas_NLC, structure_NL, stage_N, class_N, _drop_path(noise, self.training), noise_NLC
        )
        entropy_N = estimate_NLC.new_zeros(len(stage_N))
        per_stage: dict[str, Tensor] = {}
        for stage in range(self.network.layout.num_stages):
            rows = (stage_N == stage).nonzero().flatten()
            if len(rows) == 0:
                continue
            logits_RUV = self.network.token_logits(estimate_NLC[rows], canvas_NLC[rows], structure_NL[rows], stage)
            target_RU = batch["content_ids"][image_N[rows]][:, self.network.layout.tokens(stage)]
            entropy_R = F.cross_entropy(logits_RUV.transpose(1, 2), target_RU, reduction="none").mean(1)
            entropy_N = entropy_N.index_put((rows,), entropy_R)
            per_stage[f"cross_entropy_{stage}"] = entropy_R.detach().mean()
        entropy = entropy_N.mean()
        metrics = {"cross_entropy": entropy.detach(), **per_stage}
        if self.network.config.prediction != FINAL_CANVAS:
            return entropy, metrics
        error = F.mse_loss(estimate_NLC, final_BLC[image_N])
        return error + entropy, {"mse": error.detach(), **metrics}


class StructureObjective(nn.Module):
    """Rectified-flow regression of the structure embedding, the mean over all K channels.

    Paper: Eq. (1), §2.2.1
    """

    def __init__(self, network: StructureGenerator, dequantizer: Dequantizer, config: GeneratorLossConfig) -> None:
        super().__init__()
        self.network = network
        self.dequantizer = frozen(dequantizer)
        self.config = config

    def draw_noise(self, *, seed: int, step: int, global_batch: int) -> dict[str, Tensor]:
        """Random choices of one step for the whole global batch, each with leading dimension global_batch.

        Release: ε is shared by the stages of an image, t = sigmoid(N(0, 1)) is drawn per image and stage
        """
        layout = self.network.layout
        noise = _common_noise(
            self.config, seed, step, global_batch, layout.num_structure_stages, self.network.config.depth
        )
        shape = (global_batch, layout.num_positions, layout.last_stage)
        noise["noise"] = normals(seed, 0, Purpose.TRAIN_NOISE, step, shape)
        noise["time"] = torch.sigmoid(normals(seed, 0, Purpose.TRAIN_TIME, step, tuple(noise["stages"].shape)))
        return noise

    def forward(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of records.

        Args:
            batch: label (B,), content_ids (B, T) and structure (B, L), int64.
            noise: rows of `draw_noise`.

        Returns:
            scalar loss (mean over all K channels); metrics velocity_0.. per stage.
        """
        error_NLK, stage_N = self.squared_errors(batch, noise)
        error_N = error_NLK.mean((1, 2))
        metrics = {
            f"velocity_{stage}": error_N.detach()[stage_N == stage].mean()
            for stage in range(self.network.layout.num_structure_stages)
            if bool((stage_N == stage).any())
        }
        return error_N.mean(), metrics

    def squared_errors(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Squared error of every velocity.

        Args:
            batch: label (B,), content_ids (B, T) and structure (B, L), int64.
            noise: rows of `draw_noise`; outside training every branch is kept.

        Returns:
            float32 (N, L, K), and the stage of each sequence, int64 (N,).
        """
        layout, structure_BL = self.network.layout, batch["structure"]
        with torch.no_grad():
            canvases_BSLC = self.dequantizer.canvases(batch["content_ids"], structure_BL)
        image_N, stage_N = _sequences(noise["stages"])
        time_N = noise["time"].flatten()
        data_NLK = (structure_embedding(structure_BL, layout.last_stage, layout.last_stage) - 1).float()[image_N]
        noisy_NLK, target_NLK = noisy_structure(
            data_NLK, noise["noise"][image_N], time_N, stage_N, known_clean=self.network.config.known_clean
        )
        class_N = _dropped_labels(batch["label"], noise["class_dropped"], self.network.null_class)[image_N]
        velocity_NLK = self.network(
            noisy_NLK,
            canvases_BSLC[image_N, stage_N],
            structure_BL[image_N],
            stage_N,
            time_N,
            class_N,
            _drop_path(noise, self.training),
        )
        return (velocity_NLK - target_NLK).square(), stage_N


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


Module = TypeVar("Module", bound=nn.Module)


def frozen(module: Module) -> Module:
    """Turns the parameters of a module into buffers: it moves with its owner but no optimizer sees it."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())
    return module.eval()


def _common_noise(
    config: GeneratorLossConfig, seed: int, step: int, global_batch: int, num_stages: int, depth: int
) -> dict[str, Tensor]:
    """Stages, class dropout and drop-path uniforms of a step."""
    drawn = num_stages if config.stages_per_image is None else min(config.stages_per_image, num_stages)
    return {
        "stages": _draw_stages(seed, step, global_batch, num_stages, drawn),
        "class_dropped": uniforms(seed, 0, Purpose.TRAIN_CLASS_DROPOUT, step, (global_batch,))
        < config.class_dropout_prob,
        "drop_path": uniforms(seed, 0, Purpose.TRAIN_DROP_PATH, step, (global_batch, drawn, depth)).float(),
    }


def _draw_stages(seed: int, step: int, global_batch: int, num_stages: int, drawn: int) -> Tensor:
    """Distinct stages of each image, int64 (B, drawn); over the batch every stage comes equally often (± 1).

    DEVIATION: where `stages_per_image` picks a subset, it is dealt evenly over the batch; each image's stages stay
    uniform. The release trains all stages of an image in every step.
    """
    order_B = permutation(seed, 0, Purpose.TRAIN_STAGES, step, global_batch)
    first_B = torch.empty_like(order_B)
    first_B[order_B] = torch.arange(global_batch)
    return (first_B[:, None] * drawn + torch.arange(drawn)) % num_stages


def _sequences(stage_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Image row and stage of every sequence, int64 (N,) each."""
    image_B = torch.arange(len(stage_BM), device=stage_BM.device)
    return image_B.repeat_interleave(stage_BM.shape[1]), stage_BM.flatten()


def _drop_path(noise: dict[str, Tensor], training: bool) -> Tensor | None:
    """Uniforms (N, depth) that decide which branches are dropped; None outside training."""
    return noise["drop_path"].flatten(0, 1) if training else None


def _dropped_labels(label_B: Tensor, dropped_B: Tensor, null_class: int) -> Tensor:
    return torch.where(dropped_B, null_class, label_B)
