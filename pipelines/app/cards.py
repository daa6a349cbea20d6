"""A painting as the page shows it and as a user takes it home: tiles, film strips, and the archive.

All pictures go into the page as data URLs: nothing is fetched, nothing is kept on the server.
"""

from __future__ import annotations

import base64
import io
import zipfile
from functools import lru_cache
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nvg.model import Model
from nvg.pixels import ImageArray
from nvg.tiles import map_colours, stage_rows
from pipelines.app.painting import Frame, Painting, Picture
from pipelines.app.settings import AppConfig, Asked, settings_file

_FRAME_PIXELS = 128  # a frame of the strip is shown no larger; of large pictures every n-th pixel is sent
_INK = (15, 118, 110)  # of the sheet that is drawn on, see page.css
_CLOCK = (1980, 1, 1, 0, 0, 0)  # of all members: the same painting is the same archive


def data_url(levels: ImageArray) -> str:
    """A picture, uint8 (H, W), (H, W, 1) or (H, W, 3), as a PNG data URL."""
    return f"data:image/png;base64,{base64.b64encode(png(levels)).decode()}"


def png(levels: ImageArray) -> bytes:
    """A picture, uint8 (H, W), (H, W, 1) or (H, W, 3), as the bytes that `nvg sample` writes."""
    file = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.ndim == 3 and levels.shape[-1] == 1 else levels).save(file, "PNG")
    return file.getvalue()


def painting_html(painting: Painting) -> str:
    """A row of tiles for each class, a column for each seed, what is followed first; below the strip of one tile."""
    chosen, pictures = painting.newest or 0, painting.pictures
    seeds = list(dict.fromkeys(picture.seed for picture in pictures))
    each = len(pictures) // len(seeds)
    columns = len(seeds) if len(seeds) > 1 else each
    by_class = [turn * each + row for row in range(each) for turn in range(len(seeds))]
    tiles = [_tile(pictures[row], row, row == chosen) for row in by_class]
    strips = [_strip(picture, row, painting) for row, picture in enumerate(pictures)]
    shown = "".join(f".easel:has(#tile-{row}:checked) #strip-{row}{{display:grid}}" for row in range(len(pictures)))
    followed = _followed(painting)
    return (
        f'<div class="easel"><style>{shown}</style><div class="shown" style="--columns:{columns}">{followed}'
        f'<div class="tiles" role="radiogroup" aria-label="Pictures">{"".join(tiles)}</div>'
        f'</div><div class="strips">{"".join(strips)}</div></div>'
    )


def empty_html(num_stages: int) -> str:
    """The easel before the first click."""
    frames = "".join(f'<span class="frame" style="--column:{stage + 1}"></span>' for stage in range(num_stages))
    return (
        '<div class="easel empty"><p class="hint">Choose a class and press <b>Paint</b>. '
        f"The strip below has a frame for each of {num_stages} stages, from one token to one for each place.</p>"
        f'<div class="strips"><div class="strip" style="--stages:{num_stages}">{frames}{frames}</div></div></div>'
    )


