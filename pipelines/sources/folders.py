"""Images in class folders: their sorted names are the classes, or a class map says names and order."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from nvg.errors import UserError
from pipelines.sources.class_names import class_names_of
from pipelines.sources.config import SourceConfig
from pipelines.sources.decoding import decode_image
from pipelines.sources.locations import is_file, is_folder, join, list_files, list_folders, location_of, read_bytes
from pipelines.sources.source import BadImage, SkippedInput, check_bad_inputs
from pipelines.sources.splitting import select_split
from pipelines.sources.views import views_of_file


@dataclass(frozen=True)
class Listing:
    """The files of a data set and what they are.

    Attributes:
        root: Location that the keys are relative to.
        class_names: Name of each class, by label.
        entries: Key, label and bytes of each file, images or not.
        folders: Folder of each class below the root; empty where images do not lie by class.
        fingerprint_lines: What decides labels beside the keys themselves.
    """

    root: str
    class_names: list[str]
    entries: list[tuple[str, int, int]]
    folders: list[str]
    fingerprint_lines: list[str]


class FolderSource:
    """Listed images, of any size, grey or colour.

    A file that is no image by its name is skipped at once, one that turns out not to be an image when it is read raises
    `BadImage`.

    Raises:
        UserError: A class has no image, no image is left for the split, or too many files are no images.
    """

    def __init__(self, config: SourceConfig, listing: Listing) -> None:
        self.config = config
        self.root = listing.root
        self.class_names = listing.class_names
        keys = [key for key, _, _ in listing.entries]
        labels = [label for _, label, _ in listing.entries]
        bad = _named_unlike_images(keys)
        _require_images(listing, bad)
        chosen = select_split(keys, labels, config)
        usable = [index for index in chosen if keys[index] not in bad]
        self.keys = [keys[index] for index in usable]
        self.labels = np.asarray([labels[index] for index in usable], dtype=np.int64)
        self.skipped = [SkippedInput(ascii(keys[i])[1:-1], bad[keys[i]]) for i in chosen if keys[i] in bad]
        self.num_found = len(keys)
        sizes = [(keys[index], listing.entries[index][2]) for index in chosen]
        self.fingerprint = _fingerprint(sizes, listing.fingerprint_lines)
        check_bad_inputs(self.skipped, self)
        if not self.keys:
            raise UserError(
                f"{self.root}: split {config.split!r} of {len(keys)} files holds no image; add images, or "
                "change split, judge_fraction or test_fraction"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int, view: int) -> np.ndarray:
        """Return one view as uint8 (S, S, channels); see `ImageSource.read`."""
        return self.read_views(index, [view])[0]

    def read_views(self, index: int, views: Sequence[int]) -> list[np.ndarray]:
        """Return views of an image; see `ImageSource.read_views`."""
        key = self.keys[index]
        return views_of_file(read_bytes(join(self.root, key)), config=self.config, key=key, views=views)


def list_class_folders(config: SourceConfig) -> Listing:
    """The files of a folder of class folders, searched recursively; hidden files and folders are ignored.

    Raises:
        UserError: The folder is missing or has no class folders, or its class map does not fit.
    """
    root = location_of(str(config.path))
    named = class_names_of(root, class_folders(root), config.class_map)
    entries = [(key, label, size) for label, name in enumerate(named) for key, size in list_files(root, name)]
    return Listing(root, list(named.values()), entries, list(named), class_order_lines(list(named)))


def class_folders(location: str) -> list[str]:
    """Names of the class folders, sorted.

    Raises:
        UserError: There is no such folder, or nothing in it.
    """
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


def class_order_lines(folders: list[str]) -> list[str]:
    """What the order of the classes adds to a fingerprint: nothing where it is that of their folders' names."""
    return [] if folders == sorted(folders) else [f"class {name}" for name in folders]


def folder_channels(root: Path, *, max_images: int = 200) -> int:
    """1 when the images of a folder of class folders are grey, 3 when any of those looked at has colour.

    Args:
        root: folder of class folders.
        max_images: how many are looked at, spread over all classes.

    Raises:
        UserError: the folder is missing or has no class folders.
    """
    location = location_of(str(root))
    keys = [key for name in class_folders(location) for key, _ in list_files(location, name)]
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


def _fingerprint(entries: list[tuple[str, int]], lines: list[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    for key, num_bytes in sorted(entries):
        digest.update(f"{key}\0{num_bytes}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
