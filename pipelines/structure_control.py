"""What a user gives to be followed: an image's maps, a drawn mask, a segmentation, or an image's first contents."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from eval.decoding import decode_image
from eval.image_files import read_npy
from nvg.bounds import at_least, check_fields, refuse
from nvg.errors import UserError
from nvg.granularity import StageLayout, stage_map
from nvg.pixels import ImageArray, to_model_range
from nvg.records import read_manifest
from nvg.sampling import (
    Given,
    check_given_structure,
    give_contents,
    give_structure,
    label_bend,
    label_structure,
    mask_structure,
)
from nvg.tokenizer import Tokenizer
from pipelines.sources import BadImage, SourceConfig
from pipelines.sources.views import make_views, views_of_file

_MAP_SUFFIX = ".npy"
_MOST_LABELS = 256
_FILES = ("structure_from", "structure_mask", "structure_labels", "fix_content_from", "stagewise_from")
Cut = Literal["center", "crop", "pad"]


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """What is given; the rest is generated. At most one of the five files.

    Attributes:
        structure_from: image whose maps are given, or a .npy file with a finest map.
        structure_mask: drawn mask, white (high) is foreground; its balanced halves are the first split.
        structure_labels: segmentation, a PNG or a .npy file whose values are labels; its segments become a hierarchy.
        fix_content_from: image whose first contents are given, with the maps they lie on and the next one.
        stagewise_from: image for the figure of stage-wise control: for every i stages i..K are generated, once with
            contents and structures of the image below, once with its structures alone.
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
        if self.stagewise_from and self.num_candidates != 1:
            raise refuse("control.num_candidates", self.num_candidates, "1 with stagewise_from")

    @property
    def active(self) -> bool:
        """Whether samples follow something."""
        return any(getattr(self, name) for name in _FILES if name != "stagewise_from")


