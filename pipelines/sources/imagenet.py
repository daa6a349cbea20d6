"""The layout ImageNet comes in: `train/` with class folders; `val/` flat with a file of labels, or in class folders.

Its own division replaces a seeded one: split "train" is `train/`, split "test" is `val/`.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence

from nvg.errors import UserError
from pipelines.sources.class_names import CLASS_MAP_FILES, class_names_of, find_one
from pipelines.sources.config import SourceConfig
from pipelines.sources.folders import Listing, class_folders, class_order_lines
from pipelines.sources.locations import is_folder, join, list_files, list_folders, location_of, name_of, read_bytes

TRAIN, VALIDATION = "train", "val"
LABEL_FILES = ("LOC_val_solution.csv", "val.txt")
SYNSET_FILE = "LOC_synset_mapping.txt"
_NUM_NAMED = 3


def list_imagenet(config: SourceConfig) -> Listing:
    """The training or the validation images.

    Args:
        config: `path` holds `train/` and `val/`; `class_map` and `label_file`, where null, are looked for in it.

    Returns:
        The listing; keys start with `train/` or `val/`.

    Raises:
        UserError: A folder is missing, labels are missing or ambiguous, or listed images are not there.
    """
    root = location_of(str(config.path))
    folders = class_folders(join(root, TRAIN))
    named = class_names_of(root, folders, config.class_map, (*CLASS_MAP_FILES, SYNSET_FILE))
    label_of = {folder: label for label, folder in enumerate(named)}
    lines = class_order_lines(list(named))
    part = TRAIN if config.split == "train" else VALIDATION
    if part == TRAIN or _in_class_folders(root, set(named)):
        below = [f"{part}/{name}" for name in named]
        entries = [(key, label, size) for label, name in enumerate(below) for key, size in list_files(root, name)]
        return Listing(root, list(named.values()), entries, below, lines)
    path = find_one(root, config.label_file, LABEL_FILES, "label_file")
    if path is None:
        raise UserError(
            f"{join(root, VALIDATION)}: found images without class folders and no label file beside them, expected one "
            f"of {', '.join(LABEL_FILES)} in {root}; set source.label_file"
        )
    labels = read_label_file(path, label_of)
    entries = _labelled(list_files(root, VALIDATION), labels, path)
    digest = hashlib.sha256(repr(sorted(labels.items())).encode()).hexdigest()
    return Listing(root, list(named.values()), entries, [], [*lines, f"labels {digest}"])


def read_label_file(path: str, label_of: dict[str, int]) -> dict[str, int]:
    """Read the labels of flat images.

    Args:
        path: Location of a file with a line for each image: its name and its class, divided by a space, a tab or a
            comma. A class is a class folder's name or its number from 0; what follows it is ignored, and so is a
            first line of headings (as in `LOC_val_solution.csv`).
        label_of: Label of each class folder.

    Returns:
        Label by file name without ending.

    Raises:
        UserError: The file cannot be read, or a line names no class.
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
    folder = join(root, VALIDATION)
    if not is_folder(folder):
        raise UserError(f"{folder}: found nothing, expected the validation images; change the source's path or split")
    found = set(list_folders(folder))
    if found and found != names:
        shown = ", ".join(sorted(found ^ names)[:_NUM_NAMED])
        raise UserError(f"{folder}: its class folders are not those of {TRAIN}/ ({shown}, …); expected the same")
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
