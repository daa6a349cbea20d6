"""What a user of the page asks for, what is taken in from the user, and the settings file that makes it again.

Everything that comes from a browser is checked here: choices, numbers, files and drawings.
Shapes: levels uint8 (H, W) of a mask, (H, W, C) of a picture at the model's size.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from eval.decoding import decode_image
from nvg.bounds import at_least, between, check_fields, positive, refuse
from nvg.errors import BadImage, UserError
from nvg.folders.run import Weights
from nvg.model import Model
from nvg.pictures import cut_picture
from nvg.pixels import ImageArray
from nvg.precision import Device, Precision
from nvg.sampling import SamplingConfig
from pipelines.configuration import CONFIG_FOLDER, dump_config, load_config
from pipelines.sample import SampleConfig
from pipelines.structure_control import ControlConfig

Follows = Literal["nothing", "mask", "picture", "region"]
_MASK_FILE, _PICTURE_FILE, _KEEP_FILE = "mask.png", "picture.png", "keep.png"
MASK_PIXELS = 256  # side of the sheet that is drawn on
MOST_CLASSES = 4  # what is drawn together is one batch of the sampler, as on the command line
AS_SCORED = "this run's own"
_KINDS = ("PNG", "JPEG", "WEBP", "GIF")
_DRAWING_START, _MOST_DRAWING_BYTES = "data:image/png;base64,", 1 << 20
_MEGABYTE = 10**6


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """What is served, to whom, and how much a user may ask for.

    Attributes:
        run: folder of a demo or of one's own trainings, an exported model, or `owner/name` on the Hugging Face hub.
        evaluation: folder name of the evaluation by whose settings is sampled; needed where several differ.
        weights: which weights of the generators.
        device, precision: as of `nvg sample`.
        host: address that the page listens on; others than this machine reach it by 0.0.0.0.
        port: null takes the first free one from 7860 on.
        open: True opens the page in the browser of this machine.
        max_upload_mb: largest file, in millions of bytes.
        max_megapixels: largest picture; it is refused by its header.
        max_side_by_side: seeds that are painted one after the other for one click.
        max_waiting: users in the queue; the next one is told to come back.
    """

    run: str = "runs/demo"
    evaluation: str | None = None
    weights: Weights = "ema"
    device: Device = "auto"
    precision: Precision | None = None
    host: str = "127.0.0.1"
    port: int | None = between(1, 65535, None)
    open: bool = False
    max_upload_mb: float = positive(10.0)
    max_megapixels: float = positive(40.0)
    max_side_by_side: int = between(1, 8, 4)
    max_waiting: int = at_least(1, 20)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """One click: pictures of each class for each seed.

    Attributes:
        classes: labels, drawn as one batch.
        seeds: one after the other.
        preset: a name of `presets`.
        follows: mask and picture give first stages, of a picture's region all are kept.
        mask: what was drawn, white is foreground; of a region, white is painted anew.
        picture: at the model's size.
        stages: how many stages mask or picture give, 1..K.
    """

    classes: list[int]
    seeds: list[int]
    preset: str = AS_SCORED
    follows: Follows = "nothing"
    mask: ImageArray | None = None
    picture: ImageArray | None = None
    stages: int | None = None

    @property
    def files(self) -> dict[str, ImageArray]:
        """Pictures that lie beside the settings file, by name."""
        found = {_MASK_FILE: self.mask if self.follows == "mask" else None, _PICTURE_FILE: self.picture}
        if self.keep is not None:
            found[_KEEP_FILE] = self.keep
        return {name: levels for name, levels in found.items() if levels is not None}

    @property
    def keep(self) -> ImageArray | None:
        """Of a region, white where the picture is kept; None for all else."""
        return np.uint8(255) - self.mask if self.follows == "region" and self.mask is not None else None


def presets(model: Model) -> dict[str, SamplingConfig]:
    """Ways to sample by name, the first one the model's own."""
    files = sorted((CONFIG_FOLDER / "sampling").glob("*.yaml"))
    return {AS_SCORED: model.sampling, **{file.stem: load_config(SamplingConfig, file) for file in files}}


def ask(
    model: Model,
    config: AppConfig,
    *,
    classes: Any,
    seed: Any,
    side_by_side: Any,
    preset: Any = AS_SCORED,
    follows: Any = "nothing",
    mask: ImageArray | None = None,
    picture: ImageArray | None = None,
    stages: Any = None,
) -> Asked:
    """Check what the page sent.

    Args:
        model: that is asked.
        config: limits.
        classes: labels.
        seed: the first one, 0 or more.
        side_by_side: how many seeds.
        preset, follows: see `Asked`; what does not belong to `follows` is not read.
        mask, picture: already read.
        stages: see `Asked`.

    Raises:
        UserError: it is not there, or too much.
    """
    labels = [_whole("classes", label, 0, len(model.class_names) - 1) for label in classes or []]
    if not 1 <= len(labels) <= MOST_CLASSES:
        raise refuse("classes", [model.class_names[label] for label in labels], f"1 to {MOST_CLASSES} classes")
    first = _whole("seed", seed, 0, 2**53)  # what a browser counts exactly
    count = _whole("side by side", side_by_side, 1, config.max_side_by_side)
    if preset not in presets(model):
        raise refuse("sampling", preset, f"one of {', '.join(presets(model))}")
    asked = partial(Asked, classes=labels, seeds=list(range(first, first + count)), preset=preset)
    if follows not in followed_by(model):
        raise refuse("start from", follows, f"one of {', '.join(followed_by(model))}: what this model can follow")
    wanted = {"nothing": {}, "mask": {"mask": mask}, "picture": {"picture": picture}}
    given = wanted.get(follows, {"mask": mask, "picture": picture})
    if missing := [name for name, levels in given.items() if levels is None]:
        raise UserError(f"there is no {missing[-1]} yet; {_ADVICE[missing[-1]]}, or start from nothing")
    if follows in ("mask", "picture"):
        return asked(follows=follows, **given, stages=_whole("stages", stages, 1, model.num_stages - 1))
    return asked(follows=follows, **given)


