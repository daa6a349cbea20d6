"""Images that lie in files: read by index from an npz or a folder made elsewhere, and written for other evaluators.

An npz holds `arr_0`, uint8 (images, height, width, channels), as ADM's evaluator reads it. Its images are mapped, not
loaded: 50,000 of 256 pixels are 10 GB.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cluster.files import write_atomically
from eval.decoding import Pixels, decode_image, image_suffixes, read_header
from eval.locations import walk
from nvg.checkpoints import file_hash
from nvg.errors import BadImage, UserError
from nvg.pixels import ImageArray, check_images

IMAGES_KEY = "arr_0"
LISTING_FILE = "samples.json"  # in a folder of samples: what was written there
_NUM_NAMED = 3
_NPY_BEGINNING, _ZIP_BEGINNING = b"\x93NUMPY", b"PK"
_LOCAL_HEADER_BYTES = 30


class ImageReader(Protocol):
    """Images by index, picklable."""

    def __len__(self) -> int: ...

    def identity(self) -> dict[str, Any]:
        """Everything that decides the images, as JSON values."""
        ...

    def read(self, indices_B: NDArray[np.int64]) -> tuple[ImageArray, NDArray[np.bool_]]:
        """Images (B, H, W, C), and which of them could be read; the others are black."""
        ...


class NpzImages:
    """The images of an npz file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return NpzImages, (self.path,)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def images(self) -> ImageArray:
        """All images, mapped from the file where it is not compressed.

        Raises:
            UserError: the file is missing, cut off, or holds no images.
        """
        found = read_npz_array(self.path, IMAGES_KEY)
        try:
            check_images(found, IMAGES_KEY)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}; floats are to be rounded to bytes by whoever made them") from error
        return found

    @property
    def remarks(self) -> list[str]:
        """None: an npz file holds images alone."""
        return []

    def identity(self) -> dict[str, Any]:
        """Hash of the file, count and shape."""
        return {"kind": "npz", "sha256": file_hash(self.path), "shape": list(self.images.shape)}

    def read(self, indices_B: NDArray[np.int64]) -> tuple[ImageArray, NDArray[np.bool_]]:
        """Images by row; all can be read."""
        return np.ascontiguousarray(self.images[indices_B]), np.ones(len(indices_B), np.bool_)


class FolderImages:
    """The image files below a folder, in order of their paths. All are looked at when it is opened, none is decoded.

    They are listed as those of a source are: see `eval.locations.walk`.

    Attributes:
        files: the images.
        passed_over: heading to names of what is no image, or the same one again.
        changes: how many images are "turned" or "recoloured" when they are shown.

    Raises:
        UserError: there is no image, a file is damaged or of another size than the first, or a folder cannot be read.
    """

    def __init__(self, path: str, *, channels: int = 3, pixels: Pixels = "shown") -> None:
        self.path, self.channels = path, channels
        self.pixels: Pixels = pixels
        self.passed_over: dict[str, list[str]] = {}
        self.files = self._list()
        if not self.files:
            found = "; ".join(self.remarks) or "the folder is empty"
            raise UserError(f"samples: found no image in {path} ({found}), expected image files such as .png")
        self.changes: Counter[str] = Counter()
        self._look_at_all()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def remarks(self) -> list[str]:
        """What was passed over, with reasons and names."""
        return [
            f"{len(names)} {reason}: {', '.join(names[:_NUM_NAMED])}{', …' if len(names) > _NUM_NAMED else ''}"
            for reason, names in self.passed_over.items()
        ]

    def identity(self) -> dict[str, Any]:
        """Hash over names and contents, count, shape, kinds of files, and how they are read."""
        kinds = sorted({file.suffix.lower() for file in self.files})
        shape = [len(self.files), *self.side, self.channels]
        return {"kind": "folder", "sha256": self._sha256, "shape": shape, "files": kinds, "pixels": self.pixels}

    def read(self, indices_B: NDArray[np.int64]) -> tuple[ImageArray, NDArray[np.bool_]]:
        """Images by place in the order.

        Raises:
            UserError: a file is damaged behind its header.
        """
        images = np.empty((len(indices_B), *self.side, self.channels), np.uint8)
        for row, index in enumerate(indices_B.tolist()):
            file = self.files[index]
            try:
                image = decode_image(file.read_bytes(), self.channels, pixels=self.pixels)
            except (OSError, BadImage) as error:
                raise _unreadable(file, error) from error
            images[row] = np.asarray(image).reshape(images.shape[1:])
        return images, np.ones(len(images), np.bool_)

    def _list(self) -> list[Path]:
        found = walk(str(Path(self.path).absolute()))
        self._pass_over(found.passed_over)
        self._pass_over(found.broken)
        names = [name for name, _, _ in found.files]
        images = {name for name in names if os.path.splitext(name)[1].lower() in image_suffixes()}
        self._pass_over({name: "not an image by its name" for name in names if name not in images})
        return sorted(Path(self.path, name) for name in images)

    def _pass_over(self, reasons: Mapping[str, str]) -> None:
        for name, reason in reasons.items():
            self.passed_over.setdefault(reason.partition(":")[0], []).append(ascii(name)[1:-1])

    def _look_at_all(self) -> None:
        total = hashlib.sha256()
        for file in self.files:
            try:
                data = file.read_bytes()
                height, width, changes = read_header(data, pixels=self.pixels)
            except (OSError, BadImage) as error:
                raise _unreadable(file, error) from error
            if file is self.files[0]:
                self.side = (height, width)
            elif self.side != (height, width):
                raise UserError(
                    f"samples: found {file} of {(height, width)} pixels, expected {self.side} as of "
                    f"{self.files[0].name}; images of one size are compared"
                )
            self.changes.update(changes)
            line = f"{file.relative_to(self.path).as_posix()} {hashlib.sha256(data).hexdigest()}"
            total.update(line.encode("utf-8", "surrogateescape"))
        self._sha256 = total.hexdigest()


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"samples: found {file}, which cannot be read as an image ({error}); remove it")


