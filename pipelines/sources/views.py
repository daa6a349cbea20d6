"""From an image file to the square views a model sees: the view policies. Decoding is `eval.decoding`.

View 0 is the centred one, except under "random_crop". Random ones depend only on (seed, key, view). Under "fresh_crop"
there is no end of them: epoch e of a training takes view e + 1.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np
from PIL import Image

from eval.decoding import decode_image
from nvg.errors import BadImage
from nvg.randomness import Purpose, uniforms
from pipelines.sources.config import SourceConfig, shift_reach
from pipelines.sources.keys import key_bytes

_CROP_RATIO = 1.125
_CROP_POLICIES = ("crop", "random_crop", "ten_crop", "fresh_crop")
_MAX_RESIZED_PIXELS = 1 << 26

_CHANGES = {
    "turned": "turned upright by their orientation tag",
    "recoloured": "converted to sRGB from their colour profile",
}

logger = logging.getLogger(__name__)

# Of each source of this process and each change: keys of the images.
_changed: dict[tuple[SourceConfig, str], set[str]] = {}
_said: set[SourceConfig] = set()


def views_of_file(data: bytes, *, config: SourceConfig, key: str, views: Sequence[int]) -> list[np.ndarray]:
    """Decode an image file once and cut views as `make_views` does.

    An image smaller than a view needs is enlarged, unless `fit` says otherwise. What an orientation tag or a colour
    profile changed is counted: see `count_changes`.

    Raises:
        BadImage: the file is no readable image.
    """
    image = decode_image(data, config.image_channels, pixels=config.pixels, max_megapixels=config.max_megapixels)
    for change in map(str, image.info):
        _changed.setdefault((config, change), set()).add(key)
    return views_of_picture(image, config=config, key=key, views=views)


def views_of_picture(image: Image.Image, *, config: SourceConfig, key: str, views: Sequence[int]) -> list[np.ndarray]:
    """What `make_views` does; an image that is enlarged is said once."""
    if config.fit == "resize" and min(image.size) < _shorter_side(config):
        _say_enlarged(str(config.path), _shorter_side(config))
    return make_views(image, config=config, key=key, views=views)


def count_changes(config: SourceConfig, keys: Iterable[str] | None = None) -> dict[str, int]:
    """How many images are shown otherwise than they lie, of those that this process has read (and of `keys`).

    Returns:
        Counts of "turned" and "recoloured", where there are any.
    """
    wanted = None if keys is None else set(keys)
    found = {name: _changed.get((config, name), set()) for name in _CHANGES}
    counts = {name: len(read if wanted is None else read & wanted) for name, read in found.items()}
    return {name: count for name, count in counts.items() if count}


def describe_changes(config: SourceConfig, counts: Mapping[str, int]) -> str:
    """What was done to images, in words."""
    done = ", ".join(f"{count:,} image(s) {_CHANGES[name]}" for name, count in counts.items())
    return f"{config.path} ({config.split}): {done}; source.pixels=stored takes them as they lie"


def say_changes(config: SourceConfig) -> None:
    """Say once in a process what was done to the images of a source that it has read."""
    if config not in _said and (counts := count_changes(config)):
        _said.add(config)
        logger.warning("%s", describe_changes(config, counts))


def make_view(image: Image.Image, *, config: SourceConfig, key: str, view: int) -> np.ndarray:
    """Cut one view; see `make_views`."""
    return make_views(image, config=config, key=key, views=[view])[0]


def make_views(
    image: Image.Image,
    *,
    config: SourceConfig,
    key: str,
    views: Sequence[int],
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> list[np.ndarray]:
    """Resize or pad a picture once and cut views.

    "center" and "shift" resize the shorter side to `image_size` and take the centre; "shift" then moves the
    picture by a different small offset in each view and fills with zeros. "crop" and "fresh_crop" resize the
    shorter side to 1.125 * `image_size` and take the centre (view 0) or a random square, which `flip` mirrors with
    probability 1/2; "random_crop" has no centred view. "ten_crop" takes the centre, the corners, and the five mirrored.
    With `fit` "pad" the picture keeps its pixels, and a black square around it has that side instead.

    Args:
        image: picture of mode "L" or "RGB", any size.
        config: sizes, policy and seed.
        key: the picture's name: with the seed it decides offsets.
        views: each 0 <= view < config.num_views; any view >= 0 under "fresh_crop".
        resample: filter of the resize.

    Returns:
        uint8 (S, S, channels) each.

    Raises:
        BadImage: the picture is so elongated that its resized form would not fit in memory, or larger than the square
            that it is to be padded to.

    Release: shorter side to 288 (Lanczos), random 256 crop, no flip
    """
    for view in views:
        if view < 0 or (view >= config.num_views and config.view_policy != "fresh_crop"):
            raise IndexError(f"view {view} of {config.num_views}")
    side = _shorter_side(config)
    framed = _pad(image, config, side) if config.fit == "pad" else _resize_shorter_side(image, side, resample)
    return [_cut(np.asarray(framed), config, key, view) for view in views]


def _cut(framed: np.ndarray, config: SourceConfig, key: str, view: int) -> np.ndarray:
    size = config.image_size
    left, top, mirrored = _place(framed.shape[1] - size, framed.shape[0] - size, config, key, view)
    pixels = framed[top : top + size, left : left + size].reshape(size, size, config.image_channels)
    pixels = np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)
    if config.view_policy == "shift" and view > 0:
        return _shift(pixels, *_shift_offset(config, key, view))
    return pixels


def _place(width: int, height: int, config: SourceConfig, key: str, view: int) -> tuple[int, int, bool]:
    """Left and top of a view's square where it has `width` and `height` pixels of play, and whether it is mirrored."""
    policy = config.view_policy
    if policy == "ten_crop" and view % 5 > 0:
        column, row = ((0, 0), (1, 0), (0, 1), (1, 1))[view % 5 - 1]
        return column * width, row * height, view >= 5
    if policy == "random_crop" or (policy == "crop" and view > 0):
        generator = _generator(config.seed, key, view + 1 if policy == "random_crop" else view)
        left, top = int(generator.integers(0, width + 1)), int(generator.integers(0, height + 1))
        return left, top, config.flip and bool(generator.integers(0, 2))
    if policy == "fresh_crop" and view > 0:
        uniform = uniforms(config.seed, _key_number(key), Purpose.DATA_CROP, view - 1, (3 if config.flip else 2,))
        return int(uniform[0] * (width + 1)), int(uniform[1] * (height + 1)), config.flip and bool(uniform[2] < 0.5)
    return width // 2, height // 2, policy == "ten_crop" and view >= 5


