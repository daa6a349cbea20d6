"""Names and order of classes, of class folders and of the labels in tar shards; and how text that users wrote is read.

Text is UTF-8, with or without a byte order mark, or UTF-16 with one; anything else is refused with its line.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Container, Sequence

from eval.locations import is_file, join, location_of, read_bytes
from nvg.errors import UserError
from pipelines.sources.config import SourceConfig

CLASS_MAP_FILES = ("classes.json", "classes.txt")
LABEL_NAMES_FILE = "classes.txt"
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


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
        return {name: ascii(name)[1:-1] if re.search("[\ud800-\udfff]", name) else name for name in folders}
    named = _read_class_map(file, folders)
    for kind, names in (
        ("class folders that it does not name", set(folders) - set(named)),
        (f"classes without a folder in {root}", set(named) - set(folders)),
    ):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (" …" if len(names) > 5 else "")
            raise UserError(f"{file}: found {len(names)} {kind} ({shown}); change the map or the folders")
    return dict(zip(named, _told_apart(list(named.values()), list(named)), strict=True))


def class_names_of_labels(
    config: SourceConfig, root: str, labels: Collection[int], what: str, known: Sequence[str] = (), known_from: str = ""
) -> tuple[list[str], list[str]]:
    """Display name of each label: by the settings, by `classes.txt` in `root`, by the data itself, or else the numbers.

    Equal names are told apart by their labels; empty lines at the end are no classes.

    Args:
        labels: those that images have.
        what: which files hold them, such as "the shards".
        known: names that the data gives, and in which file.

    Returns:
        The names, and a note where nothing names the classes and labels between theirs have no image.

    Raises:
        UserError: the file cannot be read, or there are too few names or an empty one.
    """
    found, path = sorted(set(labels)), find_one(root, config.class_map, [LABEL_NAMES_FILE], "class_map")
    num_classes = found[-1] + 1 if found else 0
    if config.class_names:
        names, places = config.class_names, [f"source.class_names[{label}]" for label in range(len(config.class_names))]
    elif path is not None:
        names = [line.strip() for line in text_lines(read_text(path, "the class names", "source.class_map"))]
        while names and not names[-1]:
            names.pop()
        places = [f"{path}, line {number}" for number in range(1, len(names) + 1)]
    elif known:
        names, places = known, [f"{known_from}, class {label}" for label in range(len(known))]
    else:
        return [str(label) for label in range(num_classes)], _note_on_gaps(found, what)
    if len(names) < num_classes:
        by = "source.class_names" if config.class_names else path or known_from
        raise UserError(
            f"{by}: found {len(names)} class names, expected at least {num_classes}: {what} hold label "
            f"{num_classes - 1}; name it too, or correct the label"
        )
    for name, place in zip(names, places, strict=True):
        check_class_name(name, place)
    return _told_apart(names, [str(label) for label in range(len(names))]), []


def _note_on_gaps(labels: Sequence[int], what: str) -> list[str]:
    """Without names a class is there because a label says so: those in between may be a mistake."""
    missing = sorted(set(range(labels[-1] + 1)) - set(labels)) if labels else []
    if not missing:
        return []
    shown = ", ".join(map(str, missing[:3])) + (", …" if len(missing) > 3 else "")
    return [
        f"found {len(labels)} labels from {labels[0]} to {labels[-1]}, so {labels[-1] + 1} classes, of which "
        f"{len(missing)} have no image ({shown}); number the classes from 0 without gaps, or name them all in "
        f"{LABEL_NAMES_FILE} beside {what} where that is meant"
    ]


def _told_apart(names: Sequence[str], by: Sequence[str]) -> list[str]:
    counts = Counter(map(composed, names))
    return [name if counts[composed(name)] == 1 else f"{name} ({what})" for name, what in zip(names, by, strict=True)]


def notes_on_folders(root: str, folders: Sequence[str]) -> list[str]:
    """What surprises in the names of class folders: their order, names that look alike, names of splits.

    Args:
        root: location of the class folders.
        folders: their names, by label.
    """
    notes: list[str] = []
    if len({re.sub(r"\d+", "0", name) for name in folders}) == 1 and list(folders) == sorted(folders):
        counted = sorted(folders, key=lambda name: re.sub(r"\d+", lambda number: number[0].zfill(20), name))
        moved = [label for label, pair in enumerate(zip(folders, counted, strict=True)) if pair[0] != pair[1]]
        if moved:
            notes.append(
                f"class folders are sorted as text: label {moved[0]} is folder {folders[moved[0]]!r}, not "
                f"{counted[moved[0]]!r}; for another order write it into {CLASS_MAP_FILES[1]} beside them, a folder's "
                "name in each line"
            )
    notes += notes_on_alike(folders, "class folders")
    splits = [name for name in folders if name.casefold() in _SPLIT_NAMES]
    if len(splits) > 1 and len(splits) == len(folders):
        first = next((name for name in splits if name.casefold().startswith("train")), splits[0])
        notes.append(
            f"the classes are called {', '.join(splits)}, like parts of a data set; if they are, set "
            f"source.path={join(root, first)}, or source.kind=imagenet for train/ and val/ with class folders in them"
        )
    return notes


def notes_on_alike(names: Sequence[str], what: str) -> list[str]:
    """Which classes differ in case, in spaces or in the form of their accents alone, and may be one."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(composed(name).strip().casefold(), []).append(name)
    return [
        f"{what} {', '.join(map(ascii, same))} differ in case, spaces or the form of their accents alone, and are "
        f"{len(same)} classes; join them where one is meant"
        for same in alike.values()
        if len(same) > 1
    ]


