"""Image sources: bundled digits, class folders, ImageNet as it comes, tar shards, IDX, parquet. Enter by `open_source`.

In reading order; importing the package opens the first three alone, neither Pillow nor torch:

* `config`: what to read, `SourceConfig`
* `source`: what every source offers (`ImageSource`), how it is told (`describe`), splits, bad inputs, `load_images`
* `keys`: names of images as bytes, lines and numbers
* `opening`: from a description to the source
* `digits`, `folders`, `tars`, `idx`, `parquet`: the kinds
* `shards`: what is in a tar, and where
* `class_names`: names and order of classes; how text that users wrote is read
* `views`: from an image file (`eval.decoding`) to the views a model sees; folders are listed by `eval.locations`
"""

from pipelines.sources.config import SourceConfig
from pipelines.sources.keys import key_line
from pipelines.sources.opening import open_source
from pipelines.sources.source import (
    BadImage,
    EmptySplit,
    ImageSource,
    LoadedImages,
    SkippedInput,
    check_bad_inputs,
    count_headings,
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
    "count_headings",
    "key_line",
    "load_images",
    "open_source",
]
