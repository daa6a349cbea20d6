"""What samples are made to follow, as tensors: a picture's maps, contents or region, a drawn mask, a segmentation.

Legend: B samples, L positions, T = 2L - 1 tokens; H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nvg.bounds import refuse
from nvg.errors import UserError
from nvg.granularity import StageLayout, stage_map
from nvg.pictures import Cut, cut_labels, cut_mask, cut_picture, mask_levels
from nvg.pixels import ImageArray, to_model_range
from nvg.sampling.control import (
    check_given_structure,
    give_contents,
    give_structure,
    label_bend,
    label_structure,
    mask_structure,
)
from nvg.sampling.region import keep_region, kept_positions
from nvg.sampling.sampler import Given
from nvg.tokenizer import Tokenizer
from nvg.tokenizer.tokenizer import SPATIAL

_MOST_LABELS = 256


@dataclass(frozen=True, kw_only=True)
class Control:
    """What is given; the rest is generated.

    Attributes:
        name: what was given, in words.
        given: what is fixed, one row, on the CPU.
        source_name: image, mask, labels, map or kept.
        source_HWC: uint8 picture of it; None for a map.
        image_HWC: the image it was taken from, at the tokenizer's size; None for all else.
        bend: share of positions that had to change side to balance a mask, or lie with another label's; None where
            nothing had to be balanced.
    """

    name: str
    given: Given
    source_name: str = "image"
    source_HWC: ImageArray | None = None
    image_HWC: ImageArray | None = None
    bend: float | None = None

    @property
    def maps(self) -> list[np.ndarray]:
        """Maps (side, side) of the stages whose splits are given, 1, 2, …"""
        structure_BL = self.given.structure_BL
        if structure_BL is None:
            return []
        layout = StageLayout(structure_BL.shape[1])
        return [
            stage_map(structure_BL, stage, layout.last_stage).view(layout.side, layout.side).numpy()
            for stage in range(1, self.given.num_splits + 1)
        ]

    def for_samples(self, count: int) -> Given:
        """What is given to each of `count` samples."""
        return self.given.each(lambda tensor: tensor.expand(count, *tensor.shape[1:]))


def follow(
    tokenizer: Tokenizer, *, stages: int | None = None, mask_foreground: int = 1, cut: Cut, **given: Any
) -> Control | None:
    """What samples follow, by the names of `nvg.Model.sample`; None where nothing is given.

    Args:
        tokenizer: in evaluation mode.
        stages, mask_foreground: see there.
        cut: of pictures and segmentations to the tokenizer's square.
        given: structure_from, structure_mask, structure_labels or fix_content_from; those that are None are not given.

    Raises:
        UserError: more than one is given, or it cannot be used.

    Paper: §3.2
    """
    found = {name: what for name, what in given.items() if what is not None}
    if len(found) > 1:
        raise UserError(f"found {' and '.join(found)}; expected at most one of them; leave one away")
    if not found:
        if stages is not None:
            raise refuse("stages", stages, "None where nothing is followed", f"give one of {', '.join(given)} as well")
        return None
    ((name, what),) = found.items()
    if name == "structure_mask":
        return follow_mask(tokenizer, mask_levels(what, name), stages, mask_foreground)
    if name == "structure_labels":
        return follow_labels(tokenizer, np.asarray(what), stages, cut=cut, name=name)
    levels = np.asarray(what)
    if name == "structure_from" and np.issubdtype(levels.dtype, np.integer) and levels.dtype != np.uint8:
        return follow_map(tokenizer, levels, stages)
    config = tokenizer.config
    image_HWC = cut_picture(what, config.image_size, config.image_channels, cut, name=name)
    if name == "structure_from":
        return follow_image(tokenizer, image_HWC, stages)
    if stages is None:
        raise refuse("stages", stages, "how many stages of contents fix_content_from gives")
    return follow_contents(tokenizer, image_HWC, stages)


def _require_own_structure(tokenizer: Tokenizer) -> None:
    """Refuse to give maps to networks whose maps are the same for every image; a UserError says what works."""
    if tokenizer.config.structure == SPATIAL:
        raise UserError(
            "this tokenizer's structure is spatial, the same for every image: there is no structure to give; "
            "fix_content_from works, or use a tokenizer of granularity structure"
        )


def tokenized_image(tokenizer: Tokenizer, image_HWC: ImageArray) -> tuple[Tensor, Tensor]:
    """Sequence of one uint8 image of the tokenizer's size: content ids (1, T) and finest map (1, L), on the CPU.

    Paper: Alg. 1 lines 1, 9
    """
    device = tokenizer.dequantizer.codebook.device
    content_ids_BT, structure_BL = tokenizer.tokenize(to_model_range(image_HWC[None]).to(device))
    return content_ids_BT.cpu(), structure_BL.cpu()


def follow_image(tokenizer: Tokenizer, image_HWC: ImageArray, stages: int | None = None) -> Control:
    """The first M splits of an image.

    Args:
        tokenizer: in evaluation mode, of granularity structure.
        image_HWC: uint8, of its size.
        stages: M, 1..K; None gives all K.

    Raises:
        UserError: M is out of range, or there is no structure to give.

    Paper: §3.2, Fig. 6
    """
    _require_own_structure(tokenizer)
    _, structure_BL = tokenized_image(tokenizer, image_HWC)
    given = give_structure(structure_BL, _last_stage(tokenizer) if stages is None else stages)
    return Control(name="structure of an image", given=given, source_HWC=image_HWC, image_HWC=image_HWC)


def follow_map(tokenizer: Tokenizer, map_: Any, stages: int | None = None) -> Control:
    """The first M splits of a finest map.

    Args:
        tokenizer: of granularity structure.
        map_: integers of any shape with L entries, each of 0..L-1 once.
        stages: M, 1..K; None gives all K.

    Raises:
        UserError: it is no balanced hierarchy of this grid, or M is out of range.

    Paper: §3.2
    """
    _require_own_structure(tokenizer)
    structure_BL = torch.from_numpy(np.asarray(map_).astype(np.int64)).reshape(1, -1)
    check_given_structure(structure_BL, tokenizer.config.num_positions)
    given = give_structure(structure_BL, _last_stage(tokenizer) if stages is None else stages)
    return Control(name="structure of a map file", source_name="map", given=given)


def follow_mask(tokenizer: Tokenizer, mask_HW: NDArray[Any], stages: int | None = None, foreground: int = 1) -> Control:
    """A drawn mask as the first split; see `mask_structure`.

    Args:
        tokenizer: of granularity structure.
        mask_HW: square, any real dtype, the highest value is foreground.
        stages: M, 1..K, further splits are bands of the mask; None gives 1.
        foreground: child of the first split that the foreground becomes, 0 or 1.

    Raises:
        UserError: no such mask, or M is out of range.

    Paper: §3.2
    """
    _require_own_structure(tokenizer)
    mask = mask_structure(torch.from_numpy(np.array(mask_HW)), tokenizer.config.num_positions, foreground=foreground)
    levels = mask_HW if mask_HW.dtype == np.uint8 else (mask.share_L.view(_side(tokenizer), -1).numpy() * 255)
    return Control(
        name=f"mask, foreground as child {foreground}",
        given=give_structure(mask.structure_L[None], 1 if stages is None else stages),
        source_name="mask",
        source_HWC=levels.astype(np.uint8)[..., None],
        bend=mask.bend,
    )


def follow_labels(
    tokenizer: Tokenizer, label_HW: NDArray[Any], stages: int | None = None, *, cut: Cut, name: str
) -> Control:
    """A segmentation, whose segments become a hierarchy; see `label_structure`.

    Args:
        tokenizer: of granularity structure.
        label_HW: integers, rows and columns; any values, one for each label.
        stages: M, 1..K; None gives as many as tell the labels apart.
        cut: of the segmentation to the tokenizer's square.
        name: what a message calls it.

    Raises:
        UserError: no rows and columns of at most 256 labels, one label alone, or M is out of range.

    Paper: Alg. 1, §3.2
    """
    _require_own_structure(tokenizer)
    label_HW = np.asarray(label_HW)
    if not np.issubdtype(label_HW.dtype, np.integer):
        raise UserError(f"{name}: found {label_HW.dtype}; expected integers, one value for each label; convert them")
    values, number_HW = np.unique(label_HW, return_inverse=True)
    if label_HW.ndim != 2 or not 0 < len(values) <= _MOST_LABELS:
        raise UserError(
            f"{name} has shape {label_HW.shape} and {len(values)} different values; expected rows and columns of at "
            f"most {_MOST_LABELS} labels; give a segmentation without blended edges, as PNG or .npy"
        )
    cut_HW = cut_labels(number_HW.reshape(label_HW.shape), tokenizer.config.image_size, cut, name=name)
    labels = torch.from_numpy(cut_HW)
    structure_L = label_structure(labels, tokenizer.config.num_positions)
    num_labels = len(labels.unique())
    num_splits = min(_last_stage(tokenizer), (num_labels - 1).bit_length()) if stages is None else stages
    return Control(
        name=f"segmentation of {num_labels} labels",
        given=give_structure(structure_L[None], num_splits),
        source_name="labels",
        source_HWC=cut_HW.astype(np.uint8)[..., None] * np.uint8(255 // max(1, len(values) - 1)),
        bend=label_bend(labels, structure_L, num_splits),
    )


def follow_contents(tokenizer: Tokenizer, image_HWC: ImageArray, stages: int) -> Control:
    """The contents of an image's stages 0..M-1 and its structure up to stage M: "generate M to K".

    Args:
        tokenizer: in evaluation mode.
        image_HWC: uint8, of its size.
        stages: M, 1..K + 1.

    Raises:
        UserError: M is out of range.

    Paper: §3.2, Fig. 7
    """
    given = give_contents(*tokenized_image(tokenizer, image_HWC), stages)
    return Control(name="first contents of an image", given=given, source_HWC=image_HWC, image_HWC=image_HWC)


def follow_region(tokenizer: Tokenizer, picture: Any, keep: Any, *, cut: Cut, names: tuple[str, str]) -> Control:
    """A region of a picture that is kept; the rule is in `nvg.sampling.region`.

    Args:
        tokenizer: in evaluation mode.
        picture: as of `nvg.pictures.cut_picture`.
        keep: mask over it, white where it is kept, as of `nvg.pictures.cut_mask`.
        cut: of both to the tokenizer's square.
        names: what messages call picture and mask.

    Raises:
        UserError: no such picture or mask, all of it is kept, or no position of the latent grid.

    Paper: §3.2
    """
    config, dequantizer = tokenizer.config, tokenizer.dequantizer
    image_HWC = cut_picture(picture, config.image_size, config.image_channels, cut, name=names[0])
    keep_HW = torch.from_numpy(cut_mask(keep, picture, config.image_size, cut, name=names[1]))
    keep_L = kept_positions(keep_HW, config.num_positions, name=names[1])
    ids_BT, structure_BL = tokenized_image(tokenizer, image_HWC)
    place = dequantizer.codebook.device
    region = keep_region(keep_L[None].to(place), ids_BT.to(place), structure_BL.to(place), dequantizer)
    side = _side(tokenizer)
    pixels = config.image_size // side
    kept_HW = keep_L.view(side, side).numpy().repeat(pixels, 0).repeat(pixels, 1)
    return Control(
        name=f"{int(keep_L.sum())} of {config.num_positions} positions of an image",
        given=Given(region=region.each(Tensor.cpu)),
        source_name="kept",
        source_HWC=np.where(kept_HW[..., None], image_HWC, np.uint8(128)),
        image_HWC=image_HWC,
    )


def _last_stage(tokenizer: Tokenizer) -> int:
    return StageLayout(tokenizer.config.num_positions).last_stage


def _side(tokenizer: Tokenizer) -> int:
    return StageLayout(tokenizer.config.num_positions).side
