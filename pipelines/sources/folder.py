"""A folder of class folders: their sorted names are the classes, or a class map says names and order."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from nvg.errors import UserError
from pipelines.sources.class_map import class_names_of
from pipelines.sources.config import SourceConfig
from pipelines.sources.decoding import decode_image
from pipelines.sources.image_source import BadImage, SkippedInput, check_bad_inputs
from pipelines.sources.splitting import select_split
from pipelines.sources.views import view_of_file


class FolderSource:
    """Images in class folders, of any size, grey or colour, searched recursively.

    Hidden files and folders are ignored. A file that is no image by its name is skipped at once, one that
    turns out not to be an image when it is read raises `BadImage`.

    Raises:
        UserError: The folder is missing, has no class folders, a class has no image, its class map does not fit,
            or too many files are no images.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.root = Path(str(config.path)).expanduser().absolute()
        named = class_names_of(self.root, _class_folders(self.root), config.class_map)
        self.class_names = list(named.values())
        image_suffixes = frozenset(Image.registered_extensions())
        keys: list[str] = []
        labels: list[int] = []
        sizes: list[int] = []
        bad: dict[str, str] = {}
        for label, name in enumerate(named):
            found = _files_below(self.root, name)
            for key, num_bytes in found:
                keys.append(key)
                labels.append(label)
                sizes.append(num_bytes)
                if "\n" in key or "\r" in key:
                    bad[key] = "line break in the file name"
                elif Path(key).suffix.lower() not in image_suffixes:
                    bad[key] = "not an image by its name"
            if all(key in bad for key, _ in found):
                raise UserError(
                    f"class folder {self.root / name}: found {len(found)} files and no image among them, "
                    "expected at least one; add images or remove the folder"
                )
        chosen = select_split(keys, labels, config)
        usable = [index for index in chosen if keys[index] not in bad]
        self.keys = [keys[index] for index in usable]
        self.labels = np.asarray([labels[index] for index in usable], dtype=np.int64)
        self.skipped = [SkippedInput(ascii(keys[i])[1:-1], bad[keys[i]]) for i in chosen if keys[i] in bad]
        self.num_found = len(keys)
        order = [] if list(named) == sorted(named) else list(named)
        self.fingerprint = _fingerprint([(keys[index], sizes[index]) for index in chosen], order)
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
        key = self.keys[index]
        return view_of_file((self.root / key).read_bytes(), config=self.config, key=key, view=view)


def folder_channels(root: Path, *, max_images: int = 200) -> int:
    """1 when the images of a folder of class folders are grey, 3 when any of those looked at has colour.

    Args:
        root: folder of class folders.
        max_images: how many are looked at, spread over all classes.

    Raises:
        UserError: the folder is missing or has no class folders.
    """
    keys = [key for name in _class_folders(root) for key, _ in _files_below(root, name)]
    for key in keys[:: max(1, len(keys) // max_images)]:
        try:
            pixels = np.asarray(decode_image((root / key).read_bytes(), 3))
        except BadImage:
            continue  # counted and listed when the images are read
        if (pixels != pixels[..., :1]).any():
            return 3
    return 1


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise UserError(f"{root}: found {found}, expected a folder of class folders; change the source's path")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(
            f"{root}: found no class folders, expected one folder per class with its images inside; put the images of "
            "a set without classes into a single folder in it"
        )
    return names


def _files_below(root: Path, class_name: str) -> list[tuple[str, int]]:
    """Keys (relative, with forward slashes) and sizes in bytes of all files of a class, sorted by key."""
    found: list[tuple[str, int]] = []
    for folder, folder_names, file_names in os.walk(root / class_name, followlinks=True):
        folder_names[:] = [name for name in folder_names if not name.startswith(".")]
        for name in file_names:
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file():
                found.append((path.relative_to(root).as_posix(), path.stat().st_size))
    return sorted(found)


def _fingerprint(entries: list[tuple[str, int]], class_folders: list[str]) -> str:
    """Over keys and sizes, and over the order of the classes where it is not that of their names."""
    digest = hashlib.sha256()
    for name in class_folders:
        digest.update(f"class {name}\n".encode("utf-8", "surrogateescape"))
    for key, num_bytes in sorted(entries):
        digest.update(f"{key}\0{num_bytes}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
