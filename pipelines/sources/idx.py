"""The four IDX files of MNIST and its relatives (Fashion-MNIST, KMNIST, …): images and labels of `train` and `t10k`.

A file that lies unpacked on this machine is read row by row. A gzipped or remote one is held unpacked, once a process.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from eval.locations import (
    is_folder,
    join,
    junk_heading,
    list_folder,
    location_of,
    name_of,
    open_binary,
    read_range,
    size_of,
    stamps_of,
)
from nvg.bounds import refuse
from nvg.errors import BadImage, UserError
from pipelines.sources.class_names import LABEL_NAMES_FILE, class_names_of_labels
from pipelines.sources.config import SourceConfig
from pipelines.sources.keys import hash_names
from pipelines.sources.source import ListedSource, SkippedInput, part_of
from pipelines.sources.views import views_of_picture

_TRAIN, _TEST = "train", "t10k"
_NUM_DIMS = {"images": 3, "labels": 1}
_UNSIGNED_BYTES = 8
_CHUNK_BYTES = 1 << 20
_MOST_HELD_BYTES = 2 << 30
_NUM_HELD = 4


@dataclass(frozen=True)
class _IdxFile:
    """What a file says of itself.

    Attributes:
        location: of the file.
        shape: (N,) of labels, (N, H, W) of images.
        is_held: not read where it lies, since it is gzipped or remote.
    """

    location: str
    shape: tuple[int, ...]
    is_held: bool

    @property
    def start(self) -> int:
        """Bytes before the numbers."""
        return 4 + 4 * len(self.shape)

    @property
    def num_bytes(self) -> int:
        """Of the whole file, unpacked."""
        return self.start + math.prod(self.shape)

    def describe(self) -> str:
        """Its content in words."""
        count = f"{self.shape[0]:,}"
        return f"{count} images of {self.shape[1]}×{self.shape[2]} pixels" if self.shape[1:] else f"{count} labels"


class IdxSource(ListedSource):
    """Grey images of one size. "test" is t10k; a hash share of the training file is "judge".

    Raises:
        UserError: a file is missing, of another format, cut off or damaged, two do not belong together, or there are
            fewer class names than labels.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config, self.root = config, location_of(str(config.path))
        found, self.passed_over = _find_files(self.root)
        files = {name: _read_header(location, name[1]) for name, location in found.items()}
        label_of: dict[str, list[int]] = {}
        for part in (_TRAIN, _TEST):
            images, labels = files[part, "images"], files[part, "labels"]
            if images.shape[0] != labels.shape[0]:
                raise UserError(
                    f"{images.location}: holds {images.describe()}, and {name_of(labels.location)} holds "
                    f"{labels.describe()}; expected as many; one is of another part or data set: copy both again"
                )
            label_of[part] = list(_content(labels)[labels.start :])
        wanted = {"all": [_TRAIN, _TEST], "test": [_TEST]}.get(config.split, [_TRAIN])
        self._images = {part: files[part, "images"] for part in wanted}
        self._check_padding()
        self._digests = {part: _digest(file) for part, file in self._images.items()}
        self._written = [name_of(files[part, what].location) for part in wanted for what in _NUM_DIMS]
        rows = [(part, row) for part in label_of for row in range(len(label_of[part]))]
        keys = [f"{part}/{row:05d}" for part, row in rows]
        labels = [label for part in label_of for label in label_of[part]]
        parts = ["test" if key.startswith(_TEST) else part_of(key, config, has_test=True) for key in keys]
        contents = [self._digests.get(part, "") for part, _ in rows]  # of those not wanted nothing is kept
        kept = self.choose(keys, labels, contents, {}, parts=parts, with_labels=True)
        self._rows = [rows[index] for index in kept]
        self.class_names, self.notes = class_names_of_labels(config, self.root, labels, "the files")

    def _check_padding(self) -> None:
        for file in self._images.values():
            if self.config.fit == "pad" and max(file.shape[1:]) > self.config.image_size:
                expected = f"{max(file.shape[1:])} or more with source.fit=pad: {file.location} has {file.describe()}"
                advice = "change it, or set source.fit=resize"
                raise refuse("source.image_size", self.config.image_size, expected, advice)

    def read_bytes(self, index: int) -> bytes:
        """See `ImageSource.read_bytes`; the pixels, row by row."""
        part, row = self._rows[index]
        file = self._images[part]
        num_bytes = math.prod(file.shape[1:])
        start = file.start + row * num_bytes
        if file.is_held:
            return _held(file, self._digests[part])[start : start + num_bytes]
        data = read_range(file.location, start, num_bytes)
        if len(data) != num_bytes:
            raise OSError(f"{file.location}: got {len(data)} of {num_bytes} bytes at {start}; it changed while in use")
        return data

    def views_of(self, index: int, data: bytes, views: Sequence[int]) -> list[np.ndarray]:
        """See `ImageSource.views_of`."""
        shape = self._images[self._rows[index][0]].shape[1:]
        if len(data) != math.prod(shape):
            raise BadImage(f"{len(data)} bytes, expected {shape[0]}×{shape[1]} pixels")
        image = Image.fromarray(np.frombuffer(data, np.uint8).reshape(shape))
        image = image if self.config.image_channels == 1 else image.convert("RGB")
        return views_of_picture(image, config=self.config, key=self.keys[index], views=views)

    def stamps(self) -> np.ndarray:
        """See `ImageSource.stamps`; those of all images change together."""
        stamp = "/".join(stamps_of(self.root, self._written))
        return np.full(len(self), hash_names([stamp])[0])


