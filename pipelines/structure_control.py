"""The files that a user gives to be followed; what is made of them is in `nvg.sampling.following`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from eval.decoding import decode_image
from eval.image_files import read_npy
from nvg.bounds import at_least, check_fields, refuse
from nvg.errors import BadImage, UserError
from nvg.pictures import Cut, cut_picture
from nvg.pixels import ImageArray
from nvg.sampling.following import (
    Control,
    follow_contents,
    follow_image,
    follow_labels,
    follow_map,
    follow_mask,
    follow_region,
)
from nvg.tokenizer import Tokenizer

_MAP_SUFFIX = ".npy"
_FILES = ("structure_from", "structure_mask", "structure_labels", "fix_content_from", "stagewise_from", "edit_from")


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """What is given; the rest is generated. At most one of the six files that samples follow.

    Attributes:
        structure_from: image whose maps are given, or a .npy file with a finest map.
        structure_mask: drawn mask, white (high) is foreground; its balanced halves are the first split.
        structure_labels: segmentation, a PNG or a .npy file whose values are labels; its segments become a hierarchy.
        fix_content_from: image whose first contents are given, with the maps they lie on and the next one.
        stagewise_from: image for the figure of stage-wise control: for every i stages i..K are generated, once with
            contents and structures of the image below, once with its structures alone.
        edit_from: image of which a region is kept.
        keep: mask over it, an image or a .npy file in its proportions: white is kept, black generated.
        stages: M. Of structure_from the first M splits (default: all), of structure_mask likewise (default: 1, further
            splits are bands of the mask), of structure_labels likewise (default: as many as tell the labels apart), of
            fix_content_from the contents of stages 0..M-1 and the structure up to stage M (no default).
        mask_foreground: child of the first split that the mask's foreground becomes. Child 0 is the half that was
            merged at the smaller distance, the more even one; so foregrounds are child 1 unless they are flat.
        view_policy: how images and segmentations are cut: "center" takes the centre square of the whole image, "crop"
            the centre of the image whose shorter side is 1.125 times as long, "pad" keeps its pixels and puts them on
            the middle of a black square; null cuts as the run's images were cut.
        num_candidates: draws of each sample, of which the one that follows best is kept; 1 is plain sampling.
    """

    structure_from: str | None = None
    structure_mask: str | None = None
    structure_labels: str | None = None
    fix_content_from: str | None = None
    stagewise_from: str | None = None
    edit_from: str | None = None
    keep: str | None = None
    stages: int | None = at_least(1, None)
    mask_foreground: Literal[0, 1] = 1
    view_policy: Cut | None = None
    num_candidates: int = at_least(1, 1)

    def __post_init__(self) -> None:
        check_fields(self, "control")
        found = [name for name in _FILES if getattr(self, name)]
        if len(found) > 1:
            raise UserError(f"control: found {' and '.join(found)}; expected at most one of them; leave one away")
        if not found and (self.stages is not None or self.num_candidates != 1):
            raise UserError(
                f"control: found stages or num_candidates and nothing to follow; give one of "
                f"{', '.join(_FILES)} as well"
            )
        if self.fix_content_from and self.stages is None:
            raise refuse("control.stages", None, "how many stages of contents fix_content_from gives")
        if self.stagewise_from and self.stages is not None:
            raise refuse("control.stages", self.stages, "null with stagewise_from, which gives every number in turn")
        if bool(self.edit_from) != bool(self.keep):
            raise UserError(
                "control: found one of edit_from (--from) and keep (--keep); expected both, an image and a mask of "
                "what is kept of it; give the other as well"
            )
        if self.edit_from and self.stages is not None:
            raise refuse("control.stages", self.stages, "null with edit_from, which keeps its region at every stage")
        if self.edit_from and self.num_candidates != 1:
            raise refuse("control.num_candidates", self.num_candidates, "1 with edit_from, which keeps, not follows")
        if self.stagewise_from and self.num_candidates != 1:
            raise refuse("control.num_candidates", self.num_candidates, "1 with stagewise_from")

    @property
    def active(self) -> bool:
        """Whether samples follow something."""
        return any(getattr(self, name) for name in _FILES if name != "stagewise_from")


def plan_control(config: ControlConfig) -> str:
    """What is given, for a dry run: one line."""
    if config.structure_mask:
        return f"balance the mask {config.structure_mask}, foreground as child {config.mask_foreground}"
    if config.structure_labels:
        splits = "as many splits as tell its labels apart" if config.stages is None else f"{config.stages} split(s)"
        return f"balance the segmentation {config.structure_labels}, give {splits}"
    if config.structure_from:
        return f"give {'all' if config.stages is None else config.stages} split(s) of {config.structure_from}"
    if config.edit_from:
        return f"keep of {config.edit_from} what is white in {config.keep}"
    if config.stagewise_from:
        return f"give 0, 1, … stages of {config.stagewise_from}, contents and structures, then structures alone"
    return (
        f"give the contents of {config.stages} stage(s) of {config.fix_content_from} and the structure up to "
        f"stage {config.stages}"
    )


def load_control(config: ControlConfig, tokenizer: Tokenizer, *, cut: Cut = "center") -> Control:
    """Read what was given and turn it into a prefix of one row.

    Args:
        config: names the file.
        tokenizer: in evaluation mode.
        cut: of images and segmentations, where `config.view_policy` is None.

    Raises:
        UserError: the file is missing, no image, no balanced hierarchy, or `stages` is out of range.
    """
    cut, stages = config.view_policy or cut, config.stages
    if config.structure_mask:
        key = "control.structure_mask"
        file, data = _read(key, config.structure_mask)
        return follow_mask(tokenizer, np.array(_decoded(key, file, data, 1)), stages, config.mask_foreground)
    if config.structure_labels:
        key = "control.structure_labels"
        file, data = _read(key, config.structure_labels)
        label_HW = _read_array(key, file) if _is_array(file) else _read_label_image(key, file, data)
        return follow_labels(tokenizer, label_HW, stages, cut=cut, name=f"{key}: {file}")
    if config.structure_from:
        key = "control.structure_from"
        if _is_array(Path(config.structure_from)):
            file, _ = _read(key, config.structure_from)
            return follow_map(tokenizer, _read_array(key, file), stages)
        return follow_image(tokenizer, read_picture(key, config.structure_from, tokenizer, cut), stages)
    if config.edit_from:
        assert config.keep is not None
        names = f"control.edit_from: {config.edit_from}", f"control.keep: {config.keep}"
        picture = _read_pixels("control.edit_from", config.edit_from, tokenizer.config.image_channels)
        return follow_region(tokenizer, picture, _read_keep(config.keep), cut=cut, names=names)
    assert config.fix_content_from is not None
    assert stages is not None
    image_HWC = read_picture("control.fix_content_from", config.fix_content_from, tokenizer, cut)
    return follow_contents(tokenizer, image_HWC, stages)


def read_picture(key: str, path: str, tokenizer: Tokenizer, cut: Cut) -> ImageArray:
    """An image file, cut to the tokenizer's square as the run's images are.

    Raises:
        UserError: the file is missing or no image.
    """
    size, channels = tokenizer.config.image_size, tokenizer.config.image_channels
    return cut_picture(_read_pixels(key, path, channels), size, channels, cut, name=f"{key}: {path}")


def _read_pixels(key: str, path: str, channels: int) -> ImageArray:
    file, data = _read(key, path)
    return np.array(_decoded(key, file, data, channels))


def _read_keep(path: str) -> np.ndarray:
    """A mask: the grey of an image, or what a .npy file holds."""
    key = "control.keep"
    if not _is_array(Path(path)):
        return _read_pixels(key, path, 1)
    file, _ = _read(key, path)
    return _read_npy(key, file)


def _read_label_image(key: str, file: Path, data: bytes) -> np.ndarray:
    """Labels of each pixel: the palette's or grey values as stored, a colour as one number."""
    _decoded(key, file, data, 3)  # refuses what is no image, or too large
    with Image.open(io.BytesIO(data)) as image:
        if image.format in ("JPEG", "MPO"):
            raise UserError(
                f"{key}: {file} is a JPEG, which blends labels; expected a PNG or .npy file; save it as one"
            )
        pixels = np.array(image).astype(np.int64)
    if pixels.ndim == 2:
        return pixels
    return (pixels << (8 * np.arange(pixels.shape[2]))).sum(2)


def _read(key: str, path: str) -> tuple[Path, bytes]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{key}: found no file {file}, expected an image; change {key}")
    return file, file.read_bytes()


def _decoded(key: str, file: Path, data: bytes, channels: int) -> Image.Image:
    try:
        return decode_image(data, channels)
    except BadImage as error:
        message = f"{key}: {file} is no image that can be read ({error}); give a PNG or JPEG file"
        raise UserError(message) from error


def _is_array(file: Path) -> bool:
    return file.suffix.lower() == _MAP_SUFFIX


def _read_array(key: str, file: Path) -> np.ndarray:
    """Integers of a .npy file."""
    values = _read_npy(key, file)
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"{key}: {file} holds {values.dtype}; expected integers; convert them before saving")
    return values


def _read_npy(key: str, file: Path) -> np.ndarray:
    try:
        return read_npy(file)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
