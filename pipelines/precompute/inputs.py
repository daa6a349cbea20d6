"""Of which bytes records were made, and which images are no longer those bytes.

The hash of a file as the actor read it decides. Its stamp, of size and time (in a store: the etag), only says whether
the file has to be hashed again: a copy, a touch or a move to a store changes stamps and voids nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cluster.files import write_atomically
from nvg.errors import UserError
from pipelines.sources import ImageSource
from pipelines.sources.keys import key_line

INPUTS_FILE = "inputs.bin"  # a row for each line of sources.txt; in a part, for each image of its unit
_ROW = np.dtype([("content", "u1", (16,)), ("stamp", "<u8")])
_NUM_NAMED = 5


def content_hash(data: bytes, label: int) -> bytes:
    """16 bytes that name an image file's content with its label: in tars a label may change alone."""
    return hashlib.blake2b(data, digest_size=16, salt=label.to_bytes(8, "little")).digest()


def input_rows(number: int) -> np.ndarray:
    """Rows of inputs of which nothing is known yet."""
    return np.zeros(number, dtype=_ROW)


def write_inputs(folder: Path, contents: Sequence[bytes], stamps: np.ndarray | np.uint64) -> None:
    """Note hashes and stamps of a unit's images, in its order."""
    rows = input_rows(len(contents))
    rows["content"] = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, 16)
    rows["stamp"] = stamps
    replace_inputs(folder, rows)


def replace_inputs(folder: Path, rows: np.ndarray) -> None:
    """Put rows beside the records or the part that they are of."""
    write_atomically(folder / INPUTS_FILE, rows.tobytes())


def read_inputs(folder: Path, number: int) -> np.ndarray:
    """What is noted of `number` inputs; nothing is known of them where an earlier version wrote the records.

    Raises:
        UserError: the file is of another number of inputs.
    """
    path = folder / INPUTS_FILE
    if not path.is_file():
        return input_rows(number)
    data = path.read_bytes()
    if len(data) != number * _ROW.itemsize:
        raise UserError(
            f"{path}: found {len(data)} bytes; expected {number * _ROW.itemsize}, {_ROW.itemsize} for each image; copy "
            "the records again, or remove it: changed images are then not noticed"
        )
    return np.frombuffer(data, _ROW).copy()


def known(rows: np.ndarray) -> np.ndarray:
    """bool (N,): of which inputs there is a hash."""
    return rows["content"].any(axis=1)


def content_digest(rows: np.ndarray) -> str:
    """sha256 over the hashes of all inputs, hexadecimal: equal for equal bytes in equal order."""
    return hashlib.sha256(np.ascontiguousarray(rows["content"]).tobytes()).hexdigest()


def find_changed(
    rows: np.ndarray, indices: np.ndarray, source: ImageSource, stamps: np.ndarray, *, num_threads: int = 8
) -> list[int]:
    """Images that are no longer the bytes noted of them; where they are, their rows take the new stamp.

    Args:
        rows: what is noted of the images `indices`; read again are those whose stamp is another one.
        indices: int64, in the source.
        source: as it is now.
        stamps: uint64 of all its images, as they are now.

    Returns:
        Their indices in the source; an image that cannot be read any more is one of them.
    """
    doubtful = np.flatnonzero(known(rows) & (rows["stamp"] != stamps[indices]))

    def same(row: int) -> bool:
        index = int(indices[row])
        try:
            found = content_hash(source.read_bytes(index), int(source.labels[index]))
        except OSError:
            return False
        return found == rows["content"][row].tobytes()

    with ThreadPoolExecutor(num_threads, thread_name_prefix="compare") as threads:
        is_same = np.fromiter(threads.map(same, doubtful.tolist()), dtype=bool)
    rows["stamp"][doubtful[is_same]] = stamps[indices[doubtful[is_same]]]
    return indices[doubtful[~is_same]].tolist()


def describe_changed(changed: Sequence[int], source: ImageSource) -> str:
    """How many images were changed, and the first of them by name."""
    names = ", ".join(key_line(source.keys[index]) for index in changed[:_NUM_NAMED])
    more = ", …" if len(changed) > _NUM_NAMED else ""
    return f"{len(changed)} of {len(source)} images in {source.config.path} have changed ({names}{more})"
