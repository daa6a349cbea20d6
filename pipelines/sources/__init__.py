"""Image sources: bundled digits, class folders, ImageNet as it comes, webdataset tar shards. Enter by `open_source`.

In reading order; importing the package opens the first three alone, neither Pillow nor torch:

* `config`: what to read, `SourceConfig`
* `source`: what every source offers (`ImageSource`), how a split is chosen, bad inputs, `load_images`
* `opening`: from a description to the source
* `digits`, `folders`, `tars`: the kinds
* `class_names`: names and order of class folders
* `views`: from an image file to the views a model sees
* `locations`: files here and in stores
"""

from pipelines.sources.config import SourceConfig
from pipelines.sources.opening import open_source
from pipelines.sources.source import (
    BadImage,
    EmptySplit,
    ImageSource,
    LoadedImages,
    SkippedInput,
    check_bad_inputs,
    load_images,
)

__all__ = [
    "BadImage",
    "EmptySplit",
    "ImageSource",
    "LoadedImages",
    "SkippedInput",
    "SourceConfig",
    "check_bad_inputs",
    "load_images",
    "open_source",
]
