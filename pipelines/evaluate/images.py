"""The images of a source as evaluations take them: in memory with their labels, or read by index."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.evaluation import EvaluationData, check_counts
from eval.features.extractors import ExtractorConfig, ExtractorSpec, given_extractor, trained_extractor
from eval.features.pretrained import EFFICIENTNET
from eval.image_sets import ImageSet
from eval.scores.judge import why_no_judge
from nvg.errors import UserError
from nvg.pixels import ImageArray
from pipelines.sources import (
    BadImage,
    EmptySplit,
    ImageSource,
    SkippedInput,
    SourceConfig,
    check_bad_inputs,
    load_images,
    open_source,
)
from pipelines.sources.keys import hash_names, key_line
from pipelines.sources.source import split_rule
from pipelines.sources.views import say_changes

logger = logging.getLogger(__name__)

TOKENIZER_TRAINED_ON = "the tokenizer was trained on"
_NUM_NAMED = 3

_NUM_LISTED = 20


@dataclass(frozen=True)
class Parts:
    """The parts of a source, opened: which images there are is known, none is decoded.

    Attributes:
        train: what is learned from, and the reference of the scores.
        judge: images for the judge alone; None where the split is empty.
        test: held out.
    """

    train: ImageSource
    judge: ImageSource | None
    test: ImageSource

    def by_name(self) -> dict[str, ImageSource]:
        """Those that there are, under the names of their splits."""
        return {name: part for name, part in vars(self).items() if part is not None}

    @property
    def no_judge(self) -> str:
        """Why there will be no judge, as a clause; empty where there will be one."""
        return why_no_judge(self.train.class_names, np.zeros(0, np.int64) if self.judge is None else self.judge.labels)


def open_parts(source: SourceConfig) -> Parts:
    """Open the three parts of a source, whatever its split, and make sure that they can be scored.

    Raises:
        UserError: a part that is needed is missing, empty or too small, or has too many bad images.
    """
    train, test = (open_source(replace(source, split=name), tell=True) for name in ("train", "test"))
    try:
        judge = open_source(replace(source, split="judge"), tell=True)
    except EmptySplit:
        judge = None
    check_counts({"training": len(train), "held-out": len(test)})
    return Parts(train, judge, test)


def describe_parts(parts: Parts) -> list[str]:
    """Which part has which classes and how many images, and what that keeps from being scored: one line each."""
    names = parts.train.class_names
    opened = parts.by_name()
    counts = {name: np.bincount(part.labels, minlength=len(names)).tolist() for name, part in opened.items()}
    numbers = [" / ".join(map(str, by_part)) for by_part in zip(*counts.values(), strict=True)]
    if len(names) > _NUM_LISTED:
        listed = ", ".join(f"{min(count)} to {max(count)} a class in {name}" for name, count in counts.items())
    else:
        listed = ", ".join(f"{name}: {number}" for name, number in zip(names, numbers, strict=True))
    total = " / ".join(f"{len(part):,}" for part in opened.values())
    lines = [f"images of {len(names)} class(es), {' / '.join(opened)}: {total} ({listed})"]
    if parts.no_judge:
        lines.append(
            f"no judge, and so no share of samples read as the class asked for: {parts.no_judge}; give these classes "
            "more images, or raise source.judge_fraction"
        )
    return lines


def load_data(source: SourceConfig, trained: Mapping[str, np.ndarray | None] | None = None) -> EvaluationData:
    """Read the three parts of a source into memory: view 0 of each image, and all views of the training images.

    Args:
        source: the images; its split is ignored.
        trained: see `why_seen`.

    Raises:
        UserError: a part is missing or empty, or has too many bad images.
    """
    parts, views = open_parts(source), range(source.num_views)
    return EvaluationData(
        class_names=list(parts.train.class_names),
        train=_image_set(parts.train),
        held_out=_image_set(parts.test),
        judge=None if parts.judge is None else _image_set(parts.judge),
        train_views=_image_set(parts.train, views).images if len(views) > 1 else None,
        fingerprints={name: part.fingerprint for name, part in parts.by_name().items()},
        seen_in_training=why_seen([*parts.test.keys, *(parts.judge.keys if parts.judge else [])], trained or {}),
    )


def why_seen(keys: Sequence[str], trained: Mapping[str, np.ndarray | None]) -> list[str]:
    """Why scores are those of images that networks may have seen, a clause each.

    Args:
        keys: names of these images.
        trained: what was done with some images ("the tokenizer was trained on") to their hashed names; None where
            nothing says which they were, which is told.
    """
    lines = []
    for what, names in trained.items():
        if names is None:
            logger.warning("nothing says which images %s: those scored may be among them", what)
            continue
        seen = [key for key, is_seen in zip(keys, np.isin(hash_names(keys), names), strict=True) if is_seen]
        if seen:
            shown = ", ".join(map(key_line, seen[:_NUM_NAMED])) + (", …" if len(seen) > _NUM_NAMED else "")
            lines.append(
                f"{len(seen)} of {len(keys)} images scored as held out have the names of images that {what} "
                f"({shown}): scores of images seen in training are too good"
            )
    return lines


def extractor_for(config: ExtractorConfig, source: SourceConfig) -> ExtractorSpec:
    """The extractor the configuration names; where there is none, a feature network trained on a source's images.

    Raises:
        UserError: the weights are missing, or too many images cannot be read.
    """
    if given := given_extractor(config):
        return given
    opened = open_source(source)
    return trained_extractor(config, _image_set(opened), len(opened.class_names))


def open_filled(source: SourceConfig) -> ImageSource:
    """An opened source of at least two images.

    Raises:
        UserError: it holds fewer.
    """
    opened = open_source(source, tell=True)
    if len(opened) < 2:
        raise UserError(
            f"source.split is {source.split!r}, which holds {len(opened)} image(s); expected at least two; change "
            "source.split or source.path"
        )
    return opened


def check_readable(source: ImageSource, readable_N: NDArray[np.bool_]) -> None:
    """Refuse a source of which too many images could not be read, those skipped at its opening counted.

    Raises:
        UserError: names some of them.
    """
    unreadable = [SkippedInput(source.keys[index], "no readable image") for index in np.flatnonzero(~readable_N)]
    check_bad_inputs([*source.skipped, *unreadable], source)


def describe_source(source: SourceConfig, parts: str) -> str:
    """What is opened, for a dry run: one line."""
    return f"open the {source.kind} source {source.path or ''}".rstrip() + f": {parts}"


def describe_features(config: ExtractorConfig, images: str) -> str:
    """Where features come from, for a dry run: one line; `images` are those a network would be trained on."""
    source = f"from {config.extractor_path}" if config.extractor_path else f"trained on {images}"
    if config.extractor_kind == EFFICIENTNET and not config.extractor_path:
        source = "from the installed package"
    return f"features: {config.extractor_kind} {source}"


@dataclass(frozen=True)
class SourceImages:
    """The images of an opened source, each in its centred view."""

    source: ImageSource

    def __len__(self) -> int:
        return len(self.source)

    def identity(self) -> dict[str, Any]:
        """Fingerprint, split and everything that decides a view; another one where a file was written since."""
        config, stamps = self.source.config, self.source.stamps()
        written = {"stamps": hashlib.sha256(stamps.tobytes()).hexdigest()} if stamps.any() else {}
        return {
            "kind": config.kind,
            "fingerprint": self.source.fingerprint,
            **written,
            "split": config.split,
            "seed": config.seed,
            **split_rule(config),
            "view": f"0 ({config.view_policy})",
            "image_size": config.image_size,
            "image_channels": config.image_channels,
            **config.decoding,
        }

    def read(self, indices_B: NDArray[np.int64]) -> tuple[ImageArray, NDArray[np.bool_]]:
        """Images, and which of them could be read; the others are black."""
        config = self.source.config
        images_BHWC = np.zeros((len(indices_B), config.image_size, config.image_size, config.image_channels), np.uint8)
        readable_B = np.ones(len(indices_B), np.bool_)
        for row, index in enumerate(indices_B.tolist()):
            try:
                images_BHWC[row] = self.source.read(index, 0)
            except BadImage:
                readable_B[row] = False
        say_changes(config)
        return images_BHWC, readable_B


def _image_set(source: ImageSource, views: Sequence[int] = (0,)) -> ImageSet:
    loaded = load_images(source, views)
    return ImageSet(loaded.images, loaded.labels)
