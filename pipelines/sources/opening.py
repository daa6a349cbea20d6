"""From a source's description to the source."""

from __future__ import annotations

import logging
from functools import cache

from pipelines.sources.config import SourceConfig
from pipelines.sources.source import ImageSource, ListedSource

_NUM_NAMED = 5
logger = logging.getLogger(__name__)


def open_source(config: SourceConfig) -> ImageSource:
    """List and check the images that a config describes; no image is decoded yet.

    Raises:
        UserError: the data is missing, empty or damaged; the message names the path.
    """
    source = _open(config)
    if isinstance(source, ListedSource) and source.without:
        _say(_classes_left_out(source))
    return source


def _classes_left_out(source: ListedSource) -> str:
    """Which part of the split has no image of which classes, and what to do."""
    lines = []
    for part, labels in source.without.items():
        names = ", ".join(repr(source.class_names[label]) for label in labels[:_NUM_NAMED])
        more = f" and {len(labels) - _NUM_NAMED} more" if len(labels) > _NUM_NAMED else ""
        lines.append(f"{part} has no image of {names}{more}")
    advice = "put images of them into its folders"
    if source.config.split_by == "hash":
        folders = ", or source.split_by=folders" if source.config.kind == "folder" else ""
        advice = f"give these classes more images, or another source.split_seed{folders}"
    return f"{source.config.path}: {'; '.join(lines)}; {advice}"


@cache
def _say(text: str) -> None:
    """Once: evaluations open a source for each of its parts."""
    logger.warning("%s", text)


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
    from pipelines.sources.tars import WebdatasetSource

    return WebdatasetSource(config)
