"""Images in class folders, whose sorted names are the classes unless a class map says names and order; and ImageNet.

ImageNet comes as `train/` with class folders and `val/`, flat with a file of labels or in class folders. Its own
division replaces a seeded one: split "train" is `train/`, split "test" is `val/`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from nvg.errors import UserError
from pipelines.sources.class_names import CLASS_MAP_FILES, class_names_of, find_one
from pipelines.sources.config import SourceConfig
from pipelines.sources.locations import (
    is_file,
    is_folder,
    join,
    list_files,
    list_folders,
    location_of,
    name_of,
    read_bytes,
    stamps_of,
)
from pipelines.sources.source import PARTS, BadImage, ListedSource, hash_names
from pipelines.sources.views import decode_image, views_of_file

_TRAIN, _VALIDATION = "train", "val"
LABEL_FILES = ("LOC_val_solution.csv", "val.txt")
_SYNSET_FILE = "LOC_synset_mapping.txt"
_NUM_NAMED = 3


@dataclass(frozen=True)
class Listing:
    """The files of a data set and what they are.

    Attributes:
        root: location that the keys are relative to.
        class_names: name of each class, by label.
        entries: key, label and bytes of each file, images or not.
        folders: folder of each class below the root; empty where images do not lie by class.
        fingerprint_lines: what decides labels beside the keys themselves.
    """

    root: str
    class_names: list[str]
    entries: list[tuple[str, int, int]]
    folders: list[str]
    fingerprint_lines: list[str]


class FolderSource(ListedSource):
    """Listed images, of any size, grey or colour.

    A file that is no image by its name is skipped at once, one that turns out not to be an image when it is read raises
    `BadImage`.

    Raises:
        UserError: a class has no image, no image is left for the split, or too many files are no images.
    """

    def __init__(self, config: SourceConfig, listing: Listing) -> None:
        self.config, self.root, self.class_names = config, listing.root, listing.class_names
        keys = [key for key, _, _ in listing.entries]
        bad = _named_unlike_images(keys)
        _require_images(listing, bad)
        labels, sizes = [label for _, label, _ in listing.entries], [size for _, _, size in listing.entries]
        self.choose(keys, labels, sizes, bad, listing.fingerprint_lines)

    def read_bytes(self, index: int) -> bytes:
        """See `ImageSource.read_bytes`."""
        return read_bytes(join(self.root, self.keys[index]))

    def views_of(self, index: int, data: bytes, views: Sequence[int]) -> list[np.ndarray]:
        """See `ImageSource.views_of`."""
        return views_of_file(data, config=self.config, key=self.keys[index], views=views)

    def stamps(self) -> np.ndarray:
        """See `ImageSource.stamps`."""
        return hash_names(stamps_of(self.root, self.keys))


def list_class_folders(config: SourceConfig) -> Listing:
    """The files of a folder of class folders, searched recursively; hidden files and folders are ignored.

    Raises:
        UserError: the folder is missing or has no class folders, or its class map does not fit.
    """
    root = location_of(str(config.path))
    named = class_names_of(root, _class_folders(root), config.class_map)
    entries = [(key, label, size) for label, name in enumerate(named) for key, size in list_files(root, name)]
    return Listing(root, list(named.values()), entries, list(named), _class_order_lines(list(named)))


def list_split_folders(config: SourceConfig) -> Listing:
    """The files of `train/`, `judge/` and `test/`, each a folder of class folders; keys start with the part.

    The classes are those of `train/`; another part may lack some of them.

    Raises:
        UserError: there are other folders, no `train/`, or classes that `train/` has not.
    """
    root = location_of(str(config.path))
    parts = _class_folders(root)
    if _TRAIN not in parts or not set(parts) <= set(PARTS):
        raise UserError(
            f"{root}: found the folders {', '.join(parts)}; expected train/ and, where wanted, judge/ and test/, with "
            "source.split_by=folders; rename or remove the others, or set source.split_by=hash"
        )
    folders = {part: _class_folders(join(root, part)) for part in parts}
    named = class_names_of(root, folders[_TRAIN], config.class_map)
    for part in parts:
        if odd := sorted(set(folders[part]) - set(named)):
            raise UserError(
                f"{join(root, part)}: found class folders that {_TRAIN}/ has not ({', '.join(odd[:_NUM_NAMED])}); "
                "expected some of its classes; rename them, or add them there"
            )
    entries = [
        (key, label, size)
        for part in parts
        for label, name in enumerate(named)
        if name in folders[part]
        for key, size in list_files(root, f"{part}/{name}")
    ]
    below = [f"{_TRAIN}/{name}" for name in named]
    return Listing(root, list(named.values()), entries, below, _class_order_lines(list(named)))


def _class_folders(location: str) -> list[str]:
    """Names of the class folders, sorted."""
    if not is_folder(location):
        found = "a file" if is_file(location) else "nothing"
        raise UserError(f"{location}: found {found}, expected a folder of class folders; change the source's path")
    names = list_folders(location)
    if not names:
        raise UserError(
            f"{location}: found no class folders, expected one folder per class with its images inside; put the images "
            "of a set without classes into a single folder in it"
        )
    return names


def _class_order_lines(folders: list[str]) -> list[str]:
    """What the order of the classes adds to a fingerprint: nothing where it is that of their folders' names."""
    return [] if folders == sorted(folders) else [f"class {name}" for name in folders]


