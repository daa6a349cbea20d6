"""What a precompute job will do, decided before it starts, and where each piece of it goes on disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from cluster.files import sync_path, write_atomically
from nvg.errors import Changed, UserError
from nvg.json_files import Count, read_json
from nvg.records import MANIFEST_FILE, check_shard_size, read_index, read_manifest, require_match
from nvg.records.shard import INDEX_FILE
from nvg.tokenizer.tokenizer import GRANULARITY
from pipelines.precompute.config import PrecomputeConfig
from pipelines.sources import ImageSource
from pipelines.sources.source import split_rule

PART_MANIFEST = "part.manifest"
DEQUANTIZER_NAME = "dequantizer"
SOURCES_FILE = "sources.txt"
_PLAN_FILE = "plan.json"
_LOCK_FILE = ".precompute.lock"
# What a description leaves out: it was so before there was a setting, and those records still are of this job.
_LEFT_OUT = {
    "structure": GRANULARITY,
    "view_flip": False,
    "fit": "resize",
    "repa": None,
    "pixels": "stored",
    "max_megapixels": 64.0,
    "precision": "not recorded",  # on a CPU always fp32; on a GPU cuDNN chose, and the job is another one
}


@dataclass(frozen=True)
class Plan:
    """Everything the bytes of the data set depend on, and the units of work that follow from it.

    Attributes:
        description: the recorded values, JSON.
        units: source indices of each unit, int64: fixed slices of a seed-shuffled list, of groups where images are read
            in groups.
    """

    description: dict[str, Any]
    units: list[np.ndarray]

    @property
    def fingerprint(self) -> str:
        """sha256 of the description, hexadecimal."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()


def make_plan(
    config: PrecomputeConfig,
    source: ImageSource,
    tokenizer_hash: str,
    structure: str = GRANULARITY,
    repa: Mapping[str, Any] | None = None,
) -> Plan:
    """Divide a source into units; equal arguments give an equal plan.

    The number of actors is left out on purpose: it changes nothing.

    Args:
        tokenizer_hash: sha256 of the tokenizer's weights.
        structure: where its maps come from; recorded unless they are the image's own.
        repa: what is stored beside the records, if anything.
    """
    description = {
        "tokenizer_hash": tokenizer_hash,
        "tokenizer_weights": config.tokenizer_weights,
        "source_kind": config.source.kind,
        "source_split": config.source.split,
        "source_fingerprint": source.fingerprint,
        **split_rule(config.source),
        "class_names": source.class_names,
        "num_inputs": len(source),
        "image_size": config.source.image_size,
        "image_channels": config.source.image_channels,
        "view_policy": config.source.view_policy,
        "num_views": config.source.num_views,
        "view_seed": config.source.seed,
        "batch_size": config.batch_size,
        "images_per_unit": config.images_per_unit,
        "shard_bytes": config.shard_bytes,
        "threads_per_actor": config.threads_per_actor,
        "device": config.device,
        **({} if config.device == "cpu" else {"precision": config.precision}),
        "seed": config.seed,
        **({} if structure == GRANULARITY else {"structure": structure}),
        **({"view_flip": True} if config.source.flip else {}),
        **config.source.decoding,
        **({"repa": dict(repa)} if repa else {}),
        **({} if source.groups is None else {"source_groups": hashlib.sha256(source.groups.tobytes()).hexdigest()}),
    }
    order = _shuffled(len(source), source.groups, config.seed)
    starts = range(0, len(order), config.images_per_unit)
    return Plan(description, [order[start : start + config.images_per_unit] for start in starts])


