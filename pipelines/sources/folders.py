"""Images in class folders, whose sorted names are the classes unless a class map says names and order; and ImageNet.

ImageNet comes as `train/` with class folders and `val/`, flat with a file of labels or in class folders. Its own
division replaces a seeded one: split "train" is `train/`, split "test" is `val/`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from eval.decoding import image_suffixes
from eval.locations import (
    is_file,
    is_folder,
    is_same,
    join,
    junk_heading,
    list_folder,
    location_of,
    name_of,
    read_bytes,
    stamps_of,
    walk,
)
from nvg.errors import UserError
from pipelines.sources.class_names import (
    CLASS_MAP_FILES,
    class_names_of,
    composed,
    find_one,
    note_on_one_class,
    notes_on_folders,
    read_text,
    text_lines,
    whole_number,
)
from pipelines.sources.config import SourceConfig
from pipelines.sources.keys import hash_names, key_line
from pipelines.sources.source import PARTS, ListedSource, SkippedInput
from pipelines.sources.views import views_of_file

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
        folders: folder of each class below the root; empty where images do not lie by class.
        fingerprint_lines: what decides labels beside the keys themselves.
        entries: key, label and bytes of each file, images or not.
        broken: key → why, of those entries that are no files.
        passed_over, notes: see `ImageSource`.
    """

    root: str
    class_names: list[str]
    folders: list[str]
    fingerprint_lines: list[str]
    entries: list[tuple[str, int, int]] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    passed_over: list[SkippedInput] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_files(self, below: Mapping[str, int], apart: Sequence[str] = ()) -> None:
        """Walk folders below the root; each file has the label of its folder.

        Args:
            below: folder → label.
            apart: folders of the other splits, which may hold none of these files.

        Raises:
            UserError: a folder cannot be listed, or an image is in two of them.
        """
        others = [walk(self.root, folder) for folder in apart]
        names = {real: key for other in others for key, _, real in other.files if real is not None}
        doubled: list[tuple[str, str]] = []
        for folder, label in below.items():
            found = walk(self.root, folder)
            self.entries.extend((key, label, size) for key, size, _ in found.files)
            self.entries.extend((key, label, 0) for key in found.broken)
            self.broken.update(found.broken)
            self.passed_over.extend(SkippedInput(*item) for item in found.passed_over.items())
            for key, _, real in found.files:
                if real is not None and (first := names.setdefault(real, key)) != key and _named_like_image(key):
                    doubled.append((first, key))
        if doubled:
            shown = ", ".join(f"{key_line(key)} is {key_line(first)}" for first, key in doubled[:_NUM_NAMED])
            raise UserError(
                f"{self.root}: found {len(doubled)} image files in two class folders by links ({shown}), expected each "
                "in one; remove the links of one of them, or give all images as one class folder"
            )


class FolderSource(ListedSource):
    """Listed images, of any size, grey or colour.

    A file that is no image by its name is skipped at once, one that turns out not to be an image when it is read raises
    `BadImage`.

    Raises:
        UserError: a class has no image, no image is left for the split, or too many files are no images.
    """

    def __init__(self, config: SourceConfig, listing: Listing) -> None:
        self.config, self.root, self.class_names = config, listing.root, listing.class_names
        self.passed_over, self.notes = listing.passed_over, listing.notes
        keys = [key for key, _, _ in listing.entries]
        bad = {**_named_unlike_images(keys), **listing.broken}
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
    """The files of a folder of class folders, searched recursively; hidden files and folders are passed over.

    Raises:
        UserError: the folder is missing, has no class folders or one that cannot be listed, its class map does not fit,
            or an image is in two classes.
    """
    root = location_of(str(config.path))
    folders, loose = _class_folders(root)
    named = class_names_of(root, folders, config.class_map)
    listing = _listing(root, named, [*named], loose)
    listing.add_files({folder: label for label, folder in enumerate(named)})
    if len(named) == 1:
        images = [key for key, _, _ in listing.entries if _named_like_image(key)]
        listing.notes.extend(note_on_one_class(root, next(iter(named)), images))
    return listing


def list_split_folders(config: SourceConfig) -> Listing:
    """The files of `train/`, `judge/` and `test/`, each a folder of class folders; keys start with the part.

    The classes are those of `train/`; another part may lack some of them.

    Raises:
        UserError: there are other folders, no `train/`, or classes that `train/` has not.
    """
    root = location_of(str(config.path))
    parts, loose = _class_folders(root)
    if _TRAIN not in parts or not set(parts) <= set(PARTS):
        raise UserError(
            f"{root}: found the folders {', '.join(parts)}; expected train/ and, where wanted, judge/ and test/, with "
            "source.split_by=folders; rename or remove the others, or set source.split_by=hash"
        )
    found = {part: _class_folders(join(root, part)) for part in parts}
    folders = {part: names for part, (names, _) in found.items()}
    named = class_names_of(root, folders[_TRAIN], config.class_map)
    for part in parts:
        if odd := sorted(set(folders[part]) - set(named)):
            raise UserError(
                f"{join(root, part)}: found class folders that {_TRAIN}/ has not ({', '.join(odd[:_NUM_NAMED])}); "
                "expected some of its classes; rename them, or add them there"
            )
    listing = _listing(root, named, [f"{_TRAIN}/{name}" for name in named], found[_TRAIN][1], at=_TRAIN)
    beside = [SkippedInput(join(part, i.key), i.reason) for part in parts if part != _TRAIN for i in found[part][1]]
    listing.passed_over.extend([*loose, *beside])
    label_of = {name: label for label, name in enumerate(named)}
    listing.add_files({f"{part}/{name}": label_of[name] for part in parts for name in folders[part]})
    return listing


