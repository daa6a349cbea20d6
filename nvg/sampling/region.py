"""Keeping a region of a picture while the rest is generated: the rule, stage by stage.

Outside the mask the canvas is the picture's own at every stage. Inside, structure and contents are generated.

* Contents. A cluster that lies wholly outside keeps its content. Of one that straddles the border only its positions
  inside stay painted, so its content is drawn for what these lack on the canvas, whatever those outside lack.
* Splits. Outside they are the picture's; inside the flow chooses what each half then lacks. That is always possible: a
  cluster's positions outside all lie in the picture's own cluster of that number, whose halves have room for them. So
  clusters wholly outside are the picture's own, and only the last split, which follows the raster order in every map,
  may number a position of a straddling pair otherwise.

Legend: B samples, L positions, T = 2L - 1 tokens, U tokens of a stage, S = K + 1 stages, C channels; H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nvg.errors import UserError
from nvg.granularity import StageLayout, place_all, stage_map
from nvg.tokenizer import Dequantizer


@dataclass(frozen=True, kw_only=True)
class Region:
    """Positions of a picture that are kept, with all that the picture has there.

    Attributes:
        keep_BL: bool, True outside the mask, where the picture stays.
        structure_BL: int64 finest map of the picture.
        content_ids_BSL: int64 id that each stage paints at each position.
        canvases_BSLC: float32 canvas of the picture after every stage.

    Paper: §3.2
    """

    keep_BL: Tensor
    structure_BL: Tensor
    content_ids_BSL: Tensor
    canvases_BSLC: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Region:
        """The same with every tensor changed: other rows, another device."""
        return Region(**{name: change(tensor) for name, tensor in vars(self).items()})

    def score(self, score_BL: Tensor, stage: int) -> Tensor:
        """Scores of a split: outside the picture's own side comes before all else, inside the generated scores rank.

        Args:
            score_BL: generated, finite, any real dtype; the highest become child 2j + 1.
            stage: 0..K-2.

        Returns:
            (B, L) in the same dtype; plus or minus infinity outside.

        Paper: Eq. (2), §2.2.1
        """
        bit_BL = stage_map(self.structure_BL, stage + 1, self.canvases_BSLC.shape[1] - 1) & 1
        own_BL = torch.where(bit_BL == 1, torch.inf, -torch.inf).to(score_BL)
        return torch.where(self.keep_BL, own_BL, score_BL)

    def contents(self, ids_BU: Tensor, structure_BL: Tensor, stage: int) -> Tensor:
        """Ids of a stage: of clusters wholly outside the picture's own, of all others the generated ones.

        Args:
            ids_BU: int64, generated.
            structure_BL: int64 map whose first `stage` splits were made with `score`.
            stage: 0..K.

        Paper: Alg. 2 line 8
        """
        cluster_BL = stage_map(structure_BL, stage, self.canvases_BSLC.shape[1] - 1)
        inside_BU = torch.zeros_like(ids_BU).scatter_add(1, cluster_BL, (~self.keep_BL).long())
        own_BU = torch.zeros_like(ids_BU).scatter(1, cluster_BL, self.content_ids_BSL[:, stage])
        return torch.where(inside_BU > 0, ids_BU, own_BU)

    def canvas(self, canvas_BLC: Tensor, stage: int) -> Tensor:
        """The canvas after a stage: inside as it was painted, outside the picture's own.

        Args:
            canvas_BLC: x_i, painted everywhere, also outside.
            stage: i, 0..K.

        Paper: Eq. (5), Alg. 2 line 9
        """
        return torch.where(self.keep_BL[..., None], self.canvases_BSLC[:, stage], canvas_BLC)


def keep_region(keep_BL: Tensor, content_ids_BT: Tensor, structure_BL: Tensor, dequantizer: Dequantizer) -> Region:
    """A region of pictures, from their sequences.

    Args:
        keep_BL: bool, positions that are kept; all of them give the reconstruction, none of them a free sample.
        content_ids_BT, structure_BL: int64 sequences of the pictures.
        dequantizer: of the tokenizer that made them, on their device.

    Raises:
        UserError: `keep_BL` is not bool, or has another shape.

    Paper: §3.2
    """
    if keep_BL.dtype != torch.bool or keep_BL.shape != structure_BL.shape:
        raise UserError(
            f"the kept positions are {keep_BL.dtype} of shape {tuple(keep_BL.shape)}; expected bool of shape "
            f"{tuple(structure_BL.shape)}, one for each position of the latent grid"
        )
    with torch.no_grad():
        return Region(
            keep_BL=keep_BL,
            structure_BL=structure_BL,
            content_ids_BSL=place_all(content_ids_BT, structure_BL),
            canvases_BSLC=dequantizer.canvases(content_ids_BT, structure_BL),
        )


def kept_positions(keep_HW: Tensor, num_positions: int, *, name: str = "keep") -> Tensor:
    """Positions that are kept: those of which every pixel is, so that all that was marked is generated.

    Args:
        keep_HW: bool, square, its side a multiple of the grid's.
        num_positions: L.
        name: what a message calls the mask.

    Returns:
        bool (L,), at least one of each kind.

    Raises:
        UserError: all is kept, or no position wholly.

    Paper: §3.2
    """
    side = StageLayout(num_positions).side
    pixels = len(keep_HW) // side
    keep_L = keep_HW.view(side, pixels, side, pixels).all(dim=3).all(dim=1).flatten()
    if bool(keep_L.all()):
        raise UserError(f"{name}: found white all over; expected black where something is to be generated; draw it")
    if not bool(keep_L.any()):
        raise UserError(
            f"{name}: found white on no whole position of the {side}×{side} latent grid; expected at least one "
            f"square of {pixels}×{pixels} pixels that is kept; keep more, or draw without it"
        )
    return keep_L
