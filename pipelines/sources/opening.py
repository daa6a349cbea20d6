"""From a source's description to the source."""

from __future__ import annotations

from pipelines.sources.config import SourceConfig
from pipelines.sources.source import ImageSource


def open_source(config: SourceConfig) -> ImageSource:
    """List and check the images that a config describes; no image is decoded yet.

    Raises:
        UserError: the data is missing, empty or damaged; the message names the path.
    """
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
