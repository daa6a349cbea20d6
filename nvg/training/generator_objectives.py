"""Training losses of the two generators.

Legend: B images, M stages drawn per image, N = B · M sequences, R sequences of one stage, S = K + 1 stages,
L positions, C latent channels, K structure channels, U tokens of one stage, V codebook size, T tokens of all stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.granularity import structure_embedding
from nvg.models import FINAL_CANVAS, ContentGenerator, StructureGenerator
from nvg.randomness import EVERY_ROW, Purpose, normals
from nvg.tokenizer import Dequantizer
from nvg.training.alignment import Alignment
from nvg.training.generator_noise import (
    HOST_NOISE,
    GeneratorLossConfig,
    Sequences,
    common_noise,
    dropped_labels,
    kept_branches,
    noisy_structure,
)


class ContentObjective(nn.Module):
    """Mean squared error of the final canvas plus cross-entropy of the stage's tokens, stages weighing equally.

    With a `repa_weight` the alignment of hidden tokens with given features joins them.

    With `prediction` next_content there is no canvas to compare with: the cross-entropy stands alone.

    DEVIATION: the paper names no loss of the next-content ablation; here it has no squared error at all, since the
    paper explains its failure by the missing supervision of the final canvas.

    Paper: Eq. (3), §2.2.2
    """

    def __init__(
        self,
        network: ContentGenerator,
        dequantizer: Dequantizer,
        config: GeneratorLossConfig,
        *,
        feature_width: int | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        """
        Args:
            network: is trained.
            dequantizer: of the records.
            config: how.
            feature_width: of the features to align with, where `repa_weight` is above 0.
            teacher: makes them of images, where batches hold no features.
        """
        super().__init__()
        self.network = network
        self.dequantizer = frozen(dequantizer)
        self.config = config
        self.alignment = None
        if config.repa_weight > 0:
            assert feature_width is not None
            self.alignment = Alignment(
                network, feature_width=feature_width, after_block=config.repa_block, teacher=teacher
            )

    @property
    def host_noise(self) -> frozenset[str]:
        """Noise that is read on the host."""
        return HOST_NOISE

    def draw_noise(self, *, seed: int, step: int, global_batch: int, rows: slice = EVERY_ROW) -> dict[str, Tensor]:
        """Random choices of one step for rows of the global batch, which are all that is drawn."""
        network = self.network
        noise = common_noise(
            self.config, seed, step, global_batch, network.layout.num_stages, network.config.depth, rows
        )
        if network.config.needs_noise:
            shape = (global_batch, network.config.num_positions, network.config.latent_channels)
            noise["canvas_noise"] = normals(seed, 0, Purpose.TRAIN_CANVAS_NOISE, step, shape, rows)
        return noise

    def forward(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of records.

        Args:
            batch: label (B,), content_ids (B, T) and structure (B, L), int64; features or image where hidden tokens
                are aligned (see `Alignment`).
            noise: rows of `draw_noise`; outside training every branch and every class is kept.

        Returns:
            scalar loss; metrics mse, cross_entropy and accuracy (share of tokens whose likeliest id is right), the
            latter two per stage as cross_entropy_0.., accuracy_0.. (see `sum_and_count`), and repa.
        """
        structure_BL = batch["structure"]
        # Every stage is asked for its tokens, if for none: ranks with other stages must call the same modules (ZeRO-3).
        sequences = Sequences(noise["stages"], structure_BL.device, self.network.layout.num_stages)
        image_N, stage_N = sequences.image_N, sequences.stage_N
        with torch.no_grad():
            canvases_BSLC = self.dequantizer.canvases(batch["content_ids"], structure_BL)
        final_BLC = canvases_BSLC[:, -1]
        before_BSLC = F.pad(canvases_BSLC[:, :-1], (0, 0, 0, 0, 1, 0))
        canvas_NLC = before_BSLC[image_N, stage_N]
        structure_NL = structure_BL[image_N]
        class_N = dropped_labels(batch["label"], noise, self.network.null_class, self.training)[image_N]
        noise_NLC = noise["canvas_noise"][image_N] if self.network.config.needs_noise else None
        hidden = None if self.alignment is None else self.alignment.hidden()
        estimate_NLC = self.network(
            canvas_NLC, structure_NL, stage_N, class_N, kept_branches(noise, self.training), noise_NLC, hidden
        )
        entropy_N, right_N = estimate_NLC.new_zeros(len(stage_N)), estimate_NLC.new_zeros(len(stage_N))
        per_stage: dict[str, Tensor] = {}
        for stage, rows in sequences.rows:
            logits_RUV = self.network.token_logits(estimate_NLC[rows], canvas_NLC[rows], structure_NL[rows], stage)
            target_RU = batch["content_ids"][image_N[rows]][:, self.network.layout.tokens(stage)]
            entropy_R = F.cross_entropy(logits_RUV.transpose(1, 2), target_RU, reduction="none").mean(1)
            right_R = (logits_RUV.detach().argmax(-1) == target_RU).float().mean(1)
            entropy_N, right_N = entropy_N.index_put((rows,), entropy_R), right_N.index_put((rows,), right_R)
            if len(rows):
                per_stage[f"cross_entropy_{stage}"] = sum_and_count(entropy_R.detach())
                per_stage[f"accuracy_{stage}"] = sum_and_count(right_R)
        entropy = entropy_N.mean()
        loss, metrics = entropy, {"cross_entropy": entropy.detach(), "accuracy": right_N.mean(), **per_stage}
        if self.network.config.prediction == FINAL_CANVAS:
            error = F.mse_loss(estimate_NLC, final_BLC[image_N])
            loss, metrics = error + loss, {"mse": error.detach(), **metrics}
        if self.alignment is not None and hidden is not None:
            distance = self.alignment(hidden, batch, image_N)
            loss, metrics = loss + self.config.repa_weight * distance, {**metrics, "repa": distance.detach()}
        return loss, metrics


