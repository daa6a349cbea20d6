"""Where files lie: a path of this machine, or a URL of any store that fsspec reaches (`s3://bucket/folder`).

A location is a string, so that sources travel to other processes as they are. What cannot be read is an OSError.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from nvg.errors import UserError

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
    """A user's path as a location: URLs stay, everything else becomes an absolute path."""
    return path.rstrip("/") if "://" in path else str(Path(path).expanduser().absolute())


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


def list_folders(location: str) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are left out."""
    system, path = _store(location)
    if system is None:
        names = [entry.name for entry in os.scandir(path) if entry.is_dir()]
    else:
        names = [name_of(e["name"].rstrip("/")) for e in system.ls(path, detail=True) if e["type"] == "directory"]
    return sorted(name for name in names if not name.startswith("."))


def list_files(location: str, below: str = "") -> list[tuple[str, int]]:
    """Names (relative to a folder, with forward slashes) and sizes of all files in it or in its folder `below`, sorted.

    Hidden files and folders are left out.
    """
    system, root = _store(location)
    start = f"{root}/{below}" if below else root
    found: list[tuple[str, int]] = []
    if system is not None:
        for path, entry in system.find(start, detail=True).items():
            name = path[len(root) :].lstrip("/")
            if not any(part.startswith(".") for part in name[len(below) :].split("/")):
                found.append((name, int(entry["size"])))
        return sorted(found)
    for folder, folder_names, file_names in os.walk(start, followlinks=True):
        folder_names[:] = [name for name in folder_names if not name.startswith(".")]
        for name in file_names:
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(path):
                found.append((path[len(root) :].lstrip("/"), os.stat(path).st_size))
    return sorted(found)


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
    """The file system of a location (None for this machine's) and the path in it."""
    if "://" not in location:
        return None, location
    try:
        system, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{location}: cannot be opened: {error}; install what fsspec asks for, or change the source's path"
        ) from error
    return system, path.rstrip("/")
