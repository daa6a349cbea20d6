"""Webdataset tar shards: an image and a label per sample, read at random through an index of offsets.

The index takes one pass over the headers of a shard: what is inside, where, and whether it is whole.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from nvg.errors import UserError
from pipelines.sources.class_names import check_class_name
from pipelines.sources.config import SourceConfig
from pipelines.sources.locations import (
    folder_of,
    is_file,
    is_folder,
    join,
    list_files,
    location_of,
    name_of,
    open_binary,
    read_bytes,
    read_range,
    size_of,
    stamps_of,
)
from pipelines.sources.source import ListedSource, hash_names
from pipelines.sources.views import views_of_file

_LABEL_EXTENSIONS = ("cls", "json")
_BLOCK_BYTES = tarfile.BLOCKSIZE
_CLASS_NAMES_FILE = "classes.txt"
_COUNTS_FILE = "index.json"


@dataclass
class _TarSample:
    """One sample of a shard.

    Attributes:
        key: name shared by its members.
        members: extension → (offset in the tar, size in bytes).
        labels: content of its label members, by extension.
    """

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, bytes] = field(default_factory=dict)


def _index_tar(path: str) -> list[_TarSample]:
    """The samples of a shard, in order of first appearance, whatever the order of their members.

    It is an uncompressed tar in the webdataset convention: members of a sample share the name up to the first dot.

    Raises:
        UserError: the file is missing, truncated or no tar, or a member appears twice.
    """
    samples: dict[str, _TarSample] = {}
    num_members, end = 0, 0
    try:
        file_bytes = size_of(path)
        with open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                num_members += 1
                end = member.offset_data + _padded(member.size if member.isreg() else 0)
                if end > file_bytes:
                    raise _truncated(path, file_bytes, end, num_members)
                base, extension = base_plus_ext(member.name)
                if not member.isreg() or base is None or extension is None or _is_hidden(member.name):
                    continue
                extension = extension.lower()
                sample = samples.setdefault(base, _TarSample(base))
                if extension in sample.members:
                    raise UserError(f"{path}: member {member.name} appears twice; write the shard again")
                sample.members[extension] = (member.offset_data, member.size)
                content = archive.extractfile(member) if extension in _LABEL_EXTENSIONS else None
                if content is not None:
                    sample.labels[extension] = content.read()
            end = archive.offset
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except tarfile.TarError as error:
        if num_members == 0 and file_bytes >= _BLOCK_BYTES:
            raise UserError(f"{path}: found no tar archive ({error}), expected an uncompressed tar") from error
        raise _truncated(path, file_bytes, end + _BLOCK_BYTES, num_members) from error
    if file_bytes < end + _BLOCK_BYTES:
        raise _truncated(path, file_bytes, end + 2 * _BLOCK_BYTES, num_members)
    return list(samples.values())


def _read_member(path: str, offset: int, num_bytes: int) -> bytes:
    data = read_range(path, offset, num_bytes)
    if len(data) != num_bytes:
        raise OSError(f"{path}: got {len(data)} bytes at {offset}, expected {num_bytes}; it changed while in use")
    return data


def _truncated(path: str, file_bytes: int, expected_bytes: int, num_members: int) -> UserError:
    return UserError(
        f"{path}: truncated: got {file_bytes} bytes, expected at least {expected_bytes} "
        f"(the end of archive was not reached after {num_members} members); copy or write the shard again"
    )


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in name.split("/"))


class WebdatasetSource(ListedSource):
    """Samples of tar shards with an image member and a label member.

    The label is an integer in `.cls`, or the integer "label" of a `.json` object. Class names are the lines
    of `classes.txt` beside the shards, or else the numbers. An `index.json` in webdataset's index format
    ({"shardlist": [{"url", "nsamples"}]}) beside them is checked against what the shards hold.

    Raises:
        UserError: no shards, a truncated shard, a wrong count, or too many samples without image or label.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.shards = _find_shards(str(config.path))
        image_extensions = {name.lstrip(".") for name in Image.registered_extensions()}
        expected_counts = _expected_counts(folder_of(self.shards[0]))
        keys: list[str] = []
        labels: list[int] = []
        places: list[tuple[int, int, int]] = []
        bad: dict[str, str] = {}
        for number, path in enumerate(self.shards):
            samples = _index_tar(path)
            expected = expected_counts.get(name_of(path), len(samples))
            if expected != len(samples):
                raise UserError(
                    f"{path}: got {len(samples)} samples, expected {expected} by {_COUNTS_FILE}; copy it again"
                )
            for sample in samples:
                key = f"{name_of(path)}/{sample.key}"
                keys.append(key)
                try:
                    place = _image_place(sample, image_extensions)
                    label = _label(sample)
                except ValueError as error:
                    bad[key], label, place = str(error), -1, (0, 0)
                labels.append(label)
                places.append((number, *place))
        kept = self.choose(keys, labels, [num_bytes for _, _, num_bytes in places], bad)
        self.class_names = _class_names(folder_of(self.shards[0]), max(labels, default=-1) + 1)
        self._places = [places[index] for index in kept]

    def read_bytes(self, index: int) -> bytes:
        """See `ImageSource.read_bytes`."""
        number, offset, num_bytes = self._places[index]
        return _read_member(self.shards[number], offset, num_bytes)

    def views_of(self, index: int, data: bytes, views: Sequence[int]) -> list[np.ndarray]:
        """See `ImageSource.views_of`."""
        return views_of_file(data, config=self.config, key=self.keys[index], views=views)

    def stamps(self) -> np.ndarray:
        """See `ImageSource.stamps`; those of a shard's images change together."""
        of_shard = [stamps_of(folder_of(shard), [name_of(shard)])[0] for shard in self.shards]
        return hash_names(f"{of_shard[number]}/{num_bytes}" for number, _, num_bytes in self._places)