class StructureObjective(nn.Module):
    """Rectified-flow regression of the structure embedding, the mean over all K channels.

    Paper: Eq. (1), §2.2.1
    """

    def __init__(self, network: StructureGenerator, dequantizer: Dequantizer, config: GeneratorLossConfig) -> None:
        super().__init__()
        self.network = network
        self.dequantizer = frozen(dequantizer)
        self.config = config

    @property
    def host_noise(self) -> frozenset[str]:
        """Noise that is read on the host."""
        return HOST_NOISE

    def draw_noise(self, *, seed: int, step: int, global_batch: int, rows: slice = EVERY_ROW) -> dict[str, Tensor]:
        """Random choices of one step for rows of the global batch, which are all that is drawn.

        Release: ε is shared by the stages of an image, t = sigmoid(N(0, 1)) is drawn per image and stage
        """
        layout = self.network.layout
        noise = common_noise(
            self.config, seed, step, global_batch, layout.num_structure_stages, self.network.config.depth, rows
        )
        shape = (global_batch, layout.num_positions, layout.last_stage)
        noise["noise"] = normals(seed, 0, Purpose.TRAIN_NOISE, step, shape, rows)
        shape = (global_batch, noise["stages"].shape[1])
        # Of the whole batch: the sigmoid of a value has other last bits in a vector than beside one.
        noise["time"] = torch.sigmoid(normals(seed, 0, Purpose.TRAIN_TIME, step, shape))[rows]
        return noise

    def forward(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of records.

        Args:
            batch: label (B,), content_ids (B, T) and structure (B, L), int64.
            noise: rows of `draw_noise`; outside training every branch and every class is kept.

        Returns:
            scalar loss (mean over all K channels); metrics velocity_0.. per stage, accuracy (share of positions put on
            the right side of the stage's split by the clean data that the velocity implies) and accuracy_0..; those of
            a stage as `sum_and_count`.
        """
        flow = self._flow(batch, noise)
        error_N = (flow.velocity_NLK - flow.target_NLK).square().mean((1, 2))
        right_N = flow.split_accuracy()
        per_stage: dict[str, Tensor] = {}
        for stage, rows in flow.sequences.rows:
            per_stage[f"velocity_{stage}"] = sum_and_count(error_N.detach()[rows])
            per_stage[f"accuracy_{stage}"] = sum_and_count(right_N[rows])
        return error_N.mean(), {"accuracy": right_N.mean(), **per_stage}

    def squared_errors(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Squared error of every velocity.

        Args:
            batch: label (B,), content_ids (B, T) and structure (B, L), int64.
            noise: rows of `draw_noise`; outside training every branch and every class is kept.

        Returns:
            float32 (N, L, K), and the stage of each sequence, int64 (N,).
        """
        flow = self._flow(batch, noise)
        return (flow.velocity_NLK - flow.target_NLK).square(), flow.sequences.stage_N

    def _flow(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> _Flow:
        layout, structure_BL = self.network.layout, batch["structure"]
        with torch.no_grad():
            canvases_BSLC = self.dequantizer.canvases(batch["content_ids"], structure_BL)
        sequences = Sequences(noise["stages"], structure_BL.device)
        image_N, stage_N = sequences.image_N, sequences.stage_N
        time_N = noise["time"].flatten()
        data_NLK = (structure_embedding(structure_BL, layout.last_stage, layout.last_stage) - 1).float()[image_N]
        noisy_NLK, target_NLK = noisy_structure(
            data_NLK, noise["noise"][image_N], time_N, stage_N, known_clean=self.network.config.known_clean
        )
        class_N = dropped_labels(batch["label"], noise, self.network.null_class, self.training)[image_N]
        velocity_NLK = self.network(
            noisy_NLK,
            canvases_BSLC[image_N, stage_N],
            structure_BL[image_N],
            stage_N,
            time_N,
            class_N,
            kept_branches(noise, self.training),
        )
        return _Flow(sequences, data_NLK, noisy_NLK, target_NLK, velocity_NLK, time_N)


@dataclass(frozen=True)
class _Flow:
    """One forward pass of the structure generator: what it saw, what it should have said and what it said."""

    sequences: Sequences
    data_NLK: Tensor
    noisy_NLK: Tensor
    target_NLK: Tensor
    velocity_NLK: Tensor
    time_N: Tensor

    def split_accuracy(self) -> Tensor:
        """Share of positions on whose side of the split the clean data z - t·v lies, float32 (N,); 0.5 is chance."""
        clean_NLK = self.noisy_NLK - self.time_N[:, None, None] * self.velocity_NLK.detach()
        channel_NL1 = self.sequences.stage_N[:, None, None].expand(-1, clean_NLK.shape[1], 1)
        right_NL1 = (clean_NLK.gather(2, channel_NL1) > 0) == (self.data_NLK.gather(2, channel_NL1) > 0)
        return right_NL1.float().mean((1, 2))


def sum_and_count(value_R: Tensor) -> Tensor:
    """Sum and number of the values of one stage, float32 (2,): batches and ranks have different numbers of them.

    Their common mean is the sum of their sums by the sum of their numbers.
    """
    return torch.stack([value_R.sum(), torch.full_like(value_R[:0].sum(), len(value_R))])


Module = TypeVar("Module", bound=nn.Module)


def frozen(module: Module) -> Module:
    """Turns the parameters of a module into buffers: it moves with its owner but no optimizer sees it."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())
    return module.eval()
