"""Webdataset tar shards: an image and a label per sample, read at random through an index of offsets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image
from webdataset.shardlists import expand_urls

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
    read_bytes,
)
from pipelines.sources.source import SkippedInput, check_bad_inputs
from pipelines.sources.splitting import select_split
from pipelines.sources.tar_index import TarSample, index_tar, read_member
from pipelines.sources.views import views_of_file

CLASS_NAMES_FILE = "classes.txt"
COUNTS_FILE = "index.json"


class WebdatasetSource:
    """Samples of tar shards with an image member and a label member.

    The label is an integer in `.cls`, or the integer "label" of a `.json` object. Class names are the lines
    of `classes.txt` beside the shards, or else the numbers. An `index.json` in webdataset's index format
    ({"shardlist": [{"url", "nsamples"}]}) beside them is checked against what the shards hold.

    Raises:
        UserError: No shards, a truncated shard, a wrong count, or too many samples without image or label.
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
            samples = index_tar(path)
            expected = expected_counts.get(name_of(path), len(samples))
            if expected != len(samples):
                raise UserError(
                    f"{path}: got {len(samples)} samples, expected {expected} by {COUNTS_FILE}; copy it again"
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
        chosen = select_split(keys, labels, config)
        usable = [index for index in chosen if keys[index] not in bad]
        self.num_found = len(keys)
        self.keys = [keys[index] for index in usable]
        self.labels = np.asarray([labels[index] for index in usable], dtype=np.int64)
        self.skipped = [SkippedInput(keys[index], bad[keys[index]]) for index in chosen if keys[index] in bad]
        self.class_names = _class_names(folder_of(self.shards[0]), max(labels, default=-1) + 1)
        self.fingerprint = _fingerprint([(keys[index], places[index][2]) for index in chosen])
        self._places = [places[index] for index in usable]
        check_bad_inputs(self.skipped, self)
        if not self.keys:
            raise UserError(f"{config.path}: split {config.split!r} of {len(keys)} samples holds no image")

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int, view: int) -> np.ndarray:
        """Return one view as uint8 (S, S, channels); see `ImageSource.read`."""
        return self.read_views(index, [view])[0]

    def read_views(self, index: int, views: Sequence[int]) -> list[np.ndarray]:
        """Return views of an image; see `ImageSource.read_views`."""
        number, offset, num_bytes = self._places[index]
        data = read_member(self.shards[number], offset, num_bytes)
        return views_of_file(data, config=self.config, key=self.keys[index], views=views)


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
    path = join(folder, COUNTS_FILE)
    if not is_file(path):
        return {}
    try:
        shards = json.loads(read_bytes(path))["shardlist"]
        return {name_of(shard["url"]): int(shard["nsamples"]) for shard in shards}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not an index of webdataset shards ({error!r}); repair or remove it") from error


def _image_place(sample: TarSample, image_extensions: set[str]) -> tuple[int, int]:
    if "\n" in sample.key or "\r" in sample.key:
        raise ValueError("line break in the name")
    found = [name for name in sorted(sample.members) if name in image_extensions]
    if len(found) != 1:
        raise ValueError(f"found {len(found)} image members among {sorted(sample.members)}, expected one")
    return sample.members[found[0]]


def _label(sample: TarSample) -> int:
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
    path = join(folder, CLASS_NAMES_FILE)
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


def _fingerprint(entries: list[tuple[str, int]]) -> str:
    digest = hashlib.sha256()
    for key, num_bytes in sorted(entries):
        digest.update(f"{key}\0{num_bytes}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
