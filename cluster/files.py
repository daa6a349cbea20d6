"""Files that are there whole or not at all, also after a crash."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside a file, which becomes the file when the block ends well: flushed, renamed, durable.

    The name is unlike that of any other process on any machine: writers of one shared folder do not meet.

    Raises:
        OSError: It cannot be written; the old file, if any, is untouched.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        sync_path(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # a rename leaves it where both are links to one file
    sync_path(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old or the new content; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def sync_path(path: Path) -> None:
    """Make the bytes of a file, or the renames inside a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