def open_images(path: str, *, channels: int = 3, pixels: Pixels = "shown") -> NpzImages | FolderImages:
    """Images made elsewhere: an npz file, or a folder of image files.

    Args:
        path: file or folder.
        channels, pixels: how the files of a folder are decoded; see `eval.decoding.decode_image`.

    Raises:
        UserError: there is neither, or what is there cannot be read.
    """
    if Path(path).is_dir():
        return FolderImages(path, channels=channels, pixels=pixels)
    if not Path(path).is_file():
        raise UserError(f"samples: found nothing at {path}, expected an npz file or a folder of images")
    return NpzImages(path)


def npz_names(path: str) -> list[str]:
    """Names of the arrays of an npz file.

    Raises:
        UserError: the file is missing or is no npz file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except FileNotFoundError:
        raise UserError(f"{path}: found no such file, expected an npz file") from None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise UserError(f"{path}: cannot be read as an npz file ({error}); {_advice(path)}") from error


def _advice(path: str) -> str:
    """What to do about a file that is no whole zip archive, by how it begins."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(len(_NPY_BEGINNING))
    except OSError:
        return "check its permissions"
    if beginning == _NPY_BEGINNING:
        return f"it is one array as np.save writes it: write it with np.savez(path, {IMAGES_KEY}=images)"
    if beginning.startswith(_ZIP_BEGINNING):
        return "it may be cut off, copy it again"
    return (
        f"it is a file of another kind: write one with np.savez(path, {IMAGES_KEY}=images), or give a folder of images"
    )


def read_npz_array(path: str, name: str) -> NDArray[Any]:
    """One array of an npz file, without running anything pickled in it; mapped where it is not compressed.

    Raises:
        UserError: the file or the array is missing, cut off, or holds objects.
    """
    if name not in (names := npz_names(path)):
        raise UserError(f"{path}: found the arrays {', '.join(names) or 'none'}, expected {name}")
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(f"{name}.npy")
            with archive.open(entry) as stream:
                shape, column_major, dtype = _npy_header(stream, entry.file_size)
                start = stream.tell()
        if entry.compress_type != zipfile.ZIP_STORED or column_major or dtype.hasobject or 0 in shape:
            with np.load(path, allow_pickle=False) as arrays:
                return arrays[name]
        with open(path, "rb") as file:
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER_BYTES)
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        offset = entry.header_offset + _LOCAL_HEADER_BYTES + lengths + start
        return np.memmap(path, dtype, mode="r", offset=offset, shape=shape)
    except Exception as error:  # damage makes zipfile and NumPy stumble over anything
        raise UserError(f"{path}: {name} cannot be read ({error}); the file may be cut off, copy it again") from error


