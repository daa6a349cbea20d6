"""What to read: the typed description of an image source."""

from dataclasses import dataclass

KINDS = ("digits", "folder", "imagenet", "webdataset")
SPLITS = ("train", "judge", "test", "all")
IMAGENET_SPLITS = ("train", "test")
VIEW_POLICIES = ("center", "shift", "crop", "random_crop", "ten_crop", "fresh_crop")
ONE_VIEW_POLICIES = ("center", "fresh_crop")
FLIPPED_POLICIES = ("crop", "random_crop", "fresh_crop")
TEN_CROP_VIEWS = 10


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where images come from and how one becomes the views a model sees.

    Attributes:
        kind: "digits" (bundled with scikit-learn), "folder" (class folders), "imagenet" (`train/` and `val/`) or
            "webdataset" (tar shards).
        path: Folder of class folders, or of `train/` and `val/`; folder, file or brace pattern of tar shards; unused
            for digits. A local path, or a URL that fsspec reaches (s3://…, gs://…).
        class_map: JSON or text file that names and orders class folders; null looks for `classes.json` or
            `classes.txt` beside them (folder, imagenet).
        label_file: Names and classes of validation images that lie in no class folders; null looks for
            `LOC_val_solution.csv` or `val.txt` beside `val/` (imagenet).
        split: "train" (tokenizer and generators), "judge" (independent classifier), "test" (held out from
            all) or "all". The three parts are disjoint and do not depend on `seed` for the digits. ImageNet has its
            own: "train" is `train/`, "test" is `val/`.
        image_size: Side of the square images handed out, pixels.
        image_channels: 1 (grey) or 3 (RGB).
        num_views: Views per image; view 0 is the centred one except under "random_crop".
        view_policy: "center", "shift" (small translations), "crop" (centre and random crops of an image whose
            shorter side is 1.125 times `image_size`), "random_crop" (random ones only), "ten_crop" (centre and
            corners of such an image, then the five mirrored) or "fresh_crop" (another random crop in each epoch of a
            training; nothing can be stored of it, so precompute refuses it).
        flip: Whether each random crop is mirrored with probability 1/2.
        seed: Decides views, and the split of folders and tar shards.
        judge_fraction: Share of each class that forms the "judge" part (folder, webdataset).
        test_fraction: Share of each class that forms the "test" part (folder, webdataset).
        max_bad_fraction: Tolerated share of files that are no readable image, of all files found.

    Raises:
        ValueError: A value is impossible; the message names the key.
    """

    kind: str = "digits"
    path: str | None = None
    class_map: str | None = None
    label_file: str | None = None
    split: str = "train"
    image_size: int = 16
    image_channels: int = 1
    num_views: int = 1
    view_policy: str = "center"
    flip: bool = False
    seed: int = 0
    judge_fraction: float = 0.2
    test_fraction: float = 0.15
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        _one_of("split", self.split, SPLITS)
        _one_of("view_policy", self.view_policy, VIEW_POLICIES)
        _one_of("image_channels", self.image_channels, (1, 3))
        if self.kind != "digits" and not self.path:
            raise ValueError(f"path: found none; a {self.kind} source needs the folder or files to read")
        if self.image_size < 1:
            raise ValueError(f"image_size: found {self.image_size}, expected at least 1 pixel")
        if not 1 <= self.num_views <= 256:
            raise ValueError(f"num_views: found {self.num_views}, expected 1 to 256 (stored in one byte)")
        if self.class_map is not None and self.kind not in ("folder", "imagenet"):
            raise ValueError(f"class_map: found {self.class_map!r} with kind {self.kind!r}; it is for class folders")
        if self.label_file is not None and self.kind != "imagenet":
            raise ValueError(f"label_file: found {self.label_file!r} with kind {self.kind!r}; it is for 'imagenet'")
        if self.kind == "imagenet" and self.split not in IMAGENET_SPLITS:
            raise ValueError(f"split: found {self.split!r} with kind 'imagenet', expected 'train' or 'test' (its val/)")
        self._check_views()
        for name in ("judge_fraction", "test_fraction", "max_bad_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected a share between 0 and 1")
        if self.judge_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                f"judge_fraction + test_fraction: found {self.judge_fraction} + {self.test_fraction}, "
                "expected less than 1 so that something is left to train on"
            )

    def _check_views(self) -> None:
        if self.view_policy in ONE_VIEW_POLICIES and self.num_views != 1:
            raise ValueError(
                f"num_views: found {self.num_views} with view_policy {self.view_policy!r}, which has one view only; "
                "set num_views=1, or view_policy to 'shift', 'crop' or 'random_crop'"
            )
        if self.view_policy == "shift" and self.num_views > max_shift_views(self.image_size):
            raise ValueError(
                f"num_views: found {self.num_views}, but 'shift' has only {max_shift_views(self.image_size)} "
                f"different views at image_size {self.image_size}"
            )
        if self.view_policy == "ten_crop" and self.num_views > TEN_CROP_VIEWS:
            raise ValueError(f"num_views: found {self.num_views}, but 'ten_crop' has {TEN_CROP_VIEWS}")
        if self.flip and self.view_policy not in FLIPPED_POLICIES:
            raise ValueError(
                f"flip: found true with view_policy {self.view_policy!r}; only random crops are mirrored "
                f"({', '.join(FLIPPED_POLICIES)})"
            )


def shift_reach(image_size: int) -> int:
    """The largest translation of the "shift" policy in pixels: a sixteenth of the side, at least 1."""
    return max(1, round(image_size / 16))


def max_shift_views(image_size: int) -> int:
    """How many different views the "shift" policy has, the centred one included."""
    return (2 * shift_reach(image_size) + 1) ** 2


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: found {value!r}, expected one of {', '.join(map(repr, allowed))}")