def _listing(root: str, named: dict[str, str], folders: list[str], loose: list[SkippedInput], at: str = "") -> Listing:
    """A listing without its files; class folders lie in `root`, or in its folder `at`."""
    notes = notes_on_folders(join(root, at) if at else root, list(named))
    loose = [SkippedInput(join(at, item.key), item.reason) if at else item for item in loose]
    lines = _class_order_lines(list(named))
    return Listing(root, list(named.values()), folders, lines, passed_over=loose, notes=notes)


def _class_folders(location: str) -> tuple[list[str], list[SkippedInput]]:
    """Names of the class folders, sorted, and what lies beside them."""
    if not is_folder(location):
        found = "a file" if is_file(location) else "nothing"
        raise UserError(f"{location}: found {found}, expected a folder of class folders; change the source's path")
    names: list[str] = []
    beside: list[SkippedInput] = []
    for entry in list_folder(location):
        if heading := junk_heading(entry.name):
            beside.append(SkippedInput(entry.name, heading))
        elif entry.kind == "folder":
            names.append(entry.name)
        elif entry.is_link and entry.kind == "broken" and not _named_like_image(entry.name):
            raise UserError(
                f"{join(location, key_line(entry.name))}: found a {entry.why}, expected a class folder: without it the "
                "classes after it would get other labels; mount what is missing, or remove the link"
            )
        elif entry.name not in (*CLASS_MAP_FILES, _SYNSET_FILE):
            kind = "image" if _named_like_image(entry.name) else "file"
            beside.append(SkippedInput(entry.name, f"{kind} beside the class folders"))
    if not names:
        raise UserError(
            f"{location}: found no class folders and {len(beside)} files, expected one folder per class with its "
            "images inside; put the images of a set without classes into a single folder in it; for parquet, tar and "
            "IDX files write an experiment with their source.kind (docs/data.md) and start it with nvg run"
        )
    return names, beside


def _class_order_lines(folders: list[str]) -> list[str]:
    """What the order of the classes adds to a fingerprint: nothing where it is that of their folders' names."""
    return [] if folders == sorted(folders) else [f"class {name}" for name in folders]


def _named_unlike_images(keys: list[str]) -> dict[str, str]:
    """Keys that cannot be images or cannot be listed, with the reason."""
    bad: dict[str, str] = {}
    for key in keys:
        if "\n" in key or "\r" in key:
            bad[key] = "line break in the file name"
        elif not _named_like_image(key):
            bad[key] = "not an image by its name"
    return bad


def _named_like_image(key: str) -> bool:
    return os.path.splitext(key)[1].lower() in image_suffixes()


def _require_images(listing: Listing, bad: dict[str, str]) -> None:
    """Every class folder needs an image, also where a split leaves it out."""
    found = Counter(label for _, label, _ in listing.entries)
    good = Counter(label for key, label, _ in listing.entries if key not in bad)
    for label, folder in enumerate(listing.folders):
        if good[label] == 0:
            first = next((f" ({key_line(key)}: {bad[key]})" for key, of, _ in listing.entries if of == label), "")
            raise UserError(
                f"class folder {key_line(join(listing.root, folder))}: found {found[label]} files and no image among "
                f"them{first}, expected at least one; add images or remove the folder"
            )


