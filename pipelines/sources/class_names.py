"""Class maps: what the class folders of a data set are called, and in which order they are numbered.

Seeded, stratified train/judge/test parts of a source that comes without any.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

import numpy as np

from nvg.errors import UserError
from pipelines.sources.config import SourceConfig
from pipelines.sources.locations import is_file, join, location_of, read_bytes

CLASS_MAP_FILES = ("classes.json", "classes.txt")


def class_names_of(
    root: str, folders: Sequence[str], path: str | None, files: Sequence[str] = CLASS_MAP_FILES
) -> dict[str, str]:
    """Display name of each class folder, in the order of the labels.

    Args:
        root: Location of the class folders.
        folders: Names of the class folders, sorted.
        path: Class map, or None for the one in `root`, or none at all: then a folder's name is the class's.
        files: What a class map in `root` may be called.

    Returns:
        Folder name → display name. Equal display names are told apart by their folders.

    Raises:
        UserError: The map cannot be read, or names other folders than there are.
    """
    file = find_one(root, path, files, "class_map")
    if file is None:
        return {name: name for name in folders}
    named = read_class_map(file)
    for kind, names in (
        ("class folders that it does not name", set(folders) - set(named)),
        (f"classes without a folder in {root}", set(named) - set(folders)),
    ):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (" …" if len(names) > 5 else "")
            raise UserError(f"{file}: found {len(names)} {kind} ({shown}); change the map or the folders")
    counts = Counter(named.values())
    return {folder: name if counts[name] == 1 else f"{name} ({folder})" for folder, name in named.items()}


def read_class_map(path: str) -> dict[str, str]:
    """Read a class map.

    Args:
        path: Its location. `.json`: an object, folder name → display name. Any other: lines of a folder name and a
            display name, divided by a tab, or else by the first space; a folder's name alone stands for itself.

    Returns:
        Folder name → display name, in the file's order.

    Raises:
        UserError: The file cannot be read or is not of that form.
    """
    try:
        text = read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the class map cannot be read: {error}; change source.class_map") from error
    pairs = _json_pairs(text, path) if path.lower().endswith(".json") else _text_pairs(text)
    repeated = [folder for folder, count in Counter(folder for folder, _ in pairs).items() if count > 1]
    if repeated or not pairs:
        found = f"{repeated[0]!r} twice" if repeated else "no class"
        raise UserError(f"{path}: found {found}, expected each class folder once")
    for _, name in pairs:
        check_class_name(name, path)
    return dict(pairs)


def check_class_name(name: str, path: str) -> None:
    """Refuse a name that cannot be part of a file's name, as samples are called by their class.

    Args:
        name: Display name.
        path: The file it is from, for the message.

    Raises:
        UserError: It holds a slash or a character that cannot be printed.
    """
    if "/" in name or not name.isprintable():
        raise UserError(f"{path}: found the class name {name!r}, expected printable characters and no slash")


def find_one(root: str, path: str | None, names: Sequence[str], key: str) -> str | None:
    """A file that accompanies images.

    Args:
        root: Location of the images.
        path: What the user says, or None.
        names: What it may be called in `root`.
        key: Setting to name.

    Returns:
        Its location; None where none is given and none found.

    Raises:
        UserError: Several are found.
    """
    if path is not None:
        return location_of(path)
    found = [name for name in names if is_file(join(root, name))]
    if len(found) > 1:
        raise UserError(f"{root}: found {' and '.join(found)}, expected one {key.replace('_', ' ')}; set source.{key}")
    return join(root, found[0]) if found else None


def _json_pairs(text: str, path: str) -> list[tuple[str, str]]:
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except ValueError as error:
        raise UserError(f"{path}: the class map is not JSON: {error}") from error
    good = isinstance(pairs, list) and all(
        isinstance(pair, tuple) and isinstance(pair[1], str) and pair[1].strip() for pair in pairs
    )
    if not good:
        raise UserError(f'{path}: expected an object of names, {{"folder": "display name", …}}')
    return pairs


def _text_pairs(text: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for line in filter(str.strip, text.splitlines()):
        folder, _, name = line.strip().partition("\t" if "\t" in line.strip() else " ")
        pairs.append((folder, name.strip() or folder))
    return pairs


def select_split(keys: Sequence[str], labels: Sequence[int], config: SourceConfig) -> list[int]:
    """Choose the inputs of `config.split`.

    Within each class, inputs are ordered by a hash of (seed, key); the first `judge_fraction` of them are the
    judge's, the next `test_fraction` the test's, the rest is for training.

    Args:
        keys: Unique names of all inputs.
        labels: Class of each.
        config: Split, seed and fractions.

    Returns:
        Ascending indices of the chosen inputs. "train", "judge" and "test" are disjoint and cover "all". Of an
        "imagenet" source, which is listed by its own division, all inputs.
    """
    if config.split == "all" or config.kind == "imagenet":
        return list(range(len(keys)))
    label_N = np.asarray(labels, dtype=np.int64)
    chosen: list[int] = []
    for label in np.unique(label_N):
        members = [int(index) for index in np.flatnonzero(label_N == label)]
        members.sort(key=lambda index: hashlib.sha256(f"{config.seed}/{keys[index]}".encode()).digest())
        first = round(len(members) * config.judge_fraction)
        second = first + round(len(members) * config.test_fraction)
        parts = {"judge": members[:first], "test": members[first:second], "train": members[second:]}
        chosen += parts[config.split]
    return sorted(chosen)
