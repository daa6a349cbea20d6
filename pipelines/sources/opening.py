"""From a source's description to the source."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import numpy as np

from pipelines.sources.config import SourceConfig
from pipelines.sources.keys import key_line
from pipelines.sources.source import ImageSource, count_headings

_NUM_NAMED_CLASSES = 3
logger = logging.getLogger(__name__)


def open_source(config: SourceConfig, *, tell: bool = False) -> ImageSource:
    """List and check the images that a config describes; no image is decoded yet.

    Args:
        tell: say in a line what was found and what was left out, once; for the one process that a user watches.

    Raises:
        UserError: the data is missing, empty or damaged; the message names the path.
    """
    source = _open(config)
    if tell:
        _say(describe(source))
    return source


def describe(source: ImageSource) -> str:
    """What was opened, in one line: images, classes and those without an image, what was left out and why.

    A note of the source is a line of its own.
    """
    config, num_classes = source.config, len(source.class_names)
    counts = np.bincount(source.labels, minlength=num_classes)
    parts = [f"{len(source):,} images of {num_classes:,} class{'es' if num_classes != 1 else ''}"]
    if empty := [name for name, count in zip(source.class_names, counts, strict=True) if count == 0]:
        parts.append(f"{len(empty):,} of the classes without an image here ({_some(empty)})")
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
    return "\n".join([opened, *(f"note: {note}" for note in [*source.notes, *_note_on_parts(source)])])


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_NUM_NAMED_CLASSES])) + (", …" if len(names) > _NUM_NAMED_CLASSES else "")


def _note_on_parts(source: ImageSource) -> list[str]:
    """Which parts of the split have no image of which classes, and what to do."""
    if not source.without:
        return []
    lacking = [
        f"{part} has no image of {len(labels):,} of the classes ({_some([source.class_names[i] for i in labels])})"
        for part, labels in source.without.items()
    ]
    advice = "put images of them into its folders"
    if source.config.split_by == "hash":
        folders = ", or source.split_by=folders" if source.config.kind == "folder" else ""
        advice = f"give these classes more images, or another source.split_seed{folders}"
    return [f"{'; '.join(lacking)}; {advice}"]


@cache
def _say(line: str) -> None:
    """Equal lines once in a process: several steps may open one source."""
    logger.warning("%s", line)


def _open(config: SourceConfig) -> ImageSource:
    if config.kind == "digits":
        from pipelines.sources.digits import DigitsSource

        return DigitsSource(config)
    if config.kind == "folder":
        from pipelines.sources.folders import FolderSource, list_class_folders, list_split_folders

        listing = list_split_folders(config) if config.split_by == "folders" else list_class_folders(config)
        return FolderSource(config, listing)
    if config.kind == "imagenet":
        from pipelines.sources.folders import FolderSource, list_imagenet

        return FolderSource(config, list_imagenet(config))
    if config.kind == "idx":
        from pipelines.sources.idx import IdxSource

        return IdxSource(config)
    if config.kind == "parquet":
        from pipelines.sources.parquet import ParquetSource

        return ParquetSource(config)
    from pipelines.sources.tars import WebdatasetSource

    return WebdatasetSource(config)
