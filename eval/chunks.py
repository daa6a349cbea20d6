"""Chunks of the pool on disk: written whole or not at all, checked when read.

One safetensors file per chunk, named after its number, in a folder named after everything that decides
its bytes. Shapes: images_BHWC uint8, labels_B and sample_indices_B int64, features_NF, logits_NV float32.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from eval.pixels import ImageArray


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The results of consecutive samples."""

    images_BHWC: ImageArray
    labels_B: NDArray[np.int64]
    sample_indices_B: NDArray[np.int64]
    features_BF: NDArray[np.float32]
    logits_BV: NDArray[np.float32]

    def digest(self) -> str:
        """SHA-256 over all arrays, as hex."""
        total = hashlib.sha256()
        for field in fields(self):
            array = np.ascontiguousarray(getattr(self, field.name))
            total.update(f"{field.name} {array.dtype.str} {array.shape}".encode())
            total.update(array.tobytes())
        return total.hexdigest()


def chunk_path(folder: Path, number: int) -> Path:
    """File of one chunk."""
    return folder / f"chunk-{number:06d}.safetensors"


def write_chunk(folder: Path, number: int, chunk: Chunk, key: str) -> None:
    """Write a chunk under a temporary name, flush it, then give it its name in one step.

    Args:
        folder: the pool's folder.
        number: the chunk's number.
        chunk: its arrays.
        key: the pool's key; a reader refuses any other.

    Raises:
        OSError: the disk is full or the folder cannot be written; no file of the final name is left.
    """
    target = chunk_path(folder, number)
    temporary = folder / f".{target.name}.{uuid.uuid4().hex}"
    tensors = {field.name: np.ascontiguousarray(getattr(chunk, field.name)) for field in fields(chunk)}
    try:
        save_file(tensors, temporary, metadata={"key": key, "number": str(number), "digest": chunk.digest()})
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def read_chunk(folder: Path, number: int, key: str) -> Chunk | None:
    """Read a chunk if it is there and whole.

    Args:
        folder: the pool's folder.
        number: the chunk's number.
        key: the pool's key.

    Returns:
        The chunk, or None where the file is missing, cut off, damaged or of another pool: it has to be
        computed again.
    """
    try:
        with safe_open(chunk_path(folder, number), framework="numpy") as stream:
            marks = stream.metadata() or {}
            names = {field.name for field in fields(Chunk)}
            if set(stream.keys()) != names:
                return None
            chunk = Chunk(**{name: stream.get_tensor(name) for name in names})
    except (FileNotFoundError, SafetensorError):
        return None
    if (marks.get("key"), marks.get("number"), marks.get("digest")) != (key, str(number), chunk.digest()):
        return None
    return chunk


def join_chunks(chunks: list[Chunk], num_samples: int) -> Chunk:
    """Put chunks in order and cut the tail off.

    Args:
        chunks: in order of their numbers.
        num_samples: how many samples are wanted.

    Returns:
        One chunk of that many samples.
    """
    return Chunk(
        **{
            field.name: np.concatenate([getattr(chunk, field.name) for chunk in chunks])[:num_samples]
            for field in fields(Chunk)
        }
    )
