"""Training losses of the two generators.

Legend: B images, M stages drawn per image, N = B · M sequences, S = K + 1 stages, L positions, C latent channels,
K structure channels, Q unique tokens of all sequences, V codebook size, T tokens of a record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvg.bounds import refuse
from nvg.granularity import cluster_means, structure_embedding
from nvg.models import FINAL_CANVAS, ContentGenerator, StructureGenerator
from nvg.precision import without_autocast
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
from nvg.training.mistakes import Painted, drawn_mistakes, drawn_regions, mistaken_canvases, with_foreign_region

_LOGITS_AT_ONCE = 1 << 24  # 64 MiB in float32: 4,096 tokens of 4,096 codes


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
            after_block = config.aligned_block(network.config.depth)
            self.alignment = Alignment(network, feature_width=feature_width, after_block=after_block, teacher=teacher)

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
        if self.config.self_correction:
            noise |= drawn_mistakes(self.dequantizer, self.config.self_correction, seed, step, global_batch, rows)
        if self.config.foreign_regions:
            noise |= drawn_regions(
                network.config.num_positions, self.config.foreign_regions, seed, step, global_batch, rows
            )
        return noise

    def forward(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of records.

        Args:
            batch: label (B,), content_ids (B, T) and structure (B, L), int64; features or image where hidden tokens
                are aligned (see `Alignment`).
            noise: rows of `draw_noise`; outside training every branch and every class is kept.

        Returns:
            scalar loss; metrics mse, cross_entropy and accuracy (share of tokens whose likeliest id is right), the
            latter two per stage as cross_entropy_0.., accuracy_0.. (see `Sequences.sums`), and repa.
        """
        structure_BL, network = batch["structure"], self.network
        sequences = Sequences(noise["stages"], structure_BL.device)
        image_N, stage_N = sequences.image_N, sequences.stage_N
        recorded_BSLC = decoded(self.dequantizer, batch)
        final_BLC, painted = recorded_BSLC[:, -1], Painted(recorded_BSLC, batch["content_ids"])
        if self.training and self.config.self_correction:
            painted = mistaken_canvases(
                self.dequantizer, painted.ids_BT, structure_BL, final_BLC, noise["mistakes"], noise["mistake_size"]
            )
        if self.training and self.config.foreign_regions:
            painted = with_foreign_region(
                self.dequantizer, painted, recorded_BSLC, structure_BL, noise["foreign"], noise["turn"]
            )
        before_NLC = painted.canvases_BSLC[image_N, stage_N - 1]
        canvas_NLC = torch.where((stage_N > 0)[:, None, None], before_NLC, 0.0)
        structure_NL = structure_BL[image_N]
        class_N = dropped_labels(batch["label"], noise, network.null_class, self.training)[image_N]
        noise_NLC = noise["canvas_noise"][image_N] if network.config.needs_noise else None
        hidden = None if self.alignment is None else self.alignment.hidden()
        estimate_NLC = network(
            canvas_NLC, structure_NL, stage_N, class_N, kept_branches(noise, self.training), noise_NLC, hidden
        )
        # One call for the tokens of all stages: ranks with other stages call the same modules (ZeRO-3).
        tokens = sequences.tokens()
        missing_NLC = network.missing(estimate_NLC, canvas_NLC)
        missing_QC = cluster_means(missing_NLC, structure_NL, stage_N, sequences.order_N, sequences.counts)
        logits_QV = network.token_head(missing_QC)
        target_Q = painted.ids_BT[tokens.image_Q, tokens.token_Q]
        entropy_Q = token_entropies(logits_QV, target_Q) * tokens.weight_Q
        right_Q = (logits_QV.detach().argmax(-1) == target_Q) * tokens.weight_Q
        entropy, accuracy = entropy_Q.sum() / len(stage_N), right_Q.sum() / len(stage_N)
        per_stage = sequences.sums({"cross_entropy": entropy_Q.detach(), "accuracy": right_Q}, tokens.sizes)
        loss, metrics = entropy, {"cross_entropy": entropy.detach(), "accuracy": accuracy, **per_stage}
        if network.config.prediction == FINAL_CANVAS:
            error = F.mse_loss(estimate_NLC, final_BLC[image_N])
            loss, metrics = error + loss, {"mse": error.detach(), **metrics}
        if self.alignment is not None and hidden is not None:
            distance = self.alignment(hidden, batch)
            loss, metrics = loss + self.config.repa_weight * distance, {**metrics, "repa": distance.detach()}
        return loss, metrics


class StructureObjective(nn.Module):
    """Rectified-flow regression of the structure embedding, the mean over all K channels.

    Paper: Eq. (1), §2.2.1
    """

    def __init__(self, network: StructureGenerator, dequantizer: Dequantizer, config: GeneratorLossConfig) -> None:
        super().__init__()
        for name in ("self_correction", "foreign_regions"):
            if value := getattr(config, name):
                raise refuse(f"loss.{name}", value, "0 here: it is the content generator's")
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
            a stage as `Sequences.sums` gives them.
        """
        flow = self._flow(batch, noise)
        error_N = (flow.velocity_NLK - flow.target_NLK).square().mean((1, 2))
        right_N = flow.split_accuracy()
        order_N, counts = flow.sequences.order_N, flow.sequences.counts
        per_stage = flow.sequences.sums({"velocity": error_N.detach()[order_N], "accuracy": right_N[order_N]}, counts)
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
        canvases_BSLC = decoded(self.dequantizer, batch)
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


def token_entropies(logits_QV: Tensor, target_Q: Tensor) -> Tensor:
    """Cross-entropy of every token, float32 (Q,); of very many in few parts, whose temporary copies are small.

    Paper: Eq. (3), §2.2.2
    """
    rows = max(1, _LOGITS_AT_ONCE // logits_QV.shape[1])
    parts = zip(logits_QV.split(rows), target_Q.split(rows), strict=True)
    return torch.cat([F.cross_entropy(logits, target, reduction="none") for logits, target in parts])


@torch.no_grad()
def decoded(dequantizer: Dequantizer, batch: dict[str, Tensor]) -> Tensor:
    """Canvases x_0..x_K of records, float32 (B, S, L, C) whatever the precision of the step: what sampling paints.

    Paper: Eq. (5), App. A.2
    """
    with without_autocast(batch["structure"].device):
        return dequantizer.canvases(batch["content_ids"], batch["structure"])


Module = TypeVar("Module", bound=nn.Module)


def frozen(module: Module) -> Module:
    """Turns the parameters of a module into buffers: it moves with its owner but no optimizer sees it."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())
    return module.eval()
