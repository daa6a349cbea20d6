"""Structure and contents given by the user: checking them, and making balanced hierarchies of masks and label maps.

Legend: B samples, L positions, K last stage (log2 L), T = 2L - 1 tokens; H, W pixels of a mask, s rows of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvg.errors import UserError
from nvg.granularity import StageLayout, balanced_split, check_structure, cluster_latents, raster_split, stage_map
from nvg.sampling.sampler import Given

SMOOTHING = 0.125  # width of the Gaussian that breaks ties of a mask, as a share of its side
LABEL_WEIGHT = 4.0  # distance of two labels, in sides of the grid: more than its diagonal, so labels merge last


@dataclass(frozen=True)
class MaskStructure:
    """A mask turned into a balanced hierarchy.

    Attributes:
        structure_L: int64 finest map; its first split is the mask's.
        share_L: float64 share of each position that the mask covers, 0..1.
        bend: share of positions that changed side to make the first split balanced, 0 to 1/2.
    """

    structure_L: Tensor
    share_L: Tensor
    bend: float


def mask_structure(mask_HW: Tensor, num_positions: int, *, foreground: int = 1) -> MaskStructure:
    """Makes a drawn mask a balanced hierarchy: the half of the positions that it covers most is one side.

    Positions covered alike are ranked by how much of the mask lies around them: too small a foreground grows over
    its boundary, too large a one gives way at it. The last tie is broken by raster order. Further splits follow
    the same ranking, so they are bands from the inside of the foreground to the far end of the background.

    Args:
        mask_HW: square, any real dtype; the highest value is foreground, the lowest background, greys lie between.
        num_positions: L.
        foreground: the child that the foreground becomes. 1 by default: child 2j is the half that was merged at the
            smaller distance, the more even one, which is what backgrounds are.

    Returns:
        The hierarchy and how far the mask had to bend for it.

    Raises:
        UserError: the mask is not square, smaller than the grid or all one colour, or `foreground` is neither 0 nor 1.

    Paper: §3.2
    """
    if foreground not in (0, 1):
        raise UserError(f"mask_foreground is {foreground}; choose child 0 or 1")
    mask_HW = _checked_mask(mask_HW, num_positions)
    side = StageLayout(num_positions).side
    share_L = F.adaptive_avg_pool2d(mask_HW[None], side).flatten()
    window = _gaussian_windows(side, len(mask_HW)).to(mask_HW)
    inside_L = (window @ mask_HW @ window.T).flatten()
    outside_L = (window @ (1 - mask_HW) @ window.T).flatten()
    # The logit keeps apart what lies deep inside or far outside, where the smoothed mask itself is all but 1 or 0.
    # Rounding makes positions equal that are so by symmetry, on every machine.
    depth_L = (inside_L.log() - outside_L.log()).mul(1e6).round()
    order_L = depth_L.sort(descending=True, stable=True).indices
    order_L = order_L[share_L[order_L].mul(1e6).round().sort(descending=True, stable=True).indices]
    rank_L = torch.empty_like(order_L).scatter(0, order_L, torch.arange(num_positions, device=order_L.device))
    structure_L = score_structure(-rank_L if foreground else rank_L)
    side_L = structure_L >> (StageLayout(num_positions).last_stage - 1)
    bend = ((share_L >= 0.5) != (side_L == foreground)).double().mean().item()
    return MaskStructure(structure_L, share_L, bend)


def score_structure(score_L: Tensor) -> Tensor:
    """Makes any score a balanced hierarchy: each cluster's half with the higher score is child 2j + 1.

    Args:
        score_L: finite, any real dtype, in raster order; of equal scores the lower position counts as higher.

    Returns:
        int64 (L,) finest map; the last split follows the raster order, as in every map.

    Raises:
        UserError: a score is not finite.

    Paper: §3.2
    """
    if not bool(torch.isfinite(score_L).all()):
        raise UserError("a score is not finite; every position needs a finite score")
    layout = StageLayout(len(score_L))
    structure_BL = torch.zeros(1, len(score_L), dtype=torch.int64, device=score_L.device)
    for stage in range(layout.num_structure_stages):
        structure_BL = balanced_split(structure_BL, score_L[None], stage, layout.last_stage)
    return raster_split(structure_BL, layout.last_stage)[0]


def label_structure(label_HW: Tensor, num_positions: int) -> Tensor:
    """Makes a label map (a segmentation) a balanced hierarchy: positions of one label, then near ones, merge first.

    The method's own clustering is run on how much of each position every label covers, and where it lies.

    Args:
        label_HW: square, integers; any values, one for each label.
        num_positions: L.

    Returns:
        int64 (L,) finest map.

    Raises:
        UserError: the map is not square, smaller than the grid or has one label only.

    Paper: Alg. 1, §3.2
    """
    side = StageLayout(num_positions).side
    shares_NHW = _label_shares(label_HW, side)
    place_s = (torch.arange(side, device=label_HW.device) + 0.5) / side
    places_2HW = torch.stack(torch.meshgrid(place_s, place_s, indexing="ij"))
    features_LC = torch.cat([LABEL_WEIGHT * shares_NHW, places_2HW]).flatten(1).T
    return cluster_latents(features_LC[None])[0]


def label_bend(label_HW: Tensor, structure_L: Tensor, num_splits: int) -> float:
    """How far a label map had to bend to be divided in equal halves.

    Args:
        label_HW: as of `label_structure`.
        structure_L: int64 finest map of it.
        num_splits: splits that are used, 0..K.

    Returns:
        share of positions that lie in a cluster most of which has another label, 0 to below 1.

    Paper: §3.2
    """
    layout = StageLayout(len(structure_L))
    label_L = _label_shares(label_HW, layout.side).flatten(1).argmax(0)
    cluster_L = stage_map(structure_L, num_splits, layout.last_stage)
    counts = F.one_hot(cluster_L).T.double() @ F.one_hot(label_L).double()
    return 1.0 - counts.amax(1).sum().item() / layout.num_positions


def _label_shares(label_HW: Tensor, side: int) -> Tensor:
    """How much of each position every label covers, float64 (labels, side, side)."""
    _check_picture(label_HW, side, "label map")
    values, number_HW = label_HW.unique(return_inverse=True)
    if len(values) < 2:
        raise UserError(f"the label map has the one label {values.tolist()}; at least two are needed to divide it")
    return F.adaptive_avg_pool2d(F.one_hot(number_HW).permute(2, 0, 1).double(), side)


def check_given_structure(structure_BL: Tensor, num_positions: int) -> None:
    """Checks a structure that somebody else made.

    Args:
        structure_BL: what should be finest maps, one a row.
        num_positions: L of the networks.

    Raises:
        UserError: no integers, another size, or no balanced hierarchy.

    Paper: §2.1
    """
    if structure_BL.is_floating_point() or structure_BL.is_complex() or structure_BL.dtype == torch.bool:
        raise UserError(f"the given structure holds {structure_BL.dtype}; integers from 0 to L-1 are needed")
    if structure_BL.ndim != 2 or structure_BL.shape[1] != num_positions:
        raise UserError(
            f"the given structure has shape {tuple(structure_BL.shape)}; these networks need one row of "
            f"{num_positions} positions for each sample"
        )
    try:
        check_structure(structure_BL)
    except UserError as error:
        raise UserError(
            "the given structure is no balanced hierarchy: a finest map names each of "
            f"0..{num_positions - 1} once, so that the clusters of every stage are of equal size"
        ) from error


def give_structure(structure_BL: Tensor, num_splits: int) -> Given:
    """Fixes the first splits; contents and further splits are generated.

    Args:
        structure_BL: int64 finest maps, one for each sample.
        num_splits: M, 1..K.

    Raises:
        UserError: no balanced hierarchy, or M is out of range.

    Paper: §3.2, Fig. 7
    """
    layout = StageLayout(structure_BL.shape[-1])
    check_given_structure(structure_BL, layout.num_positions)
    _check_stages(num_splits, layout.last_stage, "splits")
    return Given(structure_BL=structure_BL, num_splits=num_splits)


def give_contents(content_ids_BT: Tensor, structure_BL: Tensor, num_contents: int) -> Given:
    """Fixes the contents of the first stages, the splits they are painted by, and the next split: "generate M to K".

    Args:
        content_ids_BT: int64 ids of one image for each sample.
        structure_BL: int64 finest maps of the same images.
        num_contents: M, 1..K + 1: the contents of stages 0..M-1, and the structure up to stage M, by which the first
            contents that are generated are painted.

    Raises:
        UserError: no balanced hierarchy, or M is out of range.

    Paper: §3.2, Fig. 7
    """
    layout = StageLayout(structure_BL.shape[-1])
    check_given_structure(structure_BL, layout.num_positions)
    _check_stages(num_contents, layout.num_stages, "stages of contents")
    return Given(
        structure_BL=structure_BL,
        num_splits=min(num_contents, layout.last_stage),
        content_ids_BT=content_ids_BT,
        num_contents=num_contents,
    )


def _check_stages(found: int, most: int, what: str) -> None:
    if not 1 <= found <= most:
        raise UserError(f"stages is {found}; these networks have 1 to {most} {what} to give: change stages")


def _checked_mask(mask_HW: Tensor, num_positions: int) -> Tensor:
    """The mask in float64, stretched to 0..1."""
    _check_picture(mask_HW, StageLayout(num_positions).side, "mask")
    mask_HW = mask_HW.double()
    if not bool(torch.isfinite(mask_HW).all()):
        raise UserError("the mask holds values that are not finite; numbers from background to foreground are needed")
    low, high = mask_HW.min(), mask_HW.max()
    if low == high:
        raise UserError(
            f"the mask is all one colour ({low.item():g}); it needs two sides, for example a white shape on black"
        )
    return (mask_HW - low) / (high - low)


def _check_picture(picture_HW: Tensor, side: int, what: str) -> None:
    if picture_HW.ndim != 2 or picture_HW.shape[0] != picture_HW.shape[1] or picture_HW.shape[0] < side:
        raise UserError(
            f"the {what} has shape {tuple(picture_HW.shape)} (rows, columns); a square one of at least {side}×{side} "
            "is needed, one pixel for each position of the latent grid: crop or enlarge it"
        )


def _gaussian_windows(side: int, num_pixels: int) -> Tensor:
    """Float64 (s, pixels): weights of the pixels around each row of the grid, each row summing to 1."""
    centre_s = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    pixel_P = (torch.arange(num_pixels, dtype=torch.float64) + 0.5) / num_pixels
    return (-(((centre_s[:, None] - pixel_P) / SMOOTHING) ** 2) / 2).softmax(1)
