"""REPA head: hidden image tokens of the content generator → patch tokens of a frozen vision transformer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nvg.errors import UserError
from nvg.models.trunk import initialize


@dataclass(frozen=True, kw_only=True)
class RepaHeadConfig:
    """Size of the head; the defaults fit NVG-d16 and DINOv2 ViT-B/14.

    Release: hidden width 2048
    """

    width: int = 1024
    hidden: int = 2048
    out: int = 768

    def __post_init__(self) -> None:
        if min(self.width, self.hidden, self.out) < 1:
            raise UserError(f"width {self.width}, hidden {self.hidden}, out {self.out}: each must be at least 1")


class RepaHead(nn.Module):
    """Three linear layers with SiLU between them; used in training only.

    Release: projector.{0, 2, 4}
    """

    def __init__(self, config: RepaHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(
            nn.Linear(config.width, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.out),
        )
        initialize(self)

    def forward(self, hidden_NLD: Tensor) -> Tensor:
        """Image tokens (N, L, width) after the 8th block → predicted patch tokens (N, L, out)."""
        return self.layers(hidden_NLD)
