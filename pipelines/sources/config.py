"""What to read: the typed description of an image source."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from nvg.bounds import at_least, between, check_fields, refuse

_FLIPPED_POLICIES = ("crop", "random_crop", "fresh_crop")
_TEN_CROP_VIEWS = 10
_MAX_VIEWS = 256  # stored in one byte
_MAX_MEGAPIXELS, _MOST_MEGAPIXELS = 64.0, 178  # Pillow opens no larger image
_NUMBERED = ("webdataset", "idx", "parquet")  # kinds whose labels are numbers, whatever their files are called
_WITHOUT_FILES = ("digits", "idx")  # kinds whose images are pixels, not image files
_TEST_FRACTION = 0.15


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where images come from and how one becomes the views a model sees.

    Attributes:
        kind: "digits" (bundled with scikit-learn), "folder" (class folders), "imagenet" (`train/` and `val/`),
            "webdataset" (tar shards), "idx" (the four files of MNIST and its relatives) or "parquet" (image data sets
            as the Hugging Face hub stores them).
        path: folder of class folders, or of `train/` and `val/`, or of the four files; folder, file or brace pattern of
            tar shards; folder of parquet files, or one of them; unused for digits. A local path, or a URL that fsspec
            reaches (s3://…, gs://…).
        class_map: JSON or text file that names and orders class folders; null looks for `classes.json` or
            `classes.txt` beside them (folder, imagenet). Where labels are numbers (webdataset, idx, parquet): text file
            with a name for each, one a line; null looks for `classes.txt`.
        class_names: the same names, here (webdataset, idx, parquet).
        image_column, label_column: of parquet files; null finds them where there is one candidate.
        label_file: names and classes of validation images that lie in no class folders; null looks for
            `LOC_val_solution.csv` or `val.txt` beside `val/` (imagenet).
        split: "train" (tokenizer and generators), "judge" (independent classifier), "test" (held out from
            all) or "all". The three parts are disjoint. Digits and ImageNet have a division of their own; that of
            ImageNet: "train" is `train/`, "test" is `val/`. Of idx, "test" is t10k; of parquet, the files called so.
        split_by: "hash" (each image by its name and `split_seed` alone) or, for class folders, "folders": `path` holds
            `train/`, `judge/` and `test/`, each with class folders.
        split_seed: of the division by hash.
        image_size: side of the square images handed out, pixels.
        image_channels: 1 (grey) or 3 (RGB).
        fit: "resize" brings the shorter side to `image_size`; "pad" keeps the pixels of images up to that size and puts
            them on the middle of a black square.
        num_views: views per image; view 0 is the centred one except under "random_crop".
        view_policy: "center", "shift" (small translations), "crop" (centre and random crops of an image whose
            shorter side is 1.125 times `image_size`), "random_crop" (random ones only), "ten_crop" (centre and
            corners of such an image, then the five mirrored) or "fresh_crop" (another random crop in each epoch of a
            training; nothing can be stored of it, so precompute refuses it).
        pixels: "shown" turns images as their orientation tag says and converts colour profiles to sRGB, as a viewer
            does; "stored" takes the numbers as they lie in the file, as the usual ImageNet pipelines do.
        flip: whether each random crop is mirrored with probability 1/2.
        seed: decides views.
        judge_fraction: expected share of the "judge" part in a division by hash.
        test_fraction: expected share of the "test" part in a division by hash.
        max_bad_fraction: tolerated share of files that are no readable image, of all files found.
        max_megapixels: larger images are no readable ones: decoding takes 10 to 20 bytes a pixel.
    """

    kind: Literal["digits", "folder", "imagenet", "webdataset", "idx", "parquet"] = "digits"
    path: str | None = None
    class_map: str | None = None
    class_names: list[str] = field(default_factory=list, hash=False)
    image_column: str | None = None
    label_column: str | None = None
    label_file: str | None = None
    split: Literal["train", "judge", "test", "all"] = "train"
    split_by: Literal["hash", "folders"] = "hash"
    split_seed: int = 0
    image_size: int = at_least(1, 16)
    image_channels: Literal[1, 3] = 1
    fit: Literal["resize", "pad"] = "resize"
    num_views: int = between(1, _MAX_VIEWS, 1)
    view_policy: Literal["center", "shift", "crop", "random_crop", "ten_crop", "fresh_crop"] = "center"
    flip: bool = False
    pixels: Literal["shown", "stored"] = "shown"
    seed: int = 0
    judge_fraction: float = between(0.0, 1.0, 0.2)
    test_fraction: float = between(0.0, 1.0, _TEST_FRACTION)
    max_bad_fraction: float = between(0.0, 1.0, 0.01)
    max_megapixels: float = between(0.001, _MOST_MEGAPIXELS, _MAX_MEGAPIXELS)

    def __post_init__(self) -> None:
        check_fields(self, "source")
        kind, policy = f"with source.kind={self.kind}", f"with source.view_policy={self.view_policy}"
        if self.kind != "digits" and not self.path:
            raise refuse("source.path", self.path, f"the folder or files to read {kind}")
        self._check_labels(kind)
        if self.label_file is not None and self.kind != "imagenet":
            raise refuse("source.label_file", self.label_file, f"null {kind}: it is for imagenet")
        if self.kind == "imagenet" and self.split not in ("train", "test"):
            raise refuse("source.split", self.split, f"train or test (its val/) {kind}")
        if self.split_by == "folders" and self.kind != "folder":
            raise refuse("source.split_by", self.split_by, f"hash {kind}: train/, judge/ and test/ hold class folders")
        num_shifts = (2 * shift_reach(self.image_size) + 1) ** 2  # no shift is one of them
        most = {"center": 1, "fresh_crop": 1, "shift": num_shifts, "ten_crop": _TEN_CROP_VIEWS}
        if self.num_views > most.get(self.view_policy, _MAX_VIEWS):
            expected = f"{most[self.view_policy]} at most {policy} at source.image_size={self.image_size}"
            raise refuse("source.num_views", self.num_views, expected, "change it, or take source.view_policy=crop")
        if self.flip and self.view_policy not in _FLIPPED_POLICIES:
            raise refuse("source.flip", True, f"false {policy}: mirrored are {', '.join(_FLIPPED_POLICIES)}")
        if self.kind == "idx" and self.test_fraction != _TEST_FRACTION:
            expected = f"{_TEST_FRACTION}, which nothing reads {kind}: its t10k files are the test part"
            raise refuse("source.test_fraction", self.test_fraction, expected, "leave it out")
        if self.judge_fraction + self.test_fraction >= 1.0:
            expected = f"below 1 with source.test_fraction={self.test_fraction}, so that something is left to train on"
            raise refuse("source.judge_fraction", self.judge_fraction, expected)

    def _check_labels(self, kind: str) -> None:
        """Refuse settings of classes and columns that this kind of source has not."""
        if self.class_map is not None and self.kind == "digits":
            raise refuse("source.class_map", self.class_map, f"null {kind}")
        if self.class_map is not None and self.kind in _NUMBERED and self.class_map.lower().endswith(".json"):
            raise refuse("source.class_map", self.class_map, f"a text file with a name in each line {kind}")
        if self.class_names and (self.kind not in _NUMBERED or self.class_map is not None):
            beside = kind if self.class_map is None else f"beside source.class_map={self.class_map}"
            raise refuse("source.class_names", self.class_names, f"no names {beside}")
        for name in ("image_column", "label_column"):
            if getattr(self, name) is not None and self.kind != "parquet":
                raise refuse(f"source.{name}", getattr(self, name), f"null {kind}: it is for parquet")

    @property
    def decoding(self) -> dict[str, Any]:
        """What decides pixels, for fingerprints; what was always so (resized, `stored`, 64 megapixels) is left out."""
        fit = {} if self.fit == "resize" else {"fit": self.fit}
        if self.kind in _WITHOUT_FILES:
            return fit
        limit = {} if self.max_megapixels == _MAX_MEGAPIXELS else {"max_megapixels": self.max_megapixels}
        return {**fit, **({} if self.pixels == "stored" else {"pixels": self.pixels}), **limit}

    def keep_apart(self, key: str, output: str) -> None:
        """Refuse a place for results where the next run would take them for images, classes or shards of this source.

        Args:
            key: the setting that names it.
            output: the folder or file; may be empty.

        Raises:
            UserError: it lies where images are listed.
        """
        source = (self.path or "").removeprefix("file://")
        if not output or not source or self.kind == "digits" or "://" in source:
            return
        path, inner = (os.path.realpath(os.path.expanduser(name)) for name in (source, output))
        if self.kind in ("webdataset", "idx"):
            outer = path if os.path.isdir(path) else os.path.dirname(path)
            listed = [outer] if inner == outer else []
        else:
            parts = ("train", "val") if self.kind == "imagenet" else ("",)
            outers = [os.path.join(path, part).rstrip("/") for part in parts]
            listed = [outer for outer in outers if f"{inner}/".startswith(f"{outer}/")]
        if listed:
            raise refuse(key, output, f"a place outside {listed[0]}: the next run would take it for images")


def shift_reach(image_size: int) -> int:
    """The largest translation of the "shift" policy in pixels: a sixteenth of the side, at least 1."""
    return max(1, round(image_size / 16))