def _find_files(root: str) -> tuple[dict[tuple[str, str], str], list[SkippedInput]]:
    """Locations by (part, "images" or "labels"), and what lies beside them."""
    if not is_folder(root):
        raise UserError(f"{root}: found no such folder, expected one with the four IDX files; change the source's path")
    entries = list_folder(root)
    there = {entry.name for entry in entries if entry.kind == "file"}
    found: dict[tuple[str, str], str] = {}
    repeated: dict[str, str] = {}
    for part in (_TRAIN, _TEST):
        for what, num_dims in _NUM_DIMS.items():
            names = [f"{part}-{what}{mark}idx{num_dims}-ubyte" for mark in "-."]
            plain, packed = ([f"{name}{end}" for name in names if f"{name}{end}" in there] for end in ("", ".gz"))
            chosen = plain or packed
            if len(chosen) != 1:
                seen = " and ".join(chosen) or f"none among {len(there)} files"
                raise UserError(
                    f"{root}: found {seen}, expected one {names[0]} or {names[0]}.gz; the four files are the images "
                    "(idx3) and labels (idx1) of train and of t10k; copy what is missing, remove what is there twice, "
                    "or change the source's path"
                )
            found[part, what] = join(root, chosen[0])
            repeated.update(dict.fromkeys(packed if plain else [], f"repeated: {chosen[0]} is the same unpacked"))
    known = {*map(name_of, found.values()), LABEL_NAMES_FILE}
    beside = [entry.name for entry in entries if entry.name not in known]
    return found, [
        SkippedInput(name, repeated.get(name) or junk_heading(name) or "none of the four files") for name in beside
    ]


