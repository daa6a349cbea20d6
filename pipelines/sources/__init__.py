"""Image sources: bundled digits, class folders, webdataset tar shards."""

from pipelines.sources.config import SourceConfig
from pipelines.sources.opening import open_source
from pipelines.sources.source import (
    BadImage,
    ImageSource,
    LoadedImages,
    SkippedInput,
    check_bad_inputs,
    load_images,
)

__all__ = [
    "BadImage",
    "ImageSource",
    "LoadedImages",
    "SkippedInput",
    "SourceConfig",
    "check_bad_inputs",
    "load_images",
    "open_source",
]