_ADVICE = {"mask": "draw on the sheet", "picture": "choose one"}


def followed_by(model: Model) -> list[Follows]:
    """What a model can follow: where structure is spatial, the same for every picture, there is none to give."""
    return ["nothing", "region"] if model.structure is None else ["nothing", "mask", "picture", "region"]


def read_upload(file: str | Path, config: AppConfig, *, channels: int) -> ImageArray:
    """Pixels of a file that somebody sent.

    Args:
        file: where the server keeps it; what the user called it is not read.
        config: limits.
        channels: 1 for grey, 3 for colour.

    Returns:
        uint8 (H, W) or (H, W, 3), upright and in sRGB.

    Raises:
        UserError: empty, too large, of another kind, animated, or damaged.
    """
    data = Path(file).read_bytes()
    if len(data) > config.max_upload_mb * _MEGABYTE:
        found = f"{len(data) / _MEGABYTE:.1f} MB"
        raise UserError(f"the file has {found}; expected at most {config.max_upload_mb:g} MB; send a smaller one")
    if not data:
        raise UserError("the file is empty; expected a PNG, JPEG, WebP or GIF picture; send another one")
    try:
        # Other formats of Pillow are not even tried: some of them start programs.
        with Image.open(io.BytesIO(data), formats=_KINDS) as image:
            megapixels = image.width * image.height / 1e6
            if megapixels <= config.max_megapixels and image.format != "MPO" and getattr(image, "is_animated", False):
                raise UserError("the picture is animated; expected a still one; send one of its frames")
        return np.array(decode_image(data, channels, max_megapixels=config.max_megapixels))
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError("the file is no picture; expected PNG, JPEG, WebP or GIF; send another one") from None
    except Image.DecompressionBombError:
        raise UserError(
            f"the picture is far too large; expected at most {config.max_megapixels:g} megapixels; make it smaller"
        ) from None
    except BadImage as error:
        found = str(error).removesuffix(" (max_megapixels)")
        raise UserError(f"the picture cannot be used: {found}; send another one") from error
    except Exception as error:  # Pillow's readers raise whatever damage made them stumble over
        raise UserError(f"the picture cannot be read ({error}); send another one") from error


def picture_levels(picture: ImageArray, model: Model) -> ImageArray:
    """A picture cut to the model's square as its training images were, uint8 (size, size, C)."""
    config = model.tokenizer.config
    return cut_picture(picture, config.image_size, config.image_channels, model.cut)


def mask_sheet(mask_HW: ImageArray) -> ImageArray:
    """A mask of any size on the sheet that is drawn on, uint8 (MASK_PIXELS, MASK_PIXELS)."""
    return cut_picture(mask_HW, MASK_PIXELS, 1, "center", name="mask")[..., 0]


def read_drawing(url: Any) -> ImageArray | None:
    """Levels of a drawing, white is foreground; None for an untouched sheet.

    Args:
        url: PNG as a data URL, as the page's sheet sends it.

    Raises:
        UserError: it is something else.
    """
    if not url:
        return None
    if not isinstance(url, str) or not url.startswith(_DRAWING_START) or len(url) > _MOST_DRAWING_BYTES:
        raise UserError("the drawing did not arrive whole; clear the sheet and draw again")
    try:
        data = base64.b64decode(url.removeprefix(_DRAWING_START), validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            size = image.size
        levels = np.array(decode_image(data, 1)) if size == (MASK_PIXELS, MASK_PIXELS) else None
    except Exception as error:  # as above
        raise UserError("the drawing did not arrive whole; clear the sheet and draw again") from error
    if levels is None:
        raise UserError(f"the drawing is {size} pixels; expected {MASK_PIXELS} a side; draw again")
    return levels if levels.any() else None


def settings_file(asked: Asked, seed: int, model: Model, config: AppConfig) -> str:
    """YAML from which `nvg sample --config` makes the pictures of one seed again, byte for byte.

    What is followed lies beside it, see `Asked.files`, at the size at which the page used it.
    """
    # A picture has the model's size already: its centre is all of it, however the run's images are cut.
    followed: dict[Follows, dict[str, Any]] = {
        "nothing": {},
        "mask": {"structure_mask": _MASK_FILE},
        "picture": {"structure_from": _PICTURE_FILE, "view_policy": "center"},
        "region": {"edit_from": _PICTURE_FILE, "keep": _KEEP_FILE, "view_policy": "center"},
    }
    control = ControlConfig(**followed[asked.follows], stages=asked.stages)
    assert model.parts is not None
    return _HEAD.format(run=config.run) + dump_config(
        SampleConfig(
            run=str(model.parts.folder.absolute()),  # of a hub's repository, this commit in the library's cache
            classes=asked.classes,
            num_per_class=1,
            seed=seed,
            sampling=presets(model)[asked.preset],
            weights=config.weights,
            rounding=model.rounding,
            device="cuda" if model.device.type == "cuda" else "cpu",
            precision=config.precision,
            control=control,
        )
    )


_HEAD = "# Pictures of {run!r} again, the same, from this folder: nvg sample --config settings.yaml\n"


def _whole(key: str, value: Any, low: int, high: int) -> int:
    """A whole number from a browser, which may write it as a float."""
    try:
        number = index(int(value)) if float(value).is_integer() else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        raise refuse(key, value, f"a whole number from {low} to {high}")
    return number
