"""What to read: the typed description of an image source."""

import os
from dataclasses import dataclass
from typing import Any, Literal

from nvg.bounds import at_least, between, check_fields, refuse

_FLIPPED_POLICIES = ("crop", "random_crop", "fresh_crop")
_TEN_CROP_VIEWS = 10
_MAX_VIEWS = 256  # stored in one byte
_MAX_MEGAPIXELS, _MOST_MEGAPIXELS = 64.0, 178  # Pillow opens no larger image


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where images come from and how one becomes the views a model sees.

    Attributes:
        kind: "digits" (bundled with scikit-learn), "folder" (class folders), "imagenet" (`train/` and `val/`) or
            "webdataset" (tar shards).
        path: folder of class folders, or of `train/` and `val/`; folder, file or brace pattern of tar shards; unused
            for digits. A local path, or a URL that fsspec reaches (s3://…, gs://…).
        class_map: JSON or text file that names and orders class folders; null looks for `classes.json` or
            `classes.txt` beside them (folder, imagenet).
        label_file: names and classes of validation images that lie in no class folders; null looks for
            `LOC_val_solution.csv` or `val.txt` beside `val/` (imagenet).
        split: "train" (tokenizer and generators), "judge" (independent classifier), "test" (held out from
            all) or "all". The three parts are disjoint. Digits and ImageNet have a division of their own; that of
            ImageNet: "train" is `train/`, "test" is `val/`.
        split_by: "hash" (each image by its name and `split_seed` alone) or, for class folders, "folders": `path` holds
            `train/`, `judge/` and `test/`, each with class folders.
        split_seed: of the division by hash.
        image_size: side of the square images handed out, pixels.
        image_channels: 1 (grey) or 3 (RGB).
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

    kind: Literal["digits", "folder", "imagenet", "webdataset"] = "digits"
    path: str | None = None
    class_map: str | None = None
    label_file: str | None = None
    split: Literal["train", "judge", "test", "all"] = "train"
    split_by: Literal["hash", "folders"] = "hash"
    split_seed: int = 0
    image_size: int = at_least(1, 16)
    image_channels: Literal[1, 3] = 1
    num_views: int = between(1, _MAX_VIEWS, 1)
    view_policy: Literal["center", "shift", "crop", "random_crop", "ten_crop", "fresh_crop"] = "center"
    flip: bool = False
    pixels: Literal["shown", "stored"] = "shown"
    seed: int = 0
    judge_fraction: float = between(0.0, 1.0, 0.2)
    test_fraction: float = between(0.0, 1.0, 0.15)
    max_bad_fraction: float = between(0.0, 1.0, 0.01)
    max_megapixels: float = between(0.001, _MOST_MEGAPIXELS, _MAX_MEGAPIXELS)

    def __post_init__(self) -> None:
        check_fields(self, "source")
        kind, policy = f"with source.kind={self.kind}", f"with source.view_policy={self.view_policy}"
        if self.kind != "digits" and not self.path:
            raise refuse("source.path", self.path, f"the folder or files to read {kind}")
        if self.class_map is not None and self.kind not in ("folder", "imagenet"):
            raise refuse("source.class_map", self.class_map, f"null {kind}: it is for class folders")
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
        if self.judge_fraction + self.test_fraction >= 1.0:
            expected = f"below 1 with source.test_fraction={self.test_fraction}, so that something is left to train on"
            raise refuse("source.judge_fraction", self.judge_fraction, expected)

    @property
    def decoding(self) -> dict[str, Any]:
        """What decides pixels of a file, for fingerprints; what was always so (`stored`, 64 megapixels) is left out."""
        if self.kind == "digits":
            return {}
        limit = {} if self.max_megapixels == _MAX_MEGAPIXELS else {"max_megapixels": self.max_megapixels}
        return {**({} if self.pixels == "stored" else {"pixels": self.pixels}), **limit}

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
        if self.kind == "webdataset":
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