def note_on_one_class(root: str, folder: str, keys: Sequence[str]) -> list[str]:
    """That the only class has its images in folders of their own, which may be the classes that are meant.

    Args:
        root: location of the class folder.
        folder: its name.
        keys: of its images.
    """
    inner = {key.split("/")[1] for key in keys if key.count("/") > 1}
    if len(inner) < 2 or any(key.count("/") == 1 for key in keys):
        return []
    shown = ", ".join(sorted(inner)[:3]) + (", …" if len(inner) > 3 else "")
    return [
        f"the only class is {folder}, whose images lie in {len(inner)} folders of their own ({shown}); if these are "
        f"the classes, set source.path={join(root, folder)}"
    ]


def _read_class_map(path: str, folders: Sequence[str]) -> dict[str, str]:
    """Folder name → display name, in the file's order.

    `.json` is an object. Any other file has lines of a folder name and a display name, divided by a tab, or else by the
    first space; a folder's name alone stands for itself. Where that gives no folder that is there, the name is divided
    where one ends, also at a comma or a semicolon. A folder whose accents are composed in another way is found.
    """
    text = read_text(path, "the class map", "source.class_map")
    there, found = set(folders), {composed(folder): folder for folder in folders}
    is_json = path.lower().endswith(".json")
    pairs = [
        (folder if folder in there else found.get(composed(folder), folder), name)
        for folder, name in (_json_pairs(text, path) if is_json else _text_pairs(text, found.keys()))
    ]
    repeated = [folder for folder, count in Counter(folder for folder, _ in pairs).items() if count > 1]
    if repeated or not pairs:
        what = f"{repeated[0]!r} twice" if repeated else "no class"
        raise UserError(f"{path}: found {what}, expected each class folder once")
    for _, name in pairs:
        check_class_name(name, path)
    return dict(pairs)


def check_class_name(name: str, path: str) -> None:
    """Refuse a name that does not show in a line of a table or a picture.

    Raises:
        UserError: it is empty or holds a character that cannot be printed; names the file it is from, `path`.
    """
    if not name or not name.isprintable():
        raise UserError(f"{path}: found the class name {name!r}, expected printable characters")


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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the class map is not JSON: {error}") from error
    good = isinstance(pairs, list) and all(
        isinstance(pair, tuple) and isinstance(pair[1], str) and pair[1].strip() for pair in pairs
    )
    if not good:
        raise UserError(f'{path}: expected an object of names, {{"folder": "display name", …}}')
    return pairs


def _text_pairs(text: str, folders: Container[str]) -> list[tuple[str, str]]:
    """Folder and display name of each line; `folders` are those there are, composed."""
    pairs: list[tuple[str, str]] = []
    for line in filter(None, map(str.strip, text_lines(text))):
        folder, _, name = line.partition("\t" if "\t" in line else " ")
        if composed(folder) not in folders:
            ends = [len(line), *(match.start() for match in re.finditer(r"[\t ,;]", line))]
            end = max((end for end in ends if composed(line[:end]) in folders), default=len(folder))
            folder, name = line[:end], line[end + 1 :]
        pairs.append((folder, name.strip() or folder))
    return pairs


def composed(text: str) -> str:
    """The same letters with their accents composed, as most systems write them; a Mac's file names are not."""
    return unicodedata.normalize("NFC", text)


def read_text(location: str, what: str, key: str = "") -> str:
    """The text of a file that a user wrote; see `decode_text`.

    Args:
        location: the file.
        what: what it is, for messages.
        key: the setting to change, if there is one.
    """
    try:
        data = read_bytes(location)
    except OSError as error:
        change = f"; change {key}" if key else ""
        raise UserError(f"{location}: {what} cannot be read: {error}{change}") from error
    return decode_text(data, location)


def decode_text(data: bytes, name: str) -> str:
    """Bytes as text: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        UserError: they are neither; names the line, and the text as `name`.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-16" if wide else "utf-8", "replace")
        found = f"byte 0x{data[error.start]:02x} after {before.rpartition(chr(10))[2][-20:]!r}"
        raise UserError(
            f"{name}, line {before.count(chr(10)) + 1}: found {found}, expected text in UTF-8; save it again as UTF-8 "
            "(it may be in Latin-1 or Windows-1252)"
        ) from error
    if "\0" in text:
        raise UserError(
            f"{name}: found zero bytes, expected text in UTF-8; save it again as UTF-8 (it may be in UTF-16)"
        )
    return text


def text_lines(text: str) -> list[str]:
    """Lines as every editor counts them, without their ends."""
    return io.StringIO(text, newline=None).read().split("\n")


def whole_number(text: str) -> int | None:
    """The number that digits say, with or without a sign; None for anything else, such as 1_0 or 1e3."""
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None