def folder_channels(root: Path, *, max_images: int = 200) -> int:
    """1 when the images of a folder of class folders are grey, 3 when any of those looked at has colour.

    Args:
        root: their folder.
        max_images: how many are looked at, spread over all classes.

    Raises:
        UserError: the folder is missing or has no class folders.
    """
    location = location_of(str(root))
    keys = [key for name in _class_folders(location) for key, _ in list_files(location, name)]
    for key in keys[:: max(1, len(keys) // max_images)]:
        try:
            pixels = np.asarray(decode_image(read_bytes(join(location, key)), 3))
        except BadImage:
            continue  # counted and listed when the images are read
        if (pixels != pixels[..., :1]).any():
            return 3
    return 1


def _named_unlike_images(keys: list[str]) -> dict[str, str]:
    """Keys that cannot be images or cannot be listed, with the reason."""
    image_suffixes = frozenset(Image.registered_extensions())
    bad: dict[str, str] = {}
    for key in keys:
        if "\n" in key or "\r" in key:
            bad[key] = "line break in the file name"
        elif os.path.splitext(key)[1].lower() not in image_suffixes:
            bad[key] = "not an image by its name"
    return bad


def _require_images(listing: Listing, bad: dict[str, str]) -> None:
    """Every class folder needs an image, also where a split leaves it out."""
    found = Counter(label for _, label, _ in listing.entries)
    good = Counter(label for key, label, _ in listing.entries if key not in bad)
    for label, folder in enumerate(listing.folders):
        if good[label] == 0:
            raise UserError(
                f"class folder {join(listing.root, folder)}: found {found[label]} files and no image among them, "
                "expected at least one; add images or remove the folder"
            )


def list_imagenet(config: SourceConfig) -> Listing:
    """The training or the validation images; keys start with `train/` or `val/`.

    Raises:
        UserError: a folder is missing, labels are missing or ambiguous, or listed images are not there.
    """
    root = location_of(str(config.path))
    folders = _class_folders(join(root, _TRAIN))
    named = class_names_of(root, folders, config.class_map, (*CLASS_MAP_FILES, _SYNSET_FILE))
    label_of = {folder: label for label, folder in enumerate(named)}
    lines = _class_order_lines(list(named))
    part = _TRAIN if config.split == "train" else _VALIDATION
    if part == _TRAIN or _in_class_folders(root, set(named)):
        below = [f"{part}/{name}" for name in named]
        entries = [(key, label, size) for label, name in enumerate(below) for key, size in list_files(root, name)]
        return Listing(root, list(named.values()), entries, below, lines)
    path = find_one(root, config.label_file, LABEL_FILES, "label_file")
    if path is None:
        raise UserError(
            f"{join(root, _VALIDATION)}: found images without class folders and no label file beside them, expected "
            f"one of {', '.join(LABEL_FILES)} in {root}; set source.label_file"
        )
    labels = _read_label_file(path, label_of)
    entries = _labelled(list_files(root, _VALIDATION), labels, path)
    digest = hashlib.sha256(repr(sorted(labels.items())).encode()).hexdigest()
    return Listing(root, list(named.values()), entries, [], [*lines, f"labels {digest}"])


def _read_label_file(path: str, label_of: dict[str, int]) -> dict[str, int]:
    """Label of each flat image, by file name without ending.

    The file has a line for each image: its name and its class, divided by a space, a tab or a comma. A class is a class
    folder's name or its number from 0; what follows it is ignored, and so is a first line of headings (as in
    `LOC_val_solution.csv`).
    """
    try:
        text = read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the label file cannot be read: {error}; change source.label_file") from error
    delimiter = "," if path.lower().endswith(".csv") else None
    rows = list(csv.reader(text.splitlines())) if delimiter else [line.split() for line in text.splitlines()]
    labels: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if not row or (number == 1 and row[0] == "ImageId"):
            continue
        if len(row) < 2:
            raise UserError(
                f"{path}, line {number}: found {row[0]!r} alone, expected an image's name and its class. The numbers "
                "of ILSVRC's own ground truth are not in the order of the class folders: use a file that names images "
                f"and folders, as {LABEL_FILES[0]} does"
            )
        stem, label = _stem(row[0]), _label((row[1].split() or [""])[0], label_of)
        if label is None or stem in labels:
            what = f"image {stem} twice" if label is not None else f"class {row[1]!r}"
            raise UserError(
                f"{path}, line {number}: found {what}, expected each image once, with a class folder's name or a "
                f"number from 0 to {len(label_of) - 1}"
            )
        labels[stem] = label
    return labels


def _in_class_folders(root: str, names: set[str]) -> bool:
    """Whether `val/` holds class folders; they must then be those of `train/`."""
    folder = join(root, _VALIDATION)
    if not is_folder(folder):
        raise UserError(f"{folder}: found nothing, expected the validation images; change the source's path or split")
    found = set(list_folders(folder))
    if found and found != names:
        shown = ", ".join(sorted(found ^ names)[:_NUM_NAMED])
        raise UserError(f"{folder}: its class folders are not those of {_TRAIN}/ ({shown}, …); expected the same")
    return bool(found)


def _labelled(files: Sequence[tuple[str, int]], labels: dict[str, int], path: str) -> list[tuple[str, int, int]]:
    """Files with their labels, each image listed and each listed image there."""
    stems = [_stem(name_of(key)) for key, _ in files]
    repeated = [stem for stem, count in Counter(stems).items() if count > 1]
    for kind, names in (
        ("images of the same name", repeated),
        ("images without a label", sorted(set(stems) - set(labels))),
        ("labels without an image", sorted(set(labels) - set(stems))),
    ):
        if names:
            shown = ", ".join(names[:_NUM_NAMED]) + (", …" if len(names) > _NUM_NAMED else "")
            raise UserError(
                f"{path}: found {len(names)} {kind} ({shown}), expected one label for each image; copy the images "
                "again or change source.label_file"
            )
    return [(key, labels[stem], size) for (key, size), stem in zip(files, stems, strict=True)]


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _label(text: str, label_of: dict[str, int]) -> int | None:
    if text in label_of:
        return label_of[text]
    return int(text) if text.isdecimal() and int(text) < len(label_of) else None
