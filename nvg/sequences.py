"""Visual granularity sequences at hand: what a picture was encoded to, and what a model has drawn.

Legend: B images, S = K + 1 stages, L positions, T = 2L - 1 tokens, C latent channels, s rows of the latent grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import index

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nvg.bounds import refuse
from nvg.granularity import StageLayout, stage_map
from nvg.pixels import ImageArray
from nvg.tiles import lay_out, stage_rows


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sequences:
    """Sequences of some images, on the CPU, and the way back to pixels.

    Attributes:
        content_ids: int64 (B, 2L - 1), codebook entry of each token, the stages in order.
        structure: int64 (B, L), the finest map; stage i reads its i leading bits, see `maps`.
        canvases: float32 (B, K + 1, L, C), the latent after every stage.
        decoder: canvases (N, L, C) to uint8 images (N, H, W, channels).
    """

    content_ids: Tensor
    structure: Tensor
    canvases: Tensor
    decoder: Callable[[Tensor], ImageArray]

    def __len__(self) -> int:
        return len(self.content_ids)

    def __repr__(self) -> str:
        return f"<nvg.{type(self).__name__}: {len(self)} of {self.num_stages} stages>"

    @property
    def num_stages(self) -> int:
        """K + 1: stage 0 has one token, the last one L."""
        return self.canvases.shape[1]

    def decode(self, stage: int | None = None) -> ImageArray:
        """Images as painted up to a stage.

        Args:
            stage: 0..K, or from the end as -1; None is the last.

        Returns:
            uint8 (B, H, W, channels).

        Raises:
            UserError: there is no such stage.
        """
        last = self.num_stages - 1
        place = last if stage is None else index(stage)
        if not -self.num_stages <= place <= last:
            raise refuse("stage", place, f"0 to {last}, or -{self.num_stages} to -1 from the end")
        return self.decoder(self.canvases[:, place])

    def maps(self, stage: int) -> NDArray[np.int64]:
        """Structure map of a stage, (B, s, s): 2^stage clusters of equal size. Raises UserError for no such stage."""
        layout = self._layout_with(stage)
        return stage_map(self.structure, stage, layout.last_stage).view(-1, layout.side, layout.side).numpy()

    def ids(self, stage: int) -> NDArray[np.int64]:
        """Content ids of a stage, (B, 2^stage): that of cluster j is the j-th. Raises UserError for no such stage."""
        return self.content_ids[:, self._layout_with(stage).tokens(stage)].numpy()

    def _layout_with(self, stage: int) -> StageLayout:
        layout = StageLayout(self.structure.shape[1])
        if not 0 <= index(stage) <= layout.last_stage:
            raise refuse("stage", stage, f"0 to {layout.last_stage}")
        return layout

    def stages(self, row: int = 0) -> ImageArray:
        """How one image was painted, as a picture: above the structure map of every stage, below the canvas decoded.

        Args:
            row: which image, 0..B - 1.

        Returns:
            uint8 (height, width, 3).

        Raises:
            UserError: there is no such image.
        """
        if not 0 <= index(row) < len(self):
            raise refuse("row", row, f"0 to {len(self) - 1}, one of the {len(self)} images")
        maps = [self.maps(stage)[row] for stage in range(self.num_stages)]
        return stage_rows(maps, list(self.decoder(self.canvases[row])))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Samples(Sequences):
    """Drawn images with their sequences.

    Attributes:
        images: uint8 (B, H, W, channels), the last canvas decoded.
        labels: int64 (B,), class of each.
        indices: int64 (B,), number of each sample among all of its seed; with the class it decides the image.
        class_names: of all classes, by label.
        per_class: how many were drawn each time a class was named.
    """

    images: ImageArray
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    class_names: list[str]
    per_class: int

    def grid(self) -> ImageArray:
        """All images as one picture, a row for each class named: uint8 (height, width, channels)."""
        rows = range(0, len(self.images), self.per_class)
        return lay_out([list(self.images[row : row + self.per_class]) for row in rows])


def sequences_of(content_ids: Tensor, structure: Tensor, canvases: Tensor) -> dict[str, Tensor]:
    """The three tensors as `Sequences` holds them, copied to the CPU out of any inference mode."""
    found = {"content_ids": content_ids, "structure": structure, "canvases": canvases}
    return {name: torch.from_numpy(tensor.cpu().numpy().copy()) for name, tensor in found.items()}
