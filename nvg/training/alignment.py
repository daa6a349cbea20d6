"""Alignment of hidden tokens with the tokens of a frozen network (REPA).

Legend: B images, M stages drawn per image, N = B · M sequences, L positions, D model width, F width of a feature.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nvg.errors import UserError
from nvg.models import ContentGenerator, HiddenTokens, RepaHead, RepaHeadConfig
from nvg.tokenizer.frozen import Companion

FEATURES = "features"
IMAGE = "image"


class Alignment(nn.Module):
    """1 - cosine between hidden image tokens, through a head that learns with the generator, and given features.

    All stages of an image have the same target.

    Args:
        network: whose tokens are aligned; not held.
        feature_width: F.
        after_block: number of the block, from 1, whose stream is taken.
        teacher: frozen network that makes features of images, where none are stored.

    Raises:
        UserError: the network has no such block.

    Paper: §2.2.2 (RePA at the 8th layer); Release: DINOv2 ViT-B/14, one target for all stages
    """

    def __init__(
        self, network: ContentGenerator, *, feature_width: int, after_block: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.teacher = None if teacher is None else Companion(teacher)
        depth = network.config.depth
        if not 1 <= after_block <= depth:
            raise UserError(f"loss.repa_block is {after_block}; the network has blocks 1 to {depth}")
        self.after_block = after_block
        self.head = RepaHead(RepaHeadConfig(width=network.canvas_in.out_features, out=feature_width))

    def hidden(self) -> HiddenTokens:
        """To be given to the network's forward pass."""
        return HiddenTokens(self.after_block)

    def forward(self, hidden: HiddenTokens, batch: dict[str, Tensor]) -> Tensor:
        """Scalar mean over sequences and positions.

        Args:
            hidden: after the forward pass, in which the sequences of an image are neighbours (see `Sequences`).
            batch: with a teacher image, float32 (B, 3, S, S) in [-1, 1]; else features, float32 (B, L, F).

        Raises:
            UserError: the features have another grid.
        """
        assert hidden.tokens_NSD is not None
        features_BLF = batch[FEATURES] if self.teacher is None else self.teacher(batch[IMAGE]).float()
        predicted_NLF = self.head(hidden.tokens_NSD[:, 1:]).float()
        if features_BLF.shape[1:] != predicted_NLF.shape[1:]:
            raise UserError(
                f"features of {tuple(features_BLF.shape[1:])} (positions, width) do not fit tokens of "
                f"{tuple(predicted_NLF.shape[1:])}; set loss.repa_weight=0 or store features of the latent grid"
            )
        predicted_BMLF = predicted_NLF.unflatten(0, (len(features_BLF), -1))
        return (1.0 - F.cosine_similarity(predicted_BMLF, features_BLF[:, None], dim=-1)).mean()
