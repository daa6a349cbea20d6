"""Reads the tensors of a Lightning checkpoint without trusting it.

Such a file is a zip archive: `data.pkl` describes the objects, `data/<key>` holds the bytes of each storage. The pickle
is read by an unpickler that imports nothing and calls nothing outside this file: a tensor becomes a
description, which is turned into a memory-mapped tensor afterwards, and every other class becomes one inert
placeholder. Optimizer states, callbacks and hyper-parameters are read over in the same way.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvg.errors import UserError

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LOCAL_HEADER_BYTES = 30
# What torch.compile, DDP, FSDP and recomputed activations put into the names of what they wrap.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def read_release_file(path: str | Path) -> dict[str, Tensor]:
    """The `state_dict` of a Lightning checkpoint; nothing in the file is executed.

    Args:
        path: a .ckpt as torch.save writes it since torch 1.6.

    Returns:
        name → tensor on the CPU, mapped from the file: bytes are read when they are used. What torch.compile, DDP or
        FSDP put into names is left out.

    Raises:
        UserError: there is no such file, it is damaged, or it holds something else.

    Release: ae.ckpt, d16.ckpt, d20.ckpt, d24.ckpt
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is no file; expected a released checkpoint such as d16.ckpt: check the path")
    pickled, records = _read_archive(path)
    state = _state_dict(_unpickle(pickled, path), path)
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _map_tensor(described, content, records, f"{path}: {name}") for name, described in state.items()}


def read_release_note(path: str | Path, name: str) -> str | None:
    """A text that lies beside the `state_dict`, as `nvg export-release` puts it there; None where there is none."""
    root = _unpickle(_read_archive(Path(path))[0], Path(path))
    found = root.get(name) if isinstance(root, dict) else None
    return found if isinstance(found, str) else None


class _Storage(NamedTuple):
    """One storage: type, key of its bytes in the archive, number of elements."""

    dtype: torch.dtype
    key: str
    num_elements: int


class _Described(NamedTuple):
    """What the pickle says about one tensor."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _PlainDict(dict[Any, Any]):
    """Stands for OrderedDict; attributes such as torch's `_metadata` are dropped."""

    def __setstate__(self, state: object) -> None:
        pass


class _InertType(type):
    """Accepts everything a pickle can do to an object and does nothing."""

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        return cls

    def __setstate__(cls, state: object) -> None:
        pass

    def __setitem__(cls, key: object, value: object) -> None:
        pass

    def append(cls, item: object) -> None:
        pass

    extend = add = append


class _Inert(metaclass=_InertType):
    """Stands for every foreign class, for every function, and for whatever a call of one would have made."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        return cls


class _TensorUnpickler(pickle.Unpickler):
    """Knows dictionaries and tensors; looks nothing up outside this file."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name == "torch" and global_name in _DTYPES:
            return _DTYPES[global_name]
        return _KNOWN.get((module_name, global_name), _Inert)

    def persistent_load(self, pid: Any, /) -> _Storage:
        kind, dtype, key, _device, num_elements = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown storage {kind!r}")
        return _Storage(dtype, str(key), int(num_elements))


def _describe_tensor(storage: object, offset: int, shape: Any, stride: Any, *_rest: object) -> _Described:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Described(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


def _describe_parameter(tensor: object, *_rest: object) -> object:
    return tensor


_KNOWN = {
    ("collections", "OrderedDict"): _PlainDict,
    ("torch._utils", "_rebuild_tensor_v2"): _describe_tensor,
    ("torch._utils", "_rebuild_parameter"): _describe_parameter,
    ("torch", "Size"): tuple,
}


def _read_archive(path: Path) -> tuple[bytes, dict[str, zipfile.ZipInfo]]:
    """The pickle, and where the bytes of each storage are."""
    try:
        with zipfile.ZipFile(path) as archive:
            folders = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(folders) != 1:
                raise UserError(f"{path} is a zip archive, but none of torch.save; expected a released checkpoint")
            if f"{folders[0]}byteorder" in archive.namelist() and archive.read(f"{folders[0]}byteorder") != b"little":
                raise UserError(f"{path} was written on a big-endian machine; save it again on a little-endian one")
            prefix = f"{folders[0]}data/"
            stored = [info for info in archive.infolist() if info.filename.startswith(prefix)]
            return archive.read(f"{folders[0]}data.pkl"), {info.filename.removeprefix(prefix): info for info in stored}
    except UserError:
        raise
    except Exception as error:  # damage makes zipfile ask for passwords, other compressions, names that are not there
        with path.open("rb") as file:
            begins_as_archive = file.read(4) == b"PK\3\4"
        if begins_as_archive:
            raise UserError(f"{path} is cut off or damaged ({error}); fetch the file again") from error
        raise UserError(f"{path} is no archive of torch.save ({error}); expected a released checkpoint") from error


def _unpickle(pickled: bytes, path: Path) -> object:
    try:
        return _TensorUnpickler(io.BytesIO(pickled), encoding="utf-8").load()
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise UserError(f"{path}: its pickle is damaged ({error!r}); fetch the file again") from error


def _state_dict(root: object, path: Path) -> dict[str, _Described]:
    state = root.get("state_dict") if isinstance(root, dict) else None
    if not isinstance(state, dict) or not state:
        found = f"a dictionary of {sorted(map(str, root))[:10]}" if isinstance(root, dict) else "no dictionary"
        raise UserError(f"{path} holds {found}; expected a Lightning checkpoint with tensors under 'state_dict'")
    odd = [str(name) for name, value in state.items() if not (isinstance(name, str) and isinstance(value, _Described))]
    if odd:
        raise UserError(
            f"{path}: {len(odd)} entries of 'state_dict' are no plain tensors ({', '.join(odd[:10])}); "
            "expected names and tensors only"
        )
    plain = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): value for name, value in state.items()
    }
    if len(plain) < len(state):
        raise UserError(
            f"{path} holds {len(state) - len(plain)} tensors twice, once below one of {', '.join(sorted(_WRAPPERS))}; "
            "expected the weights of one network: save its state_dict alone"
        )
    return plain


def _map_tensor(described: _Described, content: mmap.mmap, records: dict[str, zipfile.ZipInfo], where: str) -> Tensor:
    dtype, key, num_elements = described.storage
    record = records.get(key)
    if (
        record is None
        or record.file_size != num_elements * dtype.itemsize
        or record.compress_type != zipfile.ZIP_STORED
    ):
        raise UserError(f"{where}: its bytes are missing or of another length; fetch the file again")
    try:
        if num_elements:
            flat = torch.frombuffer(content, dtype=dtype, count=num_elements, offset=_data_offset(content, record))
        else:
            flat = torch.empty(0, dtype=dtype)
        return flat.as_strided(described.shape, described.stride, described.offset)
    except (RuntimeError, ValueError, OverflowError, struct.error) as error:
        raise UserError(f"{where}: shape {described.shape} does not fit its bytes; fetch the file again") from error


def _data_offset(content: mmap.mmap, record: zipfile.ZipInfo) -> int:
    """Where the bytes of an archive member begin: its local header has name and padding of its own lengths."""
    name_bytes, extra_bytes = struct.unpack_from("<HH", content, record.header_offset + 26)
    return record.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
