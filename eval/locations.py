"""Where files lie: a path of this machine, or a URL of any store that fsspec reaches (`s3://bucket/folder`).

One walk lists both: it sees everything or stops, and what it leaves out stands under a heading.
A location is a string, so that sources travel to other processes as they are. What cannot be read is an OSError.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from nvg.errors import UserError

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_JUNK = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "icon\r",
    "lost+found", "system volume information",
}  # fmt: skip
_STAMP_ENTRIES = [
    "ETag",
    "etag",
    "content_md5",
    "md5Hash",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
]


def location_of(path: str) -> str:
    """A user's path as a location: URLs of stores stay, everything else becomes an absolute path."""
    if "://" not in path:
        return str(Path(path).expanduser().absolute())
    system, inside = _store(path)
    return str(Path(inside).absolute()) if system is None else path.rstrip("/")


def join(location: str, name: str) -> str:
    """The location of something below another one."""
    return f"{location}/{name}"


def name_of(location: str) -> str:
    """The last part of a location."""
    return location.rpartition("/")[2]


def folder_of(location: str) -> str:
    """The location of the folder that holds another one."""
    return location.rpartition("/")[0]


def is_file(location: str) -> bool:
    """Whether there is a file."""
    system, path = _store(location)
    return os.path.isfile(path) if system is None else system.isfile(path)


def is_folder(location: str) -> bool:
    """Whether there is a folder (in an object store: anything below this name)."""
    system, path = _store(location)
    return os.path.isdir(path) if system is None else system.isdir(path)


def is_same(location: str, other: str) -> bool:
    """Whether two names of this machine are one folder or file."""
    real = _entry_of(location).real
    return real is not None and real == _entry_of(other).real


def size_of(location: str) -> int:
    """Bytes of a file."""
    system, path = _store(location)
    return os.stat(path).st_size if system is None else int(system.size(path))


def open_binary(location: str) -> BinaryIO:
    """Open a file for reading."""
    system, path = _store(location)
    return open(path, "rb") if system is None else system.open(path, "rb")


def read_bytes(location: str) -> bytes:
    """The whole file."""
    system, path = _store(location)
    return Path(path).read_bytes() if system is None else system.cat_file(path)


def read_range(location: str, start: int, num_bytes: int) -> bytes:
    """Some bytes of a file; fewer where it ends before."""
    system, path = _store(location)
    if system is not None:
        return system.cat_file(path, start=start, end=start + num_bytes)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(num_bytes)


class Entry(NamedTuple):
    """One name in a folder, links followed.

    Attributes:
        name: within its folder.
        kind: "file", "folder", or "broken": a link to nothing, a pipe, a device.
        size: bytes of a file.
        real: the same number for every name of one file or folder; None in a store, which has no links.
        is_link: whether the name is a symbolic link.
        why: what is wrong with a broken one.
    """

    name: str
    kind: Literal["file", "folder", "broken"]
    size: int = 0
    real: int | None = None
    is_link: bool = False
    why: str = ""


@dataclass(frozen=True)
class Walk:
    """Every name below a folder, relative to where the walk began, under one heading.

    Attributes:
        files: name, bytes and `Entry.real`, sorted by name.
        broken: name → why.
        passed_over: name of a file or a whole folder → why; its heading stands before the colon.
    """

    files: list[tuple[str, int, int | None]] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)


def list_folder(location: str) -> list[Entry]:
    """What lies in a folder, sorted by name.

    Raises:
        UserError: it cannot be listed, or something in it cannot be looked at: images may lie behind it.
    """
    system, path = _store(location)
    try:
        if system is None:
            with os.scandir(path) as found:
                return sorted(map(_local_entry, found))
        found = [(entry["name"].rstrip("/"), entry) for entry in system.ls(path, detail=True)]
        return sorted(
            Entry(name_of(name), "folder" if entry["type"] == "directory" else "file", int(entry.get("size") or 0))
            for name, entry in found
            if name.strip("/") != path.strip("/")  # a store may hold an object for the folder itself
        )
    except OSError as error:
        raise UserError(
            f"{error.filename or location}: cannot be read: {error.strerror or error}; expected a folder whose images "
            "can be listed; give the right to read it, mount what is missing, or remove it"
        ) from error