def _find_shards(path: str) -> list[str]:
    folder = location_of(path)
    if is_folder(folder):
        names = [name for name, _ in list_files(folder) if "/" not in name and name.endswith(".tar")]
        shards = [join(folder, name) for name in names]
    else:
        shards = [location_of(url) for url in expand_urls(path)]
    if not shards:
        raise UserError(f"{path}: found no *.tar files, expected webdataset shards; change the source's path")
    for shard in shards:
        if not is_file(shard):
            raise UserError(f"{shard}: found no such file, expected a webdataset shard; change the source's path")
    if len(set(map(name_of, shards))) < len(shards):
        raise UserError(f"{path}: two shards have the same file name, expected different names")
    return shards


def _expected_counts(folder: str) -> dict[str, int]:
    path = join(folder, _COUNTS_FILE)
    if not is_file(path):
        return {}
    try:
        shards = json.loads(read_bytes(path))["shardlist"]
        return {name_of(shard["url"]): int(shard["nsamples"]) for shard in shards}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not an index of webdataset shards ({error!r}); repair or remove it") from error


def _image_place(sample: _TarSample, image_extensions: set[str]) -> tuple[int, int]:
    if "\n" in sample.key or "\r" in sample.key:
        raise ValueError("line break in the name")
    found = [name for name in sorted(sample.members) if name in image_extensions]
    if len(found) != 1:
        raise ValueError(f"found {len(found)} image members among {sorted(sample.members)}, expected one")
    return sample.members[found[0]]


def _label(sample: _TarSample) -> int:
    if "cls" in sample.labels:
        value: object = sample.labels["cls"].decode("ascii", "replace").strip()
    elif "json" in sample.labels:
        content = json.loads(sample.labels["json"])
        value = content.get("label") if isinstance(content, dict) else content
    else:
        raise ValueError(f"found members {sorted(sample.members)}, expected a label in .cls or .json")
    try:
        label = int(str(value))
    except ValueError:
        raise ValueError(f"found label {value!r}, expected an integer") from None
    if not 0 <= label < 1 << 16:
        raise ValueError(f"found label {label}, expected 0 to 65535")
    return label


def _class_names(folder: str, num_classes: int) -> list[str]:
    path = join(folder, _CLASS_NAMES_FILE)
    if not is_file(path):
        return [str(label) for label in range(num_classes)]
    names = read_bytes(path).decode().splitlines()
    if len(names) < num_classes:
        raise UserError(
            f"{path}: found {len(names)} class names, expected at least {num_classes}: the shards hold label "
            f"{num_classes - 1}"
        )
    for name in names:
        check_class_name(name, path)
    return names
