"""What every image source offers, and the conversion of its bytes to a model's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nvg.errors import UserError
from pipelines.sources.config import SourceConfig

NUM_NAMED_BAD_IMAGES = 5


class BadImage(ValueError):  # noqa: N818 - it says what was found, and is no failure of the program
    """One input is not an image that can be read; the message is the reason, without the key."""


@dataclass(frozen=True)
class SkippedInput:
    """An input left out, and why."""

    key: str
    reason: str


class ImageSource(Protocol):
    """A fixed list of labelled images; picklable, so that it is indexed once and sent to the actors.

    Attributes:
        config: What it was opened with.
        class_names: Name of each class, by label.
        labels: int64 (N,), the class of each image.
        keys: N unique names, relative to the source, without line breaks.
        fingerprint: sha256 over sorted keys and sizes (the digits: over their content), hexadecimal.
        skipped: Inputs of this split known not to be images when the source was opened.
        num_found: Inputs found before the split, bad ones included: what `max_bad_fraction` is a share of.
    """

    config: SourceConfig
    class_names: list[str]
    labels: np.ndarray
    keys: list[str]
    fingerprint: str
    skipped: list[SkippedInput]
    num_found: int

    def __len__(self) -> int: ...

    def read(self, index: int, view: int) -> np.ndarray:
        """Return one view as uint8 (S, S, channels); errors are those of `read_views`."""
        ...

    def read_views(self, index: int, views: Sequence[int]) -> list[np.ndarray]:
        """Return views of an image that is decoded once, each uint8 (S, S, channels).

        Raises:
            BadImage: The input is no readable image.
            OSError: The input cannot be read at all (vanished, no permission, failing disk).
        """
        ...


@dataclass(frozen=True)
class LoadedImages:
    """A source held in memory.

    Attributes:
        images: uint8 (N, S, S, channels).
        labels: int64 (N,).
        indices: int64 (N,), the index of each row in the source.
        views: int64 (N,), the view of each row.
        skipped: All inputs left out.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    views: np.ndarray
    skipped: list[SkippedInput]


def load_images(source: ImageSource, views: Sequence[int] = (0,)) -> LoadedImages:
    """Read a whole source into memory, image by image and view by view.

    Args:
        source: An opened source.
        views: Views to read of each image.

    Returns:
        The images that could be read; rows of one image are neighbours.

    Raises:
        UserError: More inputs are bad than `max_bad_fraction` allows, or none is left.
    """
    rows: list[np.ndarray] = []
    origin: list[tuple[int, int]] = []
    skipped = list(source.skipped)
    for index in range(len(source)):
        try:
            images = source.read_views(index, views)
        except BadImage as error:
            skipped.append(SkippedInput(source.keys[index], str(error)))
            check_bad_inputs(skipped, source)
            continue
        rows += images
        origin += [(index, view) for view in views]
    check_bad_inputs(skipped, source)
    if not rows:
        raise UserError(f"source {source.config.kind} {source.config.path or ''}: no image could be read")
    indices, view_numbers = np.asarray(origin, dtype=np.int64).T
    return LoadedImages(np.stack(rows), source.labels[indices], indices, view_numbers, skipped)


def check_bad_inputs(skipped: Sequence[SkippedInput], source: ImageSource) -> None:
    """Stop when more inputs are bad than is tolerated.

    Args:
        skipped: All inputs left out so far.
        source: The source they are from; its `max_bad_fraction` is a share of its `num_found`.

    Raises:
        UserError: The share is exceeded; names the first bad inputs with their reasons.
    """
    limit = source.config.max_bad_fraction
    if len(skipped) <= limit * source.num_found:
        return
    named = [f"  {item.key}: {item.reason}" for item in skipped[:NUM_NAMED_BAD_IMAGES]]
    more = len(skipped) - len(named)
    raise UserError(
        f"found {len(skipped)} bad of {source.num_found} inputs in "
        f"{source.config.path or source.config.kind}, expected at most {limit:.2%} (max_bad_fraction):\n"
        + "\n".join(named)
        + (f"\n  and {more} more" if more else "")
        + "\nremove or repair them, or raise max_bad_fraction"
    )
