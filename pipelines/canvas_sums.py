"""Statistics of canvases that merge exactly, part by part.

Legend: B image views, S = K + 1 canvases, L positions, C latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class CanvasSums:
    """float64 sums over all elements of each canvas x_0..x_K, which merge into exact statistics.

    Attributes:
        count: Elements per canvas.
        total: (S,) sums.
        square: (S,) sums of squares.
    """

    count: int = 0
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    square: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, canvases_BSLC: torch.Tensor) -> None:
        """Add the canvases of some image views."""
        values_SN = canvases_BSLC.double().transpose(0, 1).flatten(1)
        self.merge(
            CanvasSums(values_SN.shape[1], values_SN.sum(1).cpu().numpy(), values_SN.square().sum(1).cpu().numpy())
        )

    def merge(self, other: CanvasSums) -> None:
        """Add another part's sums; the order of merging must be fixed for equal bits."""
        if self.count == 0:
            self.count, self.total, self.square = other.count, other.total, other.square
        elif other.count:
            self.count += other.count
            self.total = self.total + other.total
            self.square = self.square + other.square

    def standard_deviation(self) -> np.ndarray:
        """(S,) standard deviation of each canvas over all elements."""
        mean = self.total / self.count
        return np.sqrt(np.maximum(self.square / self.count - mean**2, 0.0))