def _read_header(location: str, what: str) -> _IdxFile:
    """What a file holds by its first bytes, and whether it is as long as they say, where that can be seen at once.

    Raises:
        UserError: it is no IDX file of images or labels, cut off, or longer.
    """
    try:
        with _opened(location) as file:
            is_packed, head = isinstance(file, gzip.GzipFile), file.read(16)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(location, error) from error
    magic, num_dims = int.from_bytes(head[:4], "big"), _NUM_DIMS[what]
    if len(head) < 4 + 4 * num_dims:
        raise UserError(f"{location}: found {len(head)} bytes, expected IDX {what}; it is cut off: copy it again")
    if magic != _UNSIGNED_BYTES << 8 | num_dims:
        kinds = {_UNSIGNED_BYTES << 8 | dims: kind for kind, dims in _NUM_DIMS.items()}
        seen, advice = f"the magic number {magic}", "put the data set's own file here"
        if magic in kinds:
            seen, advice = f"{seen} (IDX {kinds[magic]})", "the files of images and labels are swapped: rename them"
        raise UserError(
            f"{location}: found {seen}, expected {_UNSIGNED_BYTES << 8 | num_dims} (IDX {what} in unsigned bytes); "
            f"{advice}"
        )
    shape = tuple(int.from_bytes(head[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(num_dims))
    found = _IdxFile(location, shape, is_held=is_packed or "://" in location)
    if not all(shape):
        raise UserError(f"{location}: holds {found.describe()}, expected one or more; copy it again")
    if not is_packed and size_of(location) != found.num_bytes:
        raise _of_other_length(found, size_of(location))
    if found.is_held and found.num_bytes > _MOST_HELD_BYTES:
        raise UserError(
            f"{location}: {found.describe()} need {found.num_bytes / 2**30:.1f} GiB; a gzipped or remote file is held "
            f"in memory, expected at most {_MOST_HELD_BYTES / 2**30:.0f} GiB; unpack it on this machine, where it is "
            "read row by row"
        )
    return found


@contextmanager
def _opened(location: str) -> Iterator[BinaryIO | gzip.GzipFile]:
    """The content of a file: what it holds packed, whatever it is called."""
    with open_binary(location) as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not is_packed:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked


def _content(file: _IdxFile) -> bytes:
    """The whole file, unpacked and checked; no more is held than its header says.

    Raises:
        UserError: it is damaged, cut off or longer.
    """
    chunks: list[bytes] = []
    num_bytes = 0
    try:
        with _opened(file.location) as opened:
            while num_bytes <= file.num_bytes and (chunk := opened.read(_CHUNK_BYTES)):
                chunks.append(chunk)
                num_bytes += len(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(file.location, error, num_bytes) from error
    if num_bytes != file.num_bytes:
        raise _of_other_length(file, num_bytes)
    return b"".join(chunks)


def _of_other_length(file: _IdxFile, num_bytes: int) -> UserError:
    short = num_bytes < file.num_bytes
    return UserError(
        f"{file.location}: found {'' if short else 'at least '}{num_bytes:,} bytes, expected {file.num_bytes:,} for "
        f"{file.describe()}; it is {'cut off' if short else 'longer than its header says'}: copy it again"
    )


def _damaged(location: str, error: Exception, num_bytes: int = 0) -> UserError:
    return UserError(
        f"{location}: cannot be read beyond byte {num_bytes:,} of its content: {error}; it is damaged or cut off: copy "
        "it again"
    )


# Content by its digest, the last ones used.
_contents: OrderedDict[str, bytes] = OrderedDict()
_lock = threading.Lock()


def _digest(file: _IdxFile) -> str:
    """sha256 of the content, which stays at hand where it is held."""
    if not file.is_held:
        hashed = hashlib.sha256()
        with open_binary(file.location) as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                hashed.update(chunk)
        return hashed.hexdigest()
    data = _content(file)
    digest = hashlib.sha256(data).hexdigest()
    with _lock:
        _keep(digest, data)
    return digest


def _held(file: _IdxFile, digest: str) -> bytes:
    """The content that a source was opened with; an OSError where the file has become another."""
    with _lock:
        if digest not in _contents:
            try:
                data = _content(file)
            except UserError as error:
                raise OSError(f"it changed while in use: {error}") from error
            if hashlib.sha256(data).hexdigest() != digest:
                raise OSError(f"{file.location}: it changed while in use")
            _keep(digest, data)
        _contents.move_to_end(digest)
        return _contents[digest]


def _keep(digest: str, data: bytes) -> None:
    _contents[digest] = data
    while len(_contents) > _NUM_HELD:
        _contents.popitem(last=False)
