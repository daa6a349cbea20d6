"""Painting for the page: a generator that hands out every canvas and map as it appears.

The numbers are those of `nvg sample` for each seed: the same classes in one batch, the same noise, the same decoder.
Shapes: image uint8 (H, W, C); map int64 (side, side).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event, Thread

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nvg.class_names import number_samples
from nvg.granularity import stage_map
from nvg.model import Model
from nvg.pixels import ImageArray
from nvg.sampling import SamplingConfig
from nvg.sampling.following import Control, follow_image, follow_mask, follow_region
from nvg.sequences import Samples
from pipelines.app.settings import Asked, presets


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One stage of one picture: its structure map, and the canvas on it decoded."""

    map_ss: NDArray[np.int64]
    image_HWC: ImageArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One picture while it is painted.

    Attributes:
        label, number, name: class and number within it, as in file names of `nvg sample`; what the class is called.
        seed: that it is drawn with.
        frames: of the stages so far.
        structure_ss: finest map, once the picture is done.
    """

    label: int
    number: int
    name: str
    seed: int
    frames: tuple[Frame, ...] = ()
    structure_ss: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Painting:
    """Everything on the easel at a moment.

    Attributes:
        pictures: of all seeds and classes, seeds first.
        num_stages: K + 1.
        control: what is followed; None for nothing.
        newest: place of the picture that has changed last; None before the first stage.
    """

    pictures: tuple[Picture, ...]
    num_stages: int
    control: Control | None = None
    newest: int | None = None

    @property
    def done(self) -> bool:
        """Whether every picture is whole."""
        return all(picture.structure_ss is not None for picture in self.pictures)


def paint(model: Model, asked: Asked) -> Generator[Painting, None, None]:
    """Paint what was asked for; closing the generator ends the work after the stage that is under way.

    Yields:
        The empty easel, then one painting after every stage of every seed; the last one is done.

    Raises:
        UserError: what is given cannot be used.

    Paper: Alg. 2, §3.2
    """
    control, sampling = _control(model, asked), presets(model)[asked.preset]
    labels_B, numbers_B, indices_B = number_samples(asked.classes, 1, len(model.class_names))
    rows = list(zip(labels_B.tolist(), numbers_B.tolist(), strict=True))
    easel = Painting(
        pictures=tuple(
            Picture(label=label, number=number, name=model.class_names[label], seed=seed)
            for seed in asked.seeds
            for label, number in rows
        ),
        num_stages=model.num_stages,
        control=control,
    )
    yield easel
    for turn, seed in enumerate(asked.seeds):
        first = turn * len(rows)
        for images, maps, place, structure in _stages(model, asked.classes, indices_B, seed, sampling, control):
            pictures = list(easel.pictures)
            for row, (image, map_) in enumerate(zip(images, maps, strict=True), start=first + place):
                frames = (*pictures[row].frames, Frame(map_ss=map_, image_HWC=image))
                done = None if structure is None else structure[row - first]
                pictures[row] = replace(pictures[row], frames=frames, structure_ss=done)
            easel = replace(easel, pictures=tuple(pictures), newest=first + place)
            yield easel


def _control(model: Model, asked: Asked) -> Control | None:
    """What is followed, made of the very pixels that lie beside the settings file."""
    if asked.keep is not None:
        names = ("the picture", "the part that is painted anew")
        return follow_region(model.tokenizer, asked.picture, asked.keep, cut="center", names=names)
    if asked.mask is not None:
        return follow_mask(model.tokenizer, asked.mask, asked.stages)
    return None if asked.picture is None else follow_image(model.tokenizer, asked.picture, asked.stages)


def _stages(
    model: Model,
    classes: list[int],
    indices_B: NDArray[np.int64],
    seed: int,
    sampling: SamplingConfig,
    control: Control | None,
) -> Iterator[tuple[ImageArray, NDArray[np.int64], int, NDArray[np.int64] | None]]:
    """Images and maps of a stage of some rows, the first of these, and at the last stage their finest maps.

    A thread draws while this one decodes and its caller shows. The last stage is decoded there, of all rows at once.
    """
    news: SimpleQueue[tuple[slice, int, Tensor, Tensor] | Samples | BaseException] = SimpleQueue()
    unwanted = Event()
    layout = model.tokenizer.dequantizer.layout

    def watch(rows: slice, stage: int, canvas_BLC: Tensor, structure_BL: Tensor) -> None:
        if unwanted.is_set():
            raise _UnwantedError
        if stage < layout.last_stage:
            news.put((rows, stage, canvas_BLC, structure_BL))

    def draw() -> None:
        try:
            news.put(model.follow(control, classes, seed=seed, settings=sampling, watch=watch))
        except BaseException as error:  # handed to whoever waits for it
            news.put(error)

    thread = Thread(target=draw, name=f"paint seed {seed}", daemon=True)
    thread.start()
    try:
        while not isinstance(item := news.get(), Samples):
            if isinstance(item, BaseException):
                raise item
            rows, stage, canvas_BLC, structure_BL = item
            maps = stage_map(structure_BL, stage, layout.last_stage).view(-1, layout.side, layout.side).cpu().numpy()
            yield model.decode(canvas_BLC, indices_B[rows]), maps, rows.start, None
        finest = item.maps(layout.last_stage)
        yield item.images, finest, 0, finest
    finally:
        unwanted.set()
        thread.join()


class _UnwantedError(Exception):
    """Nobody looks any more."""
