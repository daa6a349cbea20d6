"""Webdataset tar shards: an image and a label per sample, read at random through an index of offsets.

Every member is part of a sample, a folder, named as passed over, or a bad input.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from webdataset.shardlists import expand_urls

from eval.decoding import image_suffixes
from eval.locations import (
    folder_of,
    is_file,
    is_folder,
    join,
    location_of,
    name_of,
    read_bytes,
    read_range,
    stamps_of,
    walk,
)
from nvg.errors import UserError
from pipelines.sources.class_names import LABEL_NAMES_FILE, class_names_of_labels, decode_text, whole_number
from pipelines.sources.config import SourceConfig
from pipelines.sources.keys import hash_names
from pipelines.sources.shards import TarIndex, TarSample, index_tar, is_hidden
from pipelines.sources.source import ListedSource, SkippedInput
from pipelines.sources.views import views_of_file

_DOTTED_LABELS = (".cls", ".json")
_COUNTS_FILE = "index.json"
_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma|lz|z|br)|t(gz|bz|bz2|xz|zst|lz))$", re.IGNORECASE)
_BELOW = "shard in a folder below"


class WebdatasetSource(ListedSource):
    """Samples of tar shards with an image member and a label member.

    The label is an integer in `.cls`, or the integer "label" of a `.json` object. Class names are the lines
    of `classes.txt` beside the shards, or else the numbers. An `index.json` in webdataset's index format
    ({"shardlist": [{"url", "nsamples"}]}) beside them is checked against what the shards hold.

    A link is the bytes of the member that it leads to; an image that is met again so is passed over.

    Raises:
        UserError: no shards, a truncated or damaged shard, a wrong count, an image in two classes, or too many samples
            without image or label.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.shards, self.passed_over = _find_shards(str(config.path))
        expected_counts = _expected_counts(folder_of(self.shards[0]))
        listed = _Listed()
        for number, path in enumerate(self.shards):
            index = index_tar(path)
            num_samples = sum(sample.is_regular for sample in index.samples.values())
            expected = expected_counts.get(name_of(path), num_samples)
            if expected != num_samples:
                raise UserError(
                    f"{path}: got {num_samples} samples, expected {expected} by {_COUNTS_FILE}; copy it again"
                )
            _list_samples(listed, index, number, path)
            self.passed_over += [SkippedInput(f"{name_of(path)}/{name}", reason) for name, reason in index.passed_over]
            if not index.samples:
                self.passed_over.append(SkippedInput(name_of(path), "shard without samples"))
        kept = self.choose(listed.keys, listed.labels, [num_bytes for _, _, num_bytes in listed.places], listed.bad)
        folder = folder_of(self.shards[0])
        labels = [label for label in listed.labels if label >= 0]
        self.class_names, self.notes = class_names_of_labels(config, folder, labels, "the shards")
        self._places = [listed.places[index] for index in kept]

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


def _read_member(path: str, offset: int, num_bytes: int) -> bytes:
    data = read_range(path, offset, num_bytes)
    if len(data) != num_bytes:
        raise OSError(f"{path}: got {len(data)} bytes at {offset}, expected {num_bytes}; it changed while in use")
    return data


def _find_shards(path: str) -> tuple[list[str], list[SkippedInput]]:
    """Locations of the shards, and what lies beside them."""
    folder = location_of(path)
    passed_over: list[SkippedInput] = []
    if is_folder(folder):
        names, passed_over = _shards_in(folder)
        shards = [join(folder, name) for name in names]
    else:
        try:
            shards = [folder] if is_file(folder) else [location_of(url) for url in expand_urls(path)]
        except ValueError as error:
            raise UserError(f"{path}: {error}; expected a pattern as shards/{{000..099}}.tar; change it") from error
    if not shards:
        below = sorted({folder_of(item.key) for item in passed_over if item.reason == _BELOW})
        advice = f"it has shards in {', '.join(below)}: give one of these" if below else "change the source's path"
        raise UserError(f"{path}: found no *.tar files, expected webdataset shards; {advice}")
    for shard in shards:
        if not is_file(shard):
            raise UserError(f"{shard}: found no such file, expected a webdataset shard; change the source's path")
    if len(set(map(name_of, shards))) < len(shards):
        raise UserError(f"{path}: two shards have the same file name, expected different names")
    first_of: dict[object, str] = {}
    for shard in shards:
        first = first_of.setdefault(_identity(shard), shard)
        if first != shard:
            passed_over.append(SkippedInput(name_of(shard), f"repeated: the same file as {name_of(first)}"))
    return list(first_of.values()), passed_over


def _shards_in(folder: str) -> tuple[list[str], list[SkippedInput]]:
    names: list[str] = []
    seen = walk(folder)
    passed_over = [SkippedInput(name, reason) for name, reason in seen.passed_over.items()]
    found = [name for name, _, _ in seen.files if name not in (LABEL_NAMES_FILE, _COUNTS_FILE)]
    for name, reason in seen.broken.items():
        if name.lower().endswith(".tar"):
            raise UserError(f"{join(folder, name)}: {reason}; expected a webdataset shard; repair or remove it")
        passed_over.append(SkippedInput(name, reason))
    compressed = [name for name in found if _COMPRESSED.search(name) and "/" not in name]
    if compressed:
        raise UserError(
            f"{folder}: found compressed shards ({', '.join(compressed[:3])}{', …' if len(compressed) > 3 else ''}), "
            "expected uncompressed tars, which are read at random; unpack them (gunzip, unzstd, …) or move them away"
        )
    for name in found:
        is_shard = name.lower().endswith(".tar")
        if is_shard and "/" not in name:
            names.append(name)
        else:
            passed_over.append(SkippedInput(name, _BELOW if is_shard else "not a shard by its name"))
    return names, passed_over