def _shorter_side(config: SourceConfig) -> int:
    """What the shorter side is resized or padded to, pixels."""
    return round(config.image_size * _CROP_RATIO) if config.view_policy in _CROP_POLICIES else config.image_size


@cache  # once for each source of a process
def _say_enlarged(path: str, side: int) -> None:
    logger.warning("%s: found images whose shorter side is below %d pixels; they are enlarged", path, side)


def _resize_shorter_side(image: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    shorter = min(image.size)
    width, height = (max(side, round(length * side / shorter)) for length in image.size)
    if width * height > _MAX_RESIZED_PIXELS:
        raise BadImage(f"too elongated: {image.width}x{image.height} pixels")
    return image if (width, height) == image.size else image.resize((width, height), resample)


def _pad(image: Image.Image, config: SourceConfig, side: int) -> Image.Image:
    if max(image.size) > config.image_size:
        raise BadImage(
            f"too large to pad: {image.width}x{image.height} pixels, expected at most {config.image_size} a side "
            "(source.fit=pad; resize brings images of any size to it)"
        )
    square = Image.new(image.mode, (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _shift_offset(config: SourceConfig, key: str, view: int) -> tuple[int, int]:
    """The (row, column) offset of a view >= 1: the views of an image walk through shuffled offsets."""
    reach = shift_reach(config.image_size)
    steps = range(-reach, reach + 1)
    offsets = [(row, column) for row in steps for column in steps if (row, column) != (0, 0)]
    order = _generator(config.seed, key, 0).permutation(len(offsets))
    return offsets[order[view - 1]]


def _shift(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    size = pixels.shape[0]
    shifted = np.zeros_like(pixels)
    target = _target_slice(rows, size), _target_slice(columns, size)
    origin = _target_slice(-rows, size), _target_slice(-columns, size)
    shifted[target] = pixels[origin]
    return shifted


def _target_slice(offset: int, size: int) -> slice:
    return slice(max(offset, 0), size + min(offset, 0))


def _key_number(key: str) -> int:
    """63 bits of a picture's name: the same crop wherever it stands in the data set."""
    return int.from_bytes(hashlib.sha256(key_bytes(key)).digest()[:8], "little") >> 1


def _generator(seed: int, key: str, stream: int) -> np.random.Generator:
    digest = hashlib.sha256(key_bytes(f"{seed}/{stream}/{key}")).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
