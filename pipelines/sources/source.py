"""What every image source offers and how it is told, how a split is chosen, and loading into memory."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nvg.errors import UserError
from pipelines.sources.config import SourceConfig

_NUM_NAMED_BAD_IMAGES = 5
_NUM_NAMED_CLASSES = 3
_NO_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class BadImage(ValueError):  # noqa: N818 - it says what was found, and is no failure of the program
    """One input is not an image that can be read; the message is the reason, without the key."""


@dataclass(frozen=True)
class SkippedInput:
    """An input left out, and why; reasons of one kind begin alike, up to a colon."""

    key: str
    reason: str

    @property
    def heading(self) -> str:
        """What it is counted under."""
        return self.reason.partition(":")[0]


def key_bytes(key: str) -> bytes:
    """A key for hashing: UTF-8, and the very bytes of a name that is not."""
    return key.encode("utf-8", "surrogateescape")


def key_line(key: str) -> str:
    """A key as one printable line, such as those of `sources.txt`.

    It stands for itself unless it holds control characters or bytes that are not UTF-8, or begins with a quote: then it
    is a JSON string, from which the key can be read again.
    """
    return json.dumps(key) if key.startswith('"') or _NO_LINE.search(key) else key


class ImageSource(Protocol):
    """A fixed list of labelled images; picklable, so that it is indexed once and sent to the actors.

    Attributes:
        config: what it was opened with.
        class_names: name of each class, by label.
        labels: int64 (N,), the class of each image.
        keys: N unique names, relative to the source, without line breaks.
        fingerprint: sha256 over sorted keys and sizes (the digits: over their content), hexadecimal.
        skipped: inputs of this split known not to be images when the source was opened.
        passed_over: files and folders of the whole source that are no inputs: hidden, repeated, in no class.
        notes: what else the user should know of it, a sentence each.
        num_found: inputs found before the split, bad ones included: what `max_bad_fraction` is a share of.
    """

    config: SourceConfig
    class_names: list[str]
    labels: np.ndarray
    keys: list[str]
    fingerprint: str
    skipped: list[SkippedInput]
    num_found: int
    passed_over: Sequence[SkippedInput] = ()
    notes: Sequence[str] = ()

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
            UserError: none is left, or too many are bad.
        """
        config, chosen = self.config, _of_split(keys, labels, self.config)
        kept = [index for index in chosen if keys[index] not in bad]
        self.num_found = len(keys)
        self.keys = [keys[index] for index in kept]
        self.labels = np.asarray([labels[index] for index in kept], dtype=np.int64)
        self.skipped = [SkippedInput(key, bad[key]) for key in (keys[index] for index in chosen) if key in bad]
        self.fingerprint = _listing_fingerprint([(keys[index], sizes[index]) for index in chosen], lines)
        check_bad_inputs(self.skipped, self)
        if not kept:
            raise UserError(
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
        members.sort(key=lambda index: hashlib.sha256(key_bytes(f"{config.seed}/{keys[index]}")).digest())
        first = round(len(members) * config.judge_fraction)
        second = first + round(len(members) * config.test_fraction)
        parts = {"judge": members[:first], "test": members[first:second], "train": members[second:]}
        chosen += parts[config.split]
    return sorted(chosen)


def _listing_fingerprint(entries: list[tuple[str, int]], lines: Sequence[str]) -> str:
    texts = [*lines, *(f"{key}\0{num_bytes}" for key, num_bytes in sorted(entries))]
    return hashlib.sha256(key_bytes("".join(f"{text}\n" for text in texts))).hexdigest()


def describe(source: ImageSource) -> str:
    """What was opened, in one line: images, classes and those without an image, what was left out and why.

    A note of the source is a line of its own.
    """
    config, num_classes = source.config, len(source.class_names)
    counts = np.bincount(source.labels, minlength=num_classes)
    parts = [f"{len(source):,} images of {num_classes:,} class{'es' if num_classes != 1 else ''}"]
    if empty := [name for name, count in zip(source.class_names, counts, strict=True) if count == 0]:
        named = ", ".join(map(repr, empty[:_NUM_NAMED_CLASSES])) + (", …" if len(empty) > _NUM_NAMED_CLASSES else "")
        parts.append(f"{len(empty):,} of the classes without an image here ({named})")
    for what, items in (("no readable images", source.skipped), ("passed over", source.passed_over)):
        if items:
            examples = {item.heading: item for item in reversed(items)}
            counted = [
                f"{count:,} {heading} ({key_line(examples[heading].key)}{examples[heading].reason[len(heading) :]})"
                for heading, count in count_headings(items).items()
            ]
            parts.append(f"{what}: {', '.join(counted)}")
    split = "" if config.split == "all" else f", split {config.split}"
    opened = f"{key_line(config.path or config.kind)}{split}: {'; '.join(parts)}"
    return "\n".join([opened, *(f"note: {note}" for note in source.notes)])


def count_headings(items: Sequence[SkippedInput]) -> dict[str, int]:
    """How many inputs were left out under each heading."""
    return dict(Counter(item.heading for item in items))


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
        UserError: more inputs are bad than `max_bad_fraction` allows, none is left, or a file cannot be reached.
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
        except OSError as error:
            raise UserError(
                f"{key_line(source.keys[index])} in {source.config.path}: cannot be read: {error.strerror or error}; "
                "bring it back, or give the right to read it"
            ) from error
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
    named = [f"  {key_line(item.key)}: {item.reason}" for item in skipped[:_NUM_NAMED_BAD_IMAGES]]
    more = len(skipped) - len(named)
    raise UserError(
        f"found {len(skipped)} bad of {source.num_found} inputs in "
        f"{source.config.path or source.config.kind}, expected at most {limit:.2%} (max_bad_fraction):\n"
        + "\n".join(named)
        + (f"\n  and {more} more" if more else "")
        + "\nremove or repair them, or raise max_bad_fraction"
    )
