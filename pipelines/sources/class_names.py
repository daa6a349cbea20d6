"""What the class folders of a data set are called, and in which order they are numbered."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from nvg.errors import UserError
from pipelines.sources.locations import is_file, join, location_of, read_bytes

CLASS_MAP_FILES = ("classes.json", "classes.txt")


def class_names_of(
    root: str, folders: Sequence[str], path: str | None, files: Sequence[str] = CLASS_MAP_FILES
) -> dict[str, str]:
    """Display name of each class folder, in the order of the labels.

    Args:
        root: location of the class folders.
        folders: their names, sorted.
        path: class map, or None for the one in `root`, or none at all: then a folder's name is the class's.
        files: what a class map in `root` may be called.

    Returns:
        Folder name → display name. Equal display names are told apart by their folders.

    Raises:
        UserError: the map cannot be read, or names other folders than there are.
    """
    file = find_one(root, path, files, "class_map")
    if file is None:
        return {name: name for name in folders}
    named = _read_class_map(file)
    for kind, names in (
        ("class folders that it does not name", set(folders) - set(named)),
        (f"classes without a folder in {root}", set(named) - set(folders)),
    ):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (" …" if len(names) > 5 else "")
            raise UserError(f"{file}: found {len(names)} {kind} ({shown}); change the map or the folders")
    counts = Counter(named.values())
    return {folder: name if counts[name] == 1 else f"{name} ({folder})" for folder, name in named.items()}


def _read_class_map(path: str) -> dict[str, str]:
    """Folder name → display name, in the file's order.

    `.json` is an object. Any other file has lines of a folder name and a display name, divided by a tab, or else by the
    first space; a folder's name alone stands for itself.
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

    Raises:
        UserError: it holds a slash or a character that cannot be printed; names the file it is from, `path`.
    """
    if "/" in name or not name.isprintable():
        raise UserError(f"{path}: found the class name {name!r}, expected printable characters and no slash")


def find_one(root: str, path: str | None, names: Sequence[str], key: str) -> str | None:
    """Location of a file that accompanies images; None where none is given and none found.

    Args:
        root: location of the images.
        path: what the user says, or None.
        names: what it may be called in `root`.
        key: setting to name.

    Raises:
        UserError: several are found.
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
