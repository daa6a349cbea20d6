"""What a user gives to be followed: an image's maps, a drawn mask, or an image's first contents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.decoding import decode_image
from nvg.bounds import at_least, check_fields, refuse
from nvg.errors import UserError
from nvg.granularity import StageLayout
from nvg.pixels import ImageArray, to_model_range
from nvg.sampling import Given, check_given_structure, give_contents, give_structure, mask_structure
from nvg.tokenizer import Tokenizer
from pipelines.sources import BadImage, SourceConfig
from pipelines.sources.views import make_view

_MAP_SUFFIX = ".npy"


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """What is given; the rest is generated. At most one of the three files.

    Attributes:
        structure_from: image whose maps are given, or a .npy file with a finest map.
        structure_mask: drawn mask, white (high) is foreground; its balanced halves are the first split.
        fix_content_from: image whose first contents are given, with the maps they lie on.
        stages: M. Of structure_from the first M splits (default: all), of structure_mask likewise (default: 1, further
            splits are bands of the mask), of fix_content_from the contents of the first M stages (no default).
        mask_foreground: child of the first split that the mask's foreground becomes. Child 0 is the half that was
            merged at the smaller distance, the more even one; so foregrounds are child 1 unless they are flat.
        num_candidates: draws of each sample, of which the one that follows best is kept; 1 is plain sampling.
    """

    structure_from: str | None = None
    structure_mask: str | None = None
    fix_content_from: str | None = None
    stages: int | None = at_least(1, None)
    mask_foreground: Literal[0, 1] = 1
    num_candidates: int = at_least(1, 1)

    def __post_init__(self) -> None:
        check_fields(self, "control")
        found = [name for name in ("structure_from", "structure_mask", "fix_content_from") if getattr(self, name)]
        if len(found) > 1:
            raise UserError(f"control: found {' and '.join(found)}; expected at most one of them; leave one away")
        if not found and (self.stages is not None or self.num_candidates != 1):
            raise UserError(
                "control: found stages or num_candidates and nothing to follow; give structure_from, structure_mask or "
                "fix_content_from as well"
            )
        if self.fix_content_from and self.stages is None:
            raise refuse("control.stages", None, "how many stages of contents fix_content_from gives")

    @property
    def active(self) -> bool:
        """Whether anything is given."""
        return bool(self.structure_from or self.structure_mask or self.fix_content_from)


@dataclass(frozen=True, kw_only=True)
class Control:
    """A loaded control.

    Attributes:
        name: what was given, in words.
        given: the prefix, one row.
        source_HWC: uint8 image or mask for pictures; None for a map from a file.
        image_HWC: the image the structure was taken from, at the tokenizer's size; None for masks and map files.
        bend: share of positions that changed side to balance a mask; None where there is no mask.
    """

    name: str
    given: Given
    source_HWC: ImageArray | None = None
    image_HWC: ImageArray | None = None
    bend: float | None = None


def plan_control(config: ControlConfig) -> str:
    """What is given, for a dry run: one line."""
    if config.structure_mask:
        return f"balance the mask {config.structure_mask}, foreground as child {config.mask_foreground}"
    if config.structure_from:
        return f"give {'all' if config.stages is None else config.stages} split(s) of {config.structure_from}"
    return f"give the contents of {config.stages} stage(s) of {config.fix_content_from}"


def load_control(config: ControlConfig, tokenizer: Tokenizer, *, spatial: bool) -> Control:
    """Read what was given and turn it into a prefix of one row.

    Args:
        config: names the file.
        tokenizer: in evaluation mode.
        spatial: the networks have no structure generator, since all images have the same maps.

    Raises:
        UserError: the file is missing, no image, no balanced hierarchy, or `stages` is out of range.
    """
    if spatial and not config.fix_content_from:
        raise UserError(
            "this tokenizer's structure is spatial, the same for every image: there is no structure to give; "
            "fix_content_from works, or use a tokenizer of granularity structure"
        )
    last_stage = StageLayout(tokenizer.config.num_positions).last_stage
    if config.structure_mask:
        return _from_mask(config, tokenizer)
    if config.structure_from:
        num_splits = last_stage if config.stages is None else config.stages
        if config.structure_from.endswith(_MAP_SUFFIX):
            structure_BL = _read_map(config.structure_from, tokenizer.config.num_positions)
            return Control(name="structure of a map file", given=give_structure(structure_BL, num_splits))
        image, _, structure_BL = _tokenized("control.structure_from", config.structure_from, tokenizer)
        return Control(
            name="structure of an image",
            given=give_structure(structure_BL, num_splits),
            source_HWC=image,
            image_HWC=image,
        )
    assert config.fix_content_from is not None
    assert config.stages is not None
    image, content_ids_BT, structure_BL = _tokenized("control.fix_content_from", config.fix_content_from, tokenizer)
    given = give_contents(content_ids_BT, structure_BL, config.stages)
    return Control(name="first contents of an image", given=given, source_HWC=image, image_HWC=image)


def _from_mask(config: ControlConfig, tokenizer: Tokenizer) -> Control:
    assert config.structure_mask is not None
    mask_HW = np.array(_open_image("control.structure_mask", config.structure_mask, 1))
    mask = mask_structure(torch.from_numpy(mask_HW), tokenizer.config.num_positions, foreground=config.mask_foreground)
    return Control(
        name=f"mask, foreground as child {config.mask_foreground}",
        given=give_structure(mask.structure_L[None], 1 if config.stages is None else config.stages),
        source_HWC=mask_HW[..., None],
        bend=mask.bend,
    )


def _tokenized(key: str, path: str, tokenizer: Tokenizer) -> tuple[ImageArray, Tensor, Tensor]:
    """The image at the tokenizer's size, its content ids (1, T) and its finest map (1, L)."""
    size, channels = tokenizer.config.image_size, tokenizer.config.image_channels
    picture = _open_image(key, path, channels)
    source = replace(SourceConfig(), image_size=size, image_channels=channels)
    try:
        image = make_view(picture, config=source, key=path, view=0)
    except BadImage as error:
        raise UserError(f"{key}: {path} cannot be cut to {size}×{size}: {error}; give another image") from error
    return image, *tokenizer.tokenize(to_model_range(image[None]))


def _open_image(key: str, path: str, channels: int) -> Image.Image:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{key}: found no file {file}, expected an image; change {key}")
    try:
        return decode_image(file.read_bytes(), channels)
    except BadImage as error:
        raise UserError(f"{key}: {file} is no image that can be read ({error}); give a PNG or JPEG file") from error


def _read_map(path: str, num_positions: int) -> Tensor:
    """A finest map from a .npy file of any shape with L integers, (1, L)."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"control.structure_from: found no file {file}, expected a map or an image")
    try:
        values = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"control.structure_from: {file} is no .npy file of numbers ({error})") from error
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"control.structure_from: {file} holds {values.dtype}; integers from 0 to L-1 are needed")
    structure_BL = torch.from_numpy(values.astype(np.int64)).reshape(1, -1)
    check_given_structure(structure_BL, num_positions)
    return structure_BL
