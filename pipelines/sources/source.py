"""What every image source offers and how it is told, to which part of a split an image belongs, and loading."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

from nvg.errors import BadImage, UserError
from pipelines.sources.config import SourceConfig
from pipelines.sources.keys import hash_name, key_bytes, key_line

PARTS = ("train", "judge", "test")
_NUM_NAMED_BAD_IMAGES = 5
_NUM_HASHES = 2.0**64
# What comes before the hash in the division of kinds whose files are parts.
_BY_FILES = {"idx": "t10k: test; else ", "parquet": "files called by a split; else "}


class EmptySplit(UserError):  # noqa: N818 - a part may be empty; whoever needs it stops
    """A split holds no image."""


@dataclass(frozen=True)
class SkippedInput:
    """An input left out, and why; reasons of one kind begin alike, up to a colon."""

    key: str
    reason: str

    @property
    def heading(self) -> str:
        """What it is counted under."""
        return self.reason.partition(":")[0]


class ImageSource(Protocol):
    """A fixed list of labelled images; picklable, so that it is indexed once and sent to the actors.

    Attributes:
        config: what it was opened with.
        class_names: name of each class, by label.
        labels: int64 (N,), the class of each image.
        keys: N unique names, relative to the source, without line breaks.
        fingerprint: sha256 over sorted keys (the digits: over their content), hexadecimal.
        sized_fingerprint: likewise with sizes: what trainings compare, and records of an earlier version.
        skipped: inputs of this split known not to be images when the source was opened.
        groups: int64 (N,), what each image is read together with (a row group of parquet), or None: reading in any
            order costs the same.
        passed_over: files and folders of the whole source that are no inputs: hidden, repeated, in no class.
        notes: what else the user should know of it, a sentence each.
        num_found: inputs found before the split, bad ones included: what `max_bad_fraction` is a share of.
        without: part of the split to the labels of classes that have images elsewhere and none in it.
    """

    config: SourceConfig
    class_names: list[str]
    labels: np.ndarray
    keys: list[str]
    fingerprint: str
    sized_fingerprint: str
    skipped: list[SkippedInput]
    num_found: int
    groups: np.ndarray | None = None
    passed_over: Sequence[SkippedInput] = ()
    notes: Sequence[str] = ()
    without: Mapping[str, list[int]] = MappingProxyType({})

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
        return self.views_of(index, self.read_bytes(index), views)

    def read_bytes(self, index: int) -> bytes:
        """The image file as it is; an OSError where it cannot be read at all."""
        ...

    def views_of(self, index: int, data: bytes, views: Sequence[int]) -> list[np.ndarray]:
        """What `read_views` makes of the bytes that `read_bytes` gave; a BadImage where they are no image."""
        ...

    def stamps(self) -> np.ndarray:
        """uint64 (N,): another number where a file was written since, found without reading one; 0 if none can be."""
        ...


class ListedSource(ImageSource):
    """A source of listed files."""

    def choose(
        self,
        keys: list[str],
        labels: Sequence[int],
        sizes: Sequence[int | str],
        bad: Mapping[str, str],
        lines: Sequence[str] = (),
        *,
        parts: Sequence[str] = (),
        with_labels: bool = False,
    ) -> list[int]:
        """Keep the inputs of the split that are not bad, and note what is left out and what was found.

        Args:
            keys, labels, sizes: of all inputs; sizes in bytes, or a digest of the file that an input lies in.
            bad: reasons of those known not to be images, by key.
            lines: what decides labels beside the keys, for the fingerprint.
            parts: of all inputs, where their files decide it; else `part_of` does.
            with_labels: the fingerprint has each label beside its key, which says nothing of it.

        Returns:
            Indices of the inputs kept.

        Raises:
            EmptySplit: none is left.
            UserError: too many are bad.
        """
        config, chosen = self.config, list(range(len(keys)))
        self.without = {}
        if split_rule(config):
            parts = parts or [part_of(key, config) for key in keys]
            good = [(label, part) for key, label, part in zip(keys, labels, parts, strict=True) if key not in bad]
            self.without = _classes_without(good, config)
            chosen = [index for index in chosen if parts[index] == config.split]
        kept = [index for index in chosen if keys[index] not in bad]
        self.num_found = len(keys)
        self.keys = [keys[index] for index in kept]
        self.labels = np.asarray([labels[index] for index in kept], dtype=np.int64)
        self.skipped = [SkippedInput(key, bad[key]) for key in (keys[index] for index in chosen) if key in bad]
        names = [f"{key}\0{label}" for key, label in zip(keys, labels, strict=True)] if with_labels else keys
        self.fingerprint = _digest([*lines, *sorted(names[index] for index in chosen)])
        sized = [f"{name}\0{size}" for name, size in sorted((names[index], sizes[index]) for index in chosen)]
        self.sized_fingerprint = _digest([*lines, *sized])
        check_bad_inputs(self.skipped, self)
        if not kept:
            by_hash = "add images, or change source.split, source.judge_fraction, source.test_fraction or split_seed"
            advice = by_hash if config.split_by == "hash" else f"put class folders with images into {config.split}/"
            raise EmptySplit(f"{config.path}: split {config.split!r} of {len(keys)} inputs holds no image; {advice}")
        return kept


def split_rule(config: SourceConfig) -> dict[str, str]:
    """How a source's images are divided, for manifests and fingerprints.

    Returns:
        {"split_rule": in words}; empty where all are taken, and for digits and ImageNet with a division of their own.
    """
    by_files = _BY_FILES.get(config.kind, "")
    undivided = config.split_by == "hash" and config.judge_fraction == config.test_fraction == 0 and not by_files
    takes_all = config.split == "all" or (config.split == "train" and undivided)
    if takes_all or config.kind in ("digits", "imagenet"):
        return {}
    shares = f"judge {config.judge_fraction:g}" + ("" if config.kind == "idx" else f", test {config.test_fraction:g}")
    by_hash = f"{by_files}blake2b of {config.split_seed}/key; {shares}"
    return {"split_rule": "folders" if config.split_by == "folders" else by_hash}


def part_of(key: str, config: SourceConfig, *, has_test: bool = False) -> str:
    """The part that an image belongs to, "train", "judge" or "test", whatever other images there are.

    By hash, the names lie evenly between 0 and 1: the lowest are the judge's, the highest the test's. So another share
    of one part moves images between it and "train" alone.

    Args:
        has_test: the test images lie in files of their own, which this key is in none of.
    """
    if config.split_by == "folders":
        return key.partition("/")[0]
    place = hash_name(f"{config.split_seed}/{key}")
    if place < config.judge_fraction * _NUM_HASHES:
        return "judge"
    return "test" if not has_test and place >= (1.0 - config.test_fraction) * _NUM_HASHES else "train"


def _classes_without(good: Iterable[tuple[int, str]], config: SourceConfig) -> dict[str, list[int]]:
    """Part to the labels it lacks; parts that are meant to be empty are left out.

    Args:
        good: label and part of each image.
        config: how they are divided.
    """
    found: dict[str, set[int]] = defaultdict(set)
    for label, part in good:
        found[part].add(label)
    shares = {"judge": config.judge_fraction, "test": config.test_fraction}
    meant = [part for part in PARTS if part in found or (config.split_by == "hash" and shares.get(part, 1.0) > 0)]
    every = set().union(*found.values())
    return {part: sorted(every - found[part]) for part in meant if every - found[part]}


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256(key_bytes("".join(f"{line}\n" for line in lines))).hexdigest()


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
    from pipelines.sources.views import say_changes  # loads Pillow, which listing a source does without

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
    say_changes(source.config)
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
