"""From a source's description to the source."""

from __future__ import annotations

import logging
from functools import cache

from pipelines.sources.config import SourceConfig
from pipelines.sources.source import ImageSource, describe

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


@cache
def _say(line: str) -> None:
    """Equal lines once in a process: several steps may open one source."""
    logger.warning("%s", line)


def _open(config: SourceConfig) -> ImageSource:
    if config.kind == "digits":
        from pipelines.sources.digits import DigitsSource

        return DigitsSource(config)
    if config.kind == "folder":
        from pipelines.sources.folders import FolderSource, list_class_folders

        return FolderSource(config, list_class_folders(config))
    if config.kind == "imagenet":
        from pipelines.sources.folders import FolderSource, list_imagenet

        return FolderSource(config, list_imagenet(config))
    from pipelines.sources.tars import WebdatasetSource

    return WebdatasetSource(config)
