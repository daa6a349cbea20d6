"""What every image source offers, how a split is chosen, and the conversion of its bytes to a model's input."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nvg.errors import UserError
from pipelines.sources.config import SourceConfig

_NUM_NAMED_BAD_IMAGES = 5


class BadImage(ValueError):  # noqa: N818 - it says what was found, and is no failure of the program
    """One input is not an image that can be read; the message is the reason, without the key."""


class EmptySplit(UserError):  # noqa: N818 - a part may be empty; whoever needs it stops
    """A split holds no image."""


@dataclass(frozen=True)
class SkippedInput:
    """An input left out, and why."""

    key: str
    reason: str


class ImageSource(Protocol):
    """A fixed list of labelled images; picklable, so that it is indexed once and sent to the actors.

    Attributes:
        config: what it was opened with.
        class_names: name of each class, by label.
        labels: int64 (N,), the class of each image.
        keys: N unique names, relative to the source, without line breaks.
        fingerprint: sha256 over sorted keys and sizes (the digits: over their content), hexadecimal.
        skipped: inputs of this split known not to be images when the source was opened.
        num_found: inputs found before the split, bad ones included: what `max_bad_fraction` is a share of.
    """

    config: SourceConfig
    class_names: list[str]
    labels: np.ndarray
    keys: list[str]
    fingerprint: str
    skipped: list[SkippedInput]
    num_found: int

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int, view: int) -> np.ndarray:
        """One view as uint8 (S, S, channels); errors are those of `read_views`."""
        return self.read_views(index, [view])[0]

    def read_views(self, index: int, views: Sequence[int]) -> list[np.ndarray]:
        """Views of an image that is decoded once, each uint8 (S, S, channels).

        Raises:
            BadImage: the input is no readable image.
            OSError: the input cannot be read at all (vanished, no permission, failing disk).
        """
        ...


class ListedSource(ImageSource):
    """A source of listed files."""

    def choose(
        self, keys: list[str], labels: list[int], sizes: list[int], bad: Mapping[str, str], lines: Sequence[str] = ()
    ) -> list[int]:
        """Keep the inputs of the split that are not bad, and note what is left out and what was found.

        Args:
            keys, labels, sizes: of all inputs; sizes in bytes.
            bad: reasons of those known not to be images, by key.
            lines: what decides labels beside the keys, for the fingerprint.

        Returns:
            Indices of the inputs kept.

        Raises:
            EmptySplit: none is left.
            UserError: too many are bad.
        """
        config, chosen = self.config, _of_split(keys, labels, self.config)
        kept = [index for index in chosen if keys[index] not in bad]
        self.num_found = len(keys)
        self.keys = [keys[index] for index in kept]
        self.labels = np.asarray([labels[index] for index in kept], dtype=np.int64)
        # ascii: a name may hold a line break or bytes of no encoding
        self.skipped = [SkippedInput(ascii(key)[1:-1], bad[key]) for key in (keys[i] for i in chosen) if key in bad]
        self.fingerprint = _listing_fingerprint([(keys[index], sizes[index]) for index in chosen], lines)
        check_bad_inputs(self.skipped, self)
        if not kept:
            raise EmptySplit(
                f"{config.path}: split {config.split!r} of {len(keys)} inputs holds no image; add images, or change "
                "source.split, source.judge_fraction or source.test_fraction"
            )
        return kept


def _of_split(keys: Sequence[str], labels: Sequence[int], config: SourceConfig) -> list[int]:
    """Ascending indices of the inputs of `config.split`; "train", "judge" and "test" are disjoint and cover "all".

    Within each class, inputs are ordered by a hash of (seed, key); the first `judge_fraction` of them are the judge's,
    the next `test_fraction` the test's, the rest is for training. ImageNet is listed by its own division.
    """
    if config.split == "all" or config.kind == "imagenet":
        return list(range(len(keys)))
    label_N = np.asarray(labels, dtype=np.int64)
    chosen: list[int] = []
    for label in np.unique(label_N):
        members = [int(index) for index in np.flatnonzero(label_N == label)]
        members.sort(key=lambda index: hashlib.sha256(f"{config.seed}/{keys[index]}".encode()).digest())
        first = round(len(members) * config.judge_fraction)
        second = first + round(len(members) * config.test_fraction)
        parts = {"judge": members[:first], "test": members[first:second], "train": members[second:]}
        chosen += parts[config.split]
    return sorted(chosen)


def _listing_fingerprint(entries: list[tuple[str, int]], lines: Sequence[str]) -> str:
    texts = [*lines, *(f"{key}\0{num_bytes}" for key, num_bytes in sorted(entries))]
    return hashlib.sha256("".join(f"{text}\n" for text in texts).encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class LoadedImages:
    """A source held in memory.

    Attributes:
        images: uint8 (N, S, S, channels).
        labels: int64 (N,).
        indices: int64 (N,), the index of each row in the source.
        views: int64 (N,), the view of each row.
        skipped: all inputs left out.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    views: np.ndarray
    skipped: list[SkippedInput]


def load_images(source: ImageSource, views: Sequence[int] = (0,)) -> LoadedImages:
    """Read those views of every image into memory; rows of one image are neighbours.

    Raises:
        UserError: more inputs are bad than `max_bad_fraction` allows, or none is left.
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
        skipped: all inputs left out so far.
        source: its `max_bad_fraction` is a share of its `num_found`.

    Raises:
        UserError: the share is exceeded; names the first bad inputs with their reasons.
    """
    limit = source.config.max_bad_fraction
    if len(skipped) <= limit * source.num_found:
        return
    named = [f"  {item.key}: {item.reason}" for item in skipped[:_NUM_NAMED_BAD_IMAGES]]
    more = len(skipped) - len(named)
    raise UserError(
        f"found {len(skipped)} bad of {source.num_found} inputs in "
        f"{source.config.path or source.config.kind}, expected at most {limit:.2%} (max_bad_fraction):\n"
        + "\n".join(named)
        + (f"\n  and {more} more" if more else "")
        + "\nremove or repair them, or raise max_bad_fraction"
    )