def _local_entry(found: os.DirEntry[str]) -> Entry:
    name, is_link = found.name, found.is_symlink()
    try:
        status = found.stat()
    except OSError as error:
        if not is_link or error.errno not in _NOT_THERE:
            raise
        why = f"dangling link: to {os.readlink(found.path)!r} ({error.strerror})"
        return Entry(name, "broken", is_link=True, why=why)
    real = (status.st_dev << 64 | status.st_ino) if status.st_ino else None
    if stat.S_ISREG(status.st_mode):
        return Entry(name, "file", status.st_size, real, is_link)
    if stat.S_ISDIR(status.st_mode):
        return Entry(name, "folder", 0, real, is_link)
    return Entry(name, "broken", is_link=is_link, why="no regular file: a pipe, a socket or a device")


def walk(root: str, below: str = "") -> Walk:
    """Everything below a folder of `root`; names are relative to `root`.

    A real file or folder is visited once, by a way without links where there is one, so that a link to it changes
    nothing and a circle of links ends.

    Raises:
        UserError: a folder cannot be listed.
    """
    found, first_names = Walk(), dict[int, str]()
    waiting = deque([(below, _entry_of(join(root, below) if below else root))])
    linked = deque[tuple[str, Entry]]()
    while waiting or linked:
        by_link = not waiting
        name, entry = (waiting or linked).popleft()
        first = name if entry.real is None else first_names.setdefault(entry.real, name)
        if first != name:
            found.passed_over[name] = f"repeated: the same {entry.kind} as {first}"
        elif entry.kind == "file":
            found.files.append((name, entry.size, entry.real))
        else:
            before = f"{name}/" if name else ""
            for inner in list_folder(f"{root}/{name}" if name else root):
                key = before + inner.name
                if heading := junk_heading(inner.name):
                    found.passed_over[key] = heading
                elif inner.kind == "broken":
                    found.broken[key] = inner.why
                else:
                    (linked if by_link or inner.is_link else waiting).append((key, inner))
    found.files.sort()
    return found


def _entry_of(location: str) -> Entry:
    system, path = _store(location)
    if system is not None:
        return Entry("", "folder")
    status = os.stat(path)
    return Entry("", "folder", real=status.st_dev << 64 | status.st_ino)


def junk_heading(name: str) -> str:
    """Under which heading a name is passed over wherever it lies; empty where it is not."""
    if name.startswith("."):
        return "hidden"
    return "left by other programs" if name.casefold() in _JUNK else ""


def stamps_of(folder: str, names: Sequence[str]) -> list[str]:
    """For each file below a folder what is another text once it was written again: size, and times or etag.

    A file that is not there has an empty one. Of a store it is one listing, however many files.
    """
    system, root = _store(folder)
    if system is None:
        return [_local_stamp(os.path.join(root, name)) for name in names]
    system.invalidate_cache()
    one = f"{root}/{names[0]}" if len(names) == 1 else ""
    found = {one: system.info(one)} if one else system.find(root, detail=True)
    return [_store_stamp(found.get(f"{root}/{name}", {})) for name in names]


def _local_stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size}/{status.st_mtime_ns}/{status.st_ctime_ns}"  # the last one no tool can set back


def _store_stamp(entry: dict[str, Any]) -> str:
    known = [entry[name] for name in _STAMP_ENTRIES if name in entry]
    return f"{entry['size']}/{known[0] if known else ''}" if "size" in entry else ""


def _store(location: str) -> tuple[Any, str]:
    """The file system of a location (None for this machine's, also where a URL names it) and the path in it."""
    if "://" not in location:
        return None, location
    try:
        system, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{location}: cannot be opened: {error}; install what fsspec asks for, or change the source's path"
        ) from error
    return (None if isinstance(system, LocalFileSystem) else system), path.rstrip("/")