def list_imagenet(config: SourceConfig) -> Listing:
    """The training or the validation images; keys start with `train/` or `val/`.

    Raises:
        UserError: a folder is missing, labels are missing or ambiguous, or listed images are not there.
    """
    root = location_of(str(config.path))
    folders, loose = _class_folders(join(root, _TRAIN))
    named = class_names_of(root, folders, config.class_map, (*CLASS_MAP_FILES, _SYNSET_FILE))
    label_of = {folder: label for label, folder in enumerate(named)}
    part = _TRAIN if config.split == "train" else _VALIDATION
    by_class, loose = (True, loose) if part == _TRAIN else _in_class_folders(root, set(named))
    below = [f"{part}/{name}" for name in named] if by_class else []
    listing = _listing(root, named, below, loose, part)
    other = _VALIDATION if part == _TRAIN else _TRAIN
    apart = [other] if "://" not in root and is_folder(join(root, other)) else []  # a store has no links
    if by_class:
        listing.add_files({folder: label for label, folder in enumerate(below)}, apart)
        return listing
    path = find_one(root, config.label_file, LABEL_FILES, "label_file")
    if path is None:
        raise UserError(
            f"{join(root, _VALIDATION)}: found images without class folders and no label file beside them, expected "
            f"one of {', '.join(LABEL_FILES)} in {root}; set source.label_file"
        )
    labels = _read_label_file(path, label_of)
    listing.passed_over.clear()
    listing.add_files({_VALIDATION: -1}, apart)
    _check_labels([key for key, _, _ in listing.entries], labels, path)
    listing.entries[:] = [(key, labels[_stem(name_of(key))], size) for key, _, size in listing.entries]
    digest = hashlib.sha256(repr(sorted(labels.items())).encode()).hexdigest()
    listing.fingerprint_lines.append(f"labels {digest}")
    return listing


def _read_label_file(path: str, label_of: dict[str, int]) -> dict[str, int]:
    """Label of each flat image, by file name without ending.

    The file has a line for each image: its name and its class, divided by a comma, a semicolon, a tab or spaces. A
    class is a class folder's name or its number from 0; what follows it is ignored, and so is a first line of headings
    (as in `LOC_val_solution.csv`).
    """
    lines = text_lines(read_text(path, "the label file", "source.label_file"))
    is_csv = path.lower().endswith(".csv") or len(lines[0].split()) < 2
    divider = next((divider for divider in ",;\t" if is_csv and divider in lines[0]), None)
    try:
        rows = list(csv.reader(lines, delimiter=divider, strict=True)) if divider else [line.split() for line in lines]
    except csv.Error as error:
        raise UserError(
            f"{path}: cannot be read as lines of names and classes: {error}; look for a lone quote"
        ) from error
    label_of = {composed(folder): label for folder, label in label_of.items()}
    labels: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if not row or (number == 1 and row[0].strip(" ,;") == "ImageId"):
            continue
        if len(row) < 2:
            raise UserError(
                f"{path}, line {number}: found {row[0]!r} alone, expected an image's name and its class. The numbers "
                "of ILSVRC's own ground truth are not in the order of the class folders: use a file that names images "
                f"and folders, as {LABEL_FILES[0]} does"
            )
        stem, label = _stem(row[0].strip(" ,;")), _label((row[1].split() or [""])[0], label_of)
        if label is None or stem in labels:
            what = f"image {stem} twice" if label is not None else f"class {row[1]!r}"
            raise UserError(
                f"{path}, line {number}: found {what}, expected each image once, with a class folder's name or a "
                f"number from 0 to {len(label_of) - 1}"
            )
        labels[stem] = label
    return labels


def _in_class_folders(root: str, names: set[str]) -> tuple[bool, list[SkippedInput]]:
    """Whether `val/` holds class folders, which must then be those of `train/`; and what lies beside them."""
    folder = join(root, _VALIDATION)
    if not is_folder(folder):
        raise UserError(f"{folder}: found nothing, expected the validation images; change the source's path or split")
    if is_same(folder, join(root, _TRAIN)):
        raise UserError(f"{folder}: is the same folder as {_TRAIN}/, expected images that no training has seen")
    beside: list[SkippedInput] = []
    found: set[str] = set()
    if any(entry.kind == "folder" and not junk_heading(entry.name) for entry in list_folder(folder)):
        folders, beside = _class_folders(folder)
        found = set(folders)
    if found and found != names:
        shown = ", ".join(sorted(found ^ names)[:_NUM_NAMED])
        raise UserError(f"{folder}: its class folders are not those of {_TRAIN}/ ({shown}, …); expected the same")
    return bool(found), beside


def _check_labels(keys: Sequence[str], labels: Mapping[str, int], path: str) -> None:
    """Each image must be in the label file once, and each of its names must be an image."""
    stems = [_stem(name_of(key)) for key in keys]
    repeated = [stem for stem, count in Counter(stems).items() if count > 1]
    for kind, names in (
        ("images of the same name", repeated),
        ("images without a label", sorted(set(stems) - set(labels))),
        ("labels without an image", sorted(set(labels) - set(stems))),
    ):
        if names:
            shown = ", ".join(map(key_line, names[:_NUM_NAMED])) + (", …" if len(names) > _NUM_NAMED else "")
            raise UserError(
                f"{path}: found {len(names)} {kind} ({shown}), expected one label for each image; copy the images "
                "again or change source.label_file"
            )


def _stem(name: str) -> str:
    return composed(name.rpartition(".")[0] or name)


def _label(text: str, label_of: dict[str, int]) -> int | None:
    if composed(text) in label_of:
        return label_of[composed(text)]
    number = whole_number(text)
    return number if number is not None and 0 <= number < len(label_of) else None