def read_npy(path: str | Path) -> NDArray[Any]:
    """The array of an npy file, without running anything pickled in it.

    Raises:
        UserError: the file is none, cut off, or holds objects.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(_ZIP_BEGINNING)) == _ZIP_BEGINNING:
                raise ValueError("it is an .npz file; expected one array")
            file.seek(0)
            _npy_header(file, os.fstat(file.fileno()).st_size)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # as above
        raise UserError(f"{path} is no .npy file that can be read ({error}); save one with numpy.save") from error


def _npy_header(stream: Any, num_bytes: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an array in a stream of so many bytes; a ValueError where they do not fit these."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_major, dtype = read(stream)
    expected = stream.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or (expected != num_bytes and not dtype.hasobject):
        raise ValueError(f"found {num_bytes} bytes, expected {expected} of {dtype} {shape}")
    return shape, column_major, dtype


def write_npz(path: Path, arrays: dict[str, NDArray[Any]], images: tuple[int, Iterable[ImageArray]] | None) -> None:
    """Write an npz file whose images never lie in memory all at once; grey ones become RGB, as evaluators want them.

    Args:
        path: the file; written under a temporary name first.
        arrays: what else it holds.
        images: their count, and blocks of uint8 (rows, H, W, C) that make up `arr_0`; None leaves them out.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
            if images is not None:
                with archive.open(f"{IMAGES_KEY}.npy", "w", force_zip64=True) as stream:
                    _write_images(stream, *images)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_images(stream: Any, count: int, blocks: Iterable[ImageArray]) -> None:
    written = 0
    for block in blocks:
        block = block.repeat(3 // block.shape[-1], axis=-1)
        if not written:
            shape = (count, *block.shape[1:])
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        stream.write(np.ascontiguousarray(block).tobytes())
        written += len(block)
    assert written == count, f"{written} images written, {count} announced"


def check_sample_folder(key: str, folder: Path) -> list[Path]:
    """Make a folder for samples, or make sure that one which is there holds no images but those that it lists.

    Args:
        key: the setting that names it.

    Returns:
        What an earlier run wrote into it, by its `samples.json`.

    Raises:
        UserError: it holds other images; they would be scored with the samples as one set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        listed = json.loads((folder / LISTING_FILE).read_bytes())["files"]
        own = {path for name in listed if (path := folder / name).is_file() and path.parent == folder}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        own = set()
    suffixes = Image.registered_extensions()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and path not in own:
            found = f"{folder}, which holds {path.relative_to(folder)}, an image that its {LISTING_FILE} does not list"
            raise UserError(
                f"{key} is {found}; expected a folder of its own: what lies there would be taken for a sample; "
                f"change {key}, or empty that folder"
            )
    return sorted(own)


def begin_sample_folder(key: str, folder: Path, names: Sequence[str]) -> int:
    """Remove what an earlier run wrote into a folder for samples, and list what is written now.

    Returns:
        How many files went.

    Raises:
        UserError: see `check_sample_folder`.
    """
    old = check_sample_folder(key, folder)
    for listed in ({*names, *(path.name for path in old)}, names):  # whenever it is stopped, its files are listed
        write_atomically(folder / LISTING_FILE, f"{json.dumps({'files': sorted(listed)}, indent=0)}\n".encode())
        for path in old:
            path.unlink(missing_ok=True)
    return len(old)


def write_png_folder(folder: Path, count: int, blocks: Iterable[ImageArray], *, key: str = "samples_folder") -> int:
    """Write images as `000000.png`, `000001.png`, … in order of the sample index, in the place of an earlier run's.

    Returns:
        How many files of an earlier run went.
    """
    names = [f"{number:06d}.png" for number in range(count)]
    num_removed = begin_sample_folder(key, folder, names)
    for name, image in zip(names, (image for block in blocks for image in block), strict=True):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(folder / name)
    return num_removed