def archive(painting: Painting, asked: Asked, model: Model, config: AppConfig) -> bytes:
    """A zip file with a folder for each seed: pictures, how they were painted, finest maps, and the settings file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:

        def put(name: str, data: bytes) -> None:
            zipped.writestr(zipfile.ZipInfo(name, _CLOCK), data)

        for seed in asked.seeds:
            folder = f"seed-{seed}"
            put(f"{folder}/settings.yaml", settings_file(asked, seed, model, config).encode())
            for name, levels in asked.files.items():
                put(f"{folder}/{name}", png(levels))
            for picture in (picture for picture in painting.pictures if picture.seed == seed):
                assert picture.structure_ss is not None
                name = f"{folder}/{picture.label}-{picture.number:03d}"
                stages = stage_rows(*zip(*((frame.map_ss, frame.image_HWC) for frame in picture.frames), strict=True))
                put(f"{name}.png", png(picture.frames[-1].image_HWC))
                put(f"{name}-stages.png", png(stages))
                put(f"{name}-map.npy", _npy(picture.structure_ss))
    return file.getvalue()


def _followed(painting: Painting) -> str:
    control = painting.control
    if control is None or control.source_HWC is None:
        return ""
    drawn, given = control.source_name == "mask", control.given.num_splits
    what, shown = ("your mask", _inked(control.source_HWC)) if drawn else ("your picture", control.source_HWC)
    stages = f"{given} stage{'s' if given > 1 else ''} given" if given else "the kept part"
    bent = "" if control.bend is None else f' title="{control.bend:.0%} of the places changed side to balance it"'
    map_ = _img(map_colours(control.maps[-1], given), f"Map of what is given, {stages}", "corner") if given else ""
    return (
        f'<figure class="tile given"{bent}><span class="canvas">{_img(shown, what)}{map_}</span>'
        f"<figcaption>{what}<small>{stages}</small></figcaption></figure>"
    )


def _tile(picture: Picture, row: int, chosen: bool) -> str:
    name = f"{picture.name}, seed {picture.seed}"
    if picture.frames:
        inside = _img(picture.frames[-1].image_HWC, f"{name}, after {len(picture.frames)} stages")
    else:
        inside = '<span class="blank"></span>'
    return (
        f'<label class="tile"><input type="radio" name="tile" id="tile-{row}"{" checked" if chosen else ""} '
        f'aria-label="Stages of {escape(name, quote=True)}"><span class="canvas">{inside}</span>'
        f'<span class="caption">{escape(picture.name)}<small>seed {picture.seed}</small></span></label>'
    )


def _strip(picture: Picture, row: int, painting: Painting) -> str:
    given = 0 if painting.control is None else painting.control.given.num_splits
    maps, canvases, tokens = [], [], []
    for stage in range(painting.num_stages):
        new = " new" if stage == len(picture.frames) - 1 and row == painting.newest else ""
        own = " own" if 0 < stage <= given else ""
        column = f'style="--column:{stage + 1}"'
        if stage < len(picture.frames):
            frame = picture.frames[stage]
            map_, canvas = _map_img(frame, stage), _img(_reduced(frame.image_HWC), f"Canvas after stage {stage}")
        else:
            map_ = canvas = ""
        maps.append(f'<span class="frame map{own}{new}" {column}>{map_}</span>')
        canvases.append(f'<span class="frame{new}" {column}>{canvas}</span>')
        tokens.append(f'<span class="tokens" {column}>{1 << stage}</span>')
    number = f"{len(picture.frames)} of {painting.num_stages}"
    name = escape(f"{picture.name}, seed {picture.seed}, {number} stages painted", quote=True)
    return (
        f'<div class="strip" id="strip-{row}" role="group" aria-label="{name}" style="--stages:{painting.num_stages}">'
        f"{''.join(maps)}{''.join(canvases)}{''.join(tokens)}</div>"
    )


def _map_img(frame: Frame, stage: int) -> str:
    return _img(map_colours(frame.map_ss, stage), f"Structure map of stage {stage}, {1 << stage} regions")


def _img(levels: ImageArray, alt: str, kind: str = "") -> str:
    """Small pictures are shown with their pixels, large ones smoothly."""
    kind = f"{kind} smooth" if levels.shape[0] > _FRAME_PIXELS else kind
    return f'<img class="{kind}" src="{_cached_url(levels.tobytes(), levels.shape)}" alt="{escape(alt, quote=True)}">'


@lru_cache(maxsize=512)
def _cached_url(data: bytes, shape: tuple[int, ...]) -> str:
    """A frame is encoded once, though it is shown again with every stage that follows."""
    return data_url(np.frombuffer(data, np.uint8).reshape(shape))


def _inked(mask_HW1: ImageArray) -> ImageArray:
    """A mask as it was drawn: ink on white."""
    share = mask_HW1.astype(np.float64) / 255
    return np.rint(255 + share * (np.array(_INK) - 255)).astype(np.uint8)


def _reduced(image_HWC: ImageArray) -> ImageArray:
    step = max(1, image_HWC.shape[0] // _FRAME_PIXELS)
    return np.ascontiguousarray(image_HWC[step // 2 :: step, step // 2 :: step])


def _npy(values: NDArray[np.int64]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()