def _identity(shard: str) -> object:
    """The same for two names of one file."""
    if "://" in shard:
        return shard
    status = os.stat(shard)
    return status.st_dev, status.st_ino


@dataclass
class _Listed:
    """Inputs of all shards.

    Attributes:
        keys, labels: of each; -1 where it is bad.
        places: number of the shard, offset and bytes of the image.
        bad: reasons, by key.
    """

    keys: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, label: int, place: tuple[int, int, int]) -> None:
        self.keys.append(key)
        self.labels.append(label)
        self.places.append(place)


def _list_samples(listed: _Listed, index: TarIndex, number: int, path: str) -> None:
    """Add the samples of a shard; a bad one that holds several images is as many bad inputs."""
    shard = name_of(path)
    first_of: dict[int, tuple[str, int]] = {}
    for sample in index.samples.values():
        images, further = _images_of(sample)
        try:
            _, offset, num_bytes = _image_member(sample, images)
            label = _label(sample)
        except ValueError as error:
            names = [sample.members[name][0] for name in images] if len(images) > 1 else [sample.key]
            for name in names:
                listed.bad[f"{shard}/{name}"] = str(error)
                listed.add(f"{shard}/{name}", -1, (number, 0, 0))
            continue
        first, label_of_first = first_of.setdefault(offset, (sample.key, label))
        if label_of_first != label:
            raise UserError(
                f"{path}: found the image of {first} (label {label_of_first}) again in {sample.key} (label {label}), "
                "a link; expected one label for an image; remove one of the two"
            )
        if first != sample.key:
            index.passed_over.append((sample.key, f"repeated: the same image as {first}"))
            continue
        listed.add(f"{shard}/{sample.key}", label, (number, offset, num_bytes))
        index.passed_over += [(sample.members[name][0], "further member of a sample") for name in further]


def _images_of(sample: TarSample) -> tuple[list[str], list[str]]:
    """Extensions of a sample's images, and of what it holds beside its one image that could be one.

    An image called `seg.png` accompanies one called `jpg`, but not if it comes with a label of its own: then several
    samples were merged, whose names hold dots.
    """
    known = _image_extensions()
    plain = [name for name in sample.members if name in known]
    dotted = [name for name in sample.members if "." in name and name.rpartition(".")[2] in known]
    labelled = {name.rpartition(".")[0] for name in sample.members if name.endswith(_DOTTED_LABELS)} - {""}
    if len(plain) == 1 and not any(name.rpartition(".")[0] in labelled for name in dotted):
        return plain, [*dotted, *([""] if "" in sample.members else [])]
    return plain + dotted, []


@cache
def _image_extensions() -> frozenset[str]:
    return frozenset(name.lstrip(".") for name in image_suffixes())


def _image_member(sample: TarSample, images: Sequence[str]) -> tuple[str, int, int]:
    if "\n" in sample.key or "\r" in sample.key:
        raise ValueError("line break in the name")
    if is_hidden(sample.key):
        raise ValueError("hidden or outside: a part of its name begins with a dot; write it under another name")
    if len(images) > 1 and any("." in name for name in images):
        names = [sample.members[name][0] for name in images[:2]]
        raise ValueError(
            f"merged sample: one of {len(images)} images whose names are the same up to the first dot, which ends a "
            f"sample's name ({', '.join(names)}); rename them with no dot but the extension's"
        )
    if len(images) != 1:
        found = f"found {len(images)} image members among {sorted(sample.members)}, expected one"
        raise ValueError("; ".join([*sample.faults.values(), f"no single image: {found}"]))
    if images[0] in sample.faults:
        raise ValueError(sample.faults[images[0]])
    return sample.members[images[0]]


def _label(sample: TarSample) -> int:
    if "cls" in sample.members:
        value: object = _label_content(sample, "cls").strip()
    elif "json" in sample.members:
        try:
            value = json.loads(_label_content(sample, "json"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no label: .json is not JSON: {error}") from None
        if isinstance(value, dict):
            if "label" not in value:
                raise ValueError(f'no label: found {list(value)[:5]} in .json, expected a key "label"')
            value = value["label"]
    else:
        raise ValueError(f"no label: found members {sorted(sample.members)}, expected a label in .cls or .json")
    label = whole_number(str(value))
    if label is None:
        raise ValueError(f"no label: found {value!r}, expected an integer")
    if not 0 <= label < 1 << 16:
        raise ValueError(f"no label: found {label}, expected 0 to 65535")
    return label


def _label_content(sample: TarSample, extension: str) -> str:
    if extension in sample.faults:
        raise ValueError(sample.faults[extension])
    return decode_text(sample.labels[extension], f"{sample.key}.{extension}")


def _expected_counts(folder: str) -> dict[str, int]:
    path = join(folder, _COUNTS_FILE)
    if not is_file(path):
        return {}
    try:
        shards = json.loads(read_bytes(path))["shardlist"]
        return {name_of(shard["url"]): int(shard["nsamples"]) for shard in shards}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: not an index of webdataset shards ({error!r}); repair or remove it") from error