@dataclass(frozen=True, kw_only=True)
class Control:
    """A loaded control.

    Attributes:
        name: what was given, in words.
        given: the prefix, one row.
        source_name: image, mask, labels or map.
        source_HWC: uint8 picture of it; None for a map from a file.
        image_HWC: the image the structure was taken from, at the tokenizer's size; None for all else.
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
        assert structure_BL is not None
        layout = StageLayout(structure_BL.shape[1])
        return [
            stage_map(structure_BL, stage, layout.last_stage).view(layout.side, layout.side).numpy()
            for stage in range(1, self.given.num_splits + 1)
        ]

    def for_samples(self, count: int) -> Given:
        """The prefix of `count` samples."""

        def repeated(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.expand(count, -1)

        given = self.given
        structure, contents = repeated(given.structure_BL), repeated(given.content_ids_BT)
        return replace(given, structure_BL=structure, content_ids_BT=contents)


def plan_control(config: ControlConfig) -> str:
    """What is given, for a dry run: one line."""
    if config.structure_mask:
        return f"balance the mask {config.structure_mask}, foreground as child {config.mask_foreground}"
    if config.structure_labels:
        splits = "as many splits as tell its labels apart" if config.stages is None else f"{config.stages} split(s)"
        return f"balance the segmentation {config.structure_labels}, give {splits}"
    if config.structure_from:
        return f"give {'all' if config.stages is None else config.stages} split(s) of {config.structure_from}"
    if config.stagewise_from:
        return f"give 0, 1, … stages of {config.stagewise_from}, contents and structures, then structures alone"
    return (
        f"give the contents of {config.stages} stage(s) of {config.fix_content_from} and the structure up to "
        f"stage {config.stages}"
    )


def cut_of_run(run: Path) -> Cut:
    """How view 0 of the images was cut that a run's networks know: by its records, else by its tokenizer's training."""
    policy, fit = "center", "resize"
    if (run / "records").is_dir():
        manifest = read_manifest(run / "records")
        policy, fit = manifest["view_policy"], manifest.get("fit", fit)
    elif (run / "tokenizer" / "release.json").is_file():
        policy = "crop"
    elif (file := run / "tokenizer" / "config.yaml").is_file():
        try:
            source = yaml.safe_load(file.read_bytes()).get("source", {})
            policy, fit = (str.lower(source.get(key, of)) for key, of in (("view_policy", policy), ("fit", fit)))
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{file}: does not say how images were cut ({error}); restore it, or set control.view_policy"
            ) from error
    if fit == "pad":
        return "pad"
    return "center" if policy in ("center", "shift") else "crop"


def load_control(config: ControlConfig, tokenizer: Tokenizer, *, spatial: bool, cut: Cut = "center") -> Control:
    """Read what was given and turn it into a prefix of one row.

    Args:
        config: names the file.
        tokenizer: in evaluation mode.
        spatial: the networks have no structure generator, since all images have the same maps.
        cut: of images and segmentations, where `config.view_policy` is None.

    Raises:
        UserError: the file is missing, no image, no balanced hierarchy, or `stages` is out of range.
    """
    if spatial and not config.fix_content_from:
        raise UserError(
            "this tokenizer's structure is spatial, the same for every image: there is no structure to give; "
            "fix_content_from works, or use a tokenizer of granularity structure"
        )
    cut = config.view_policy or cut
    last_stage = StageLayout(tokenizer.config.num_positions).last_stage
    if config.structure_mask:
        return _from_mask(config, tokenizer)
    if config.structure_labels:
        return _from_labels(config, tokenizer, cut)
    if config.structure_from:
        num_splits = last_stage if config.stages is None else config.stages
        if _is_array(Path(config.structure_from)):
            structure_BL = _read_map(config.structure_from, tokenizer.config.num_positions)
            given = give_structure(structure_BL, num_splits)
            return Control(name="structure of a map file", source_name="map", given=given)
        image, _, structure_BL = tokenized("control.structure_from", config.structure_from, tokenizer, cut)
        return Control(
            name="structure of an image",
            given=give_structure(structure_BL, num_splits),
            source_HWC=image,
            image_HWC=image,
        )
    assert config.fix_content_from is not None
    assert config.stages is not None
    image, content_ids_BT, structure_BL = tokenized("control.fix_content_from", config.fix_content_from, tokenizer, cut)
    given = give_contents(content_ids_BT, structure_BL, config.stages)
    return Control(name="first contents of an image", given=given, source_HWC=image, image_HWC=image)


def tokenized(key: str, path: str, tokenizer: Tokenizer, cut: Cut) -> tuple[ImageArray, Tensor, Tensor]:
    """An image file as the run's images are read.

    Returns:
        the image at the tokenizer's size, its content ids (1, T) and its finest map (1, L).

    Raises:
        UserError: the file is missing or no image.
    """
    file, data = _read(key, path)
    try:
        (image,) = views_of_file(data, config=_source(tokenizer, file, cut), key=path, views=[0])
    except BadImage as error:
        raise _no_image(key, file, error, cut) from error
    return image, *tokenizer.tokenize(to_model_range(image[None]))


def _from_mask(config: ControlConfig, tokenizer: Tokenizer) -> Control:
    assert config.structure_mask is not None
    file, data = _read("control.structure_mask", config.structure_mask)
    mask_HW = np.array(_decoded("control.structure_mask", file, data, 1))
    mask = mask_structure(torch.from_numpy(mask_HW), tokenizer.config.num_positions, foreground=config.mask_foreground)
    return Control(
        name=f"mask, foreground as child {config.mask_foreground}",
        given=give_structure(mask.structure_L[None], 1 if config.stages is None else config.stages),
        source_name="mask",
        source_HWC=mask_HW[..., None],
        bend=mask.bend,
    )


def _from_labels(config: ControlConfig, tokenizer: Tokenizer, cut: Cut) -> Control:
    assert config.structure_labels is not None
    key = "control.structure_labels"
    file, data = _read(key, config.structure_labels)
    label_HW = _read_array(key, file) if _is_array(file) else _read_label_image(key, file, data)
    values, number_HW = np.unique(label_HW, return_inverse=True)
    if label_HW.ndim != 2 or not 0 < len(values) <= _MOST_LABELS:
        raise UserError(
            f"{key}: {file} has shape {label_HW.shape} and {len(values)} different values; expected rows and columns "
            f"of at most {_MOST_LABELS} labels; give a segmentation without blended edges, as PNG or .npy"
        )
    numbers = Image.fromarray(number_HW.reshape(label_HW.shape).astype(np.uint8))
    source = replace(_source(tokenizer, file, cut), image_channels=1)
    try:
        (cut_HWC,) = make_views(numbers, config=source, key=str(file), views=[0], resample=Image.Resampling.NEAREST)
    except BadImage as error:
        raise _no_image(key, file, error, cut) from error
    labels = torch.from_numpy(cut_HWC[..., 0].astype(np.int64))
    structure_L = label_structure(labels, tokenizer.config.num_positions)
    num_labels = len(labels.unique())
    last_stage = StageLayout(tokenizer.config.num_positions).last_stage
    num_splits = min(last_stage, (num_labels - 1).bit_length()) if config.stages is None else config.stages
    given = give_structure(structure_L[None], num_splits)
    return Control(
        name=f"segmentation of {num_labels} labels",
        given=given,
        source_name="labels",
        source_HWC=cut_HWC * np.uint8(255 // max(1, len(values) - 1)),
        bend=label_bend(labels, structure_L, num_splits),
    )


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


def _source(tokenizer: Tokenizer, file: Path, cut: Cut) -> SourceConfig:
    size, channels = tokenizer.config.image_size, tokenizer.config.image_channels
    how = {"fit": "pad"} if cut == "pad" else {"view_policy": cut}
    return replace(SourceConfig(), path=str(file), image_size=size, image_channels=channels, **how)


def _read(key: str, path: str) -> tuple[Path, bytes]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{key}: found no file {file}, expected an image; change {key}")
    return file, file.read_bytes()


def _decoded(key: str, file: Path, data: bytes, channels: int) -> Image.Image:
    try:
        return decode_image(data, channels)
    except BadImage as error:
        raise _no_image(key, file, error) from error


def _no_image(key: str, file: Path, error: BadImage, cut: Cut | None = None) -> UserError:
    another = ", or set control.view_policy=center, which takes images of any size" if cut == "pad" else ""
    return UserError(f"{key}: {file} is no image that can be read ({error}); give a PNG or JPEG file{another}")


def _read_map(path: str, num_positions: int) -> Tensor:
    """A finest map from a .npy file of any shape with L integers, (1, L)."""
    file, _ = _read("control.structure_from", path)
    values = _read_array("control.structure_from", file)
    structure_BL = torch.from_numpy(values.astype(np.int64)).reshape(1, -1)
    check_given_structure(structure_BL, num_positions)
    return structure_BL


def _is_array(file: Path) -> bool:
    return file.suffix.lower() == _MAP_SUFFIX


def _read_array(key: str, file: Path) -> np.ndarray:
    """Integers of a .npy file."""
    try:
        values = read_npy(file)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"{key}: {file} holds {values.dtype}; expected integers; convert them before saving")
    return values
