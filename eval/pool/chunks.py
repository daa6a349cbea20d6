"""Chunks of a pool on disk: written whole or not at all, checked when read.

One safetensors file per chunk, named after its number, in a folder named after everything that decides its bytes. It
holds named arrays of one row per item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cluster.files import replacing

Arrays = dict[str, NDArray[Any]]


def arrays_digest(arrays: Mapping[str, NDArray[Any]], names: Sequence[str]) -> str:
    """SHA-256 over the named arrays in their order, and over their names, types and shapes, as hex."""
    total = hashlib.sha256()
    for name in names:
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def chunk_path(folder: Path, number: int) -> Path:
    """File of one chunk."""
    return folder / f"chunk-{number:06d}.safetensors"


def write_chunk(folder: Path, number: int, chunk: Arrays, names: Sequence[str], key: str) -> None:
    """Write a chunk under a temporary name, flush it, then give it its name in one step.

    Args:
        names: of its arrays, in the order of the digest.
        key: the pool's; a reader refuses any other.

    Raises:
        OSError: the disk is full or the folder cannot be written; no file of the final name is left.
    """
    tensors = {name: np.ascontiguousarray(chunk[name]) for name in names}
    marks = {"key": key, "number": str(number), "digest": arrays_digest(chunk, names)}
    with replacing(chunk_path(folder, number)) as temporary:
        save_file(tensors, temporary, metadata=marks)


def read_chunk(folder: Path, number: int, names: Sequence[str], key: str) -> Arrays | None:
    """The arrays of a chunk; None where its file is missing, cut off, damaged or of another pool: compute it again."""
    try:
        with safe_open(chunk_path(folder, number), framework="numpy") as stream:
            marks = stream.metadata() or {}
            if set(stream.keys()) != set(names):
                return None
            chunk = {name: stream.get_tensor(name) for name in names}
    except (FileNotFoundError, SafetensorError):
        return None
    if (marks.get("key"), marks.get("number"), marks.get("digest")) != (key, str(number), arrays_digest(chunk, names)):
        return None
    return chunk


def join_chunks(chunks: Sequence[Arrays], num_items: int) -> Arrays:
    """One chunk of `num_items` rows from one or more in their order; what is beyond is cut off."""
    return {name: np.concatenate([chunk[name] for chunk in chunks])[:num_items] for name in chunks[0]}