def _shuffled(num_images: int, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """int64, images in a seeded order; those of one group follow each other as they lie."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    if groups is None:
        return generator.permutation(num_images).astype(np.int64)
    place_of_group = generator.permutation(int(groups.max()) + 1)
    return np.argsort(place_of_group[groups], kind="stable").astype(np.int64)


@dataclass(frozen=True)
class DatasetFolder:
    """Paths inside the output folder.

    `parts/` holds one folder per finished unit; their shards appear in the data set as hard links, so they
    take no room of their own and `parts/` can be removed once the data set is complete.
    """

    root: Path

    @property
    def parts(self) -> Path:
        """Folder of the finished units."""
        return self.root / "parts"

    def part(self, unit: int) -> Path:
        """Folder of one finished unit; it exists exactly when the unit is committed."""
        return self.parts / f"part-{unit:05d}"

    def recorded(self, key: str) -> Any:
        """What the plan or manifest that is here says of something; None where there is none."""
        for path in (self.parts / _PLAN_FILE, self.root / MANIFEST_FILE):
            try:
                return json.loads(path.read_text(encoding="utf-8")).get(key)
            except (OSError, ValueError, AttributeError):
                continue
        return None

    def require_same_job(self, plan: Plan) -> None:
        """Raises Changed where the folder holds the records of another job; names what differs."""
        for recorded in (self.parts / _PLAN_FILE, self.root / MANIFEST_FILE):  # either may have been removed
            if recorded.exists():
                _require_same_job(recorded, plan)

    def adopt(self, plan: Plan) -> None:
        """Create the folder for a plan, or check that what it holds is of this plan; drop unfinished units.

        Raises:
            Changed: it holds the records of another job; names what differs.
        """
        self.require_same_job(plan)
        with writing(self.root):
            self.parts.mkdir(parents=True, exist_ok=True)
            write_atomically(self.parts / _PLAN_FILE, json.dumps(plan.description, indent=1, sort_keys=True).encode())
        self.remove_unfinished()

    def remove_unfinished(self) -> None:
        """Remove what killed actors left behind."""
        for path in self.parts.glob("tmp-*"):
            shutil.rmtree(path, ignore_errors=True)

    def committed(self, plan: Plan) -> dict[int, dict[str, Any]]:
        """Part manifests of the units that are done; a damaged part is removed so that it is done again."""
        done = {}
        for unit in range(len(plan.units)):
            if self.part(unit).exists():
                manifest = read_part(self.part(unit), plan.fingerprint)
                if manifest is None:
                    shutil.rmtree(self.part(unit))
                else:
                    done[unit] = manifest
        sync_path(self.parts)
        return done

    def open_again(self, units: Collection[int] = ()) -> None:
        """Have units done again; the data set is none until it is merged again."""
        stale = [path for unit in units for path in self.root.rglob(f"shard.{unit:05d}.*.mds")]
        for path in (self.root / MANIFEST_FILE, self.root / INDEX_FILE, *stale):
            path.unlink(missing_ok=True)
        for unit in units:
            shutil.rmtree(self.part(unit), ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second driver out; the system frees the lock when this process ends, however it ends.

        Raises:
            UserError: another process holds it; names host and process.
        """
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / _LOCK_FILE).open("a+", encoding="utf-8")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(
                    f"{self.root}: another precompute job ({file.read().strip() or 'unknown'}) is writing "
                    "here; wait for it or choose another output"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)


class _Shard(TypedDict):
    basename: str
    bytes: Count


class _Skipped(TypedDict):
    key: str
    reason: str


class _Part(TypedDict):
    plan: str
    shards: list[_Shard]
    skipped: list[_Skipped]
    num_images: Count
    num_records: Count
    canvas_count: Count
    canvas_total: list[float]
    canvas_square: list[float]
    library_versions: dict[str, str]
    changed: NotRequired[dict[str, Count]]


def read_part(folder: Path, plan_fingerprint: str) -> dict[str, Any] | None:
    """The manifest of a finished unit; None when it is of another plan, unreadable, or a shard has not its size."""
    try:
        manifest: Any = read_json(folder / PART_MANIFEST, _Part, "the manifest of a unit", "")
        sizes_fit = all((folder / shard["basename"]).stat().st_size == shard["bytes"] for shard in manifest["shards"])
        sums_fit = len(manifest["canvas_total"]) == len(manifest["canvas_square"]) > 0
        return manifest if sizes_fit and sums_fit and manifest["plan"] == plan_fingerprint else None
    except (OSError, ValueError):
        return None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write (disk full, quota, no permission) into a message for the user, a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}; finished units are intact: free space or "
            "fix the folder, then run the same command again"
        ) from error


def _require_same_job(recorded: Path, plan: Plan) -> None:
    found = read_json(recorded, dict[str, Any], "what a data set was made of", "remove the data set's folder")
    if "split_rule" in plan.description and "split_rule" not in found and found.get("source_split") != "all":
        raise Changed(
            f"the data set of {recorded} was divided as an earlier version did, by the order of hashes of "
            f"(source.seed, key) in each class; this job divides by another rule: "
            f"{plan.description['split_rule']}. Images of its {found.get('source_split')} part belong to others now: "
            "choose another output, and train a tokenizer that has not seen this test part",
            [f"split_rule: that of an earlier version → {plan.description['split_rule']!r}"],
        )
    require_match(
        _LEFT_OUT | found,
        _LEFT_OUT | plan.description,
        found_name=f"the data set of {recorded}",
        expected_name="this job",
        advice="choose another output, restore the settings, or remove the folder",
    )


def is_complete(folder: DatasetFolder, plan: Plan, *, allow_partial: bool = False) -> bool:
    """Whether the merged data set of this plan is there, with every shard at its size; may it lack units?"""
    try:
        manifest = read_manifest(folder.root)
        counted = sum(entry["samples"] for entry in read_index(folder.root)) == manifest["num_records"]
        if manifest.get("plan") != plan.fingerprint or not counted:
            return False
        for stream in (folder.root, *beside(folder.root, plan.description)):
            for entry in read_index(stream):
                check_shard_size(stream, entry)
    except UserError:
        return False
    whole = allow_partial or "missing_units" not in manifest
    return whole and (folder.root / f"{DEQUANTIZER_NAME}.safetensors").is_file()


def read_sources(records: Path) -> list[str] | None:
    """Names of the images that records were made of, in the order of their numbers; None where no file says."""
    path = records / SOURCES_FILE
    return path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1] if path.is_file() else None


def beside(root: Path, description: Mapping[str, Any]) -> list[Path]:
    """Folders of what is stored beside the records, by a plan or manifest."""
    return [root / description["repa"]["store"]] if "repa" in description else []
