"""The driver: cuts the source into units, has Ray actors encode them, and merges the finished units.

Stopped at any point and started again, it goes on with the units that are missing; the bytes of the result do not
depend on the number of actors, on kills, or on restarts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cluster.actors import PoolEvent, UnitWorker, require_resources, require_shared, run_units
from cluster.progress import ProgressBars
from cluster.session import ascii_name, cluster_session
from nvg.bounds import refuse
from nvg.checkpoints import load_network, weights_hash
from nvg.checkpoints.runs import weights_folder
from nvg.errors import Changed, UserError
from nvg.precision import settle_precision
from nvg.records import MAX_UINT16_VALUES, read_manifest
from nvg.tokenizer import Tokenizer
from pipelines.precompute.beside import open_repa_stream
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.inputs import describe_changed, find_changed, known, read_inputs, replace_inputs
from pipelines.precompute.merge import merge_parts
from pipelines.precompute.plan import DatasetFolder, Plan, is_complete, make_plan, writing
from pipelines.precompute.unit import encode_unit
from pipelines.sources import ImageSource, SkippedInput, check_bad_inputs, open_source
from pipelines.sources.views import describe_changes

_TASK = "precompute"


def precompute(
    config: PrecomputeConfig, *, on_event: Callable[[PoolEvent], None] | None = None, console: Console | None = None
) -> Path:
    """Write the record data set of a source, or finish one that was begun.

    Args:
        config: the job.
        on_event: called for every event of a unit; an exception of its own ends the job.
        console: where progress is shown.

    Returns:
        The data set's folder: MDS shards, index.json, manifest.json, sources.txt, dequantizer.safetensors.

    Raises:
        Changed: the output holds records of another job, or of images that have changed since.
        UserError: source, tokenizer or output cannot be used, too many inputs are bad, the disk is full, or
            units failed again and again. Finished units stay.
        ClusterError: the cluster is too small, or its actors do not start.

    DEVIATION: views are encoded once, in float32 and a recorded number of crops; the release encodes every image anew
    in each epoch, in bfloat16 with a fresh crop.
    """
    console = console or Console(stderr=True)
    tokenizer_folder, tokenizer, source, folder, plan = _open_job(config, tell=True)
    stamps = source.stamps()
    with folder.locked():
        changed: list[int] = []
        if is_complete(folder, plan, allow_partial=config.allow_partial):
            changed = _changed_since(folder, source, stamps, console)
            if not changed:
                return folder.root
            if not config.encode_changed:
                raise _changed_images(folder, changed, source)
        folder.adopt(plan)
        if changed:
            folder.open_again()
        parts = _current_parts(folder, plan, source, stamps, console)
        given_up = _encode_missing(config, plan, parts, folder, source, stamps, tokenizer_folder, on_event, console)
        folder.remove_unfinished()
        merge_parts(folder, plan, parts, source=source, tokenizer=tokenizer, given_up=given_up)
    if drawn_otherwise := read_manifest(folder.root).get("changed"):
        console.print(describe_changes(config.source, drawn_otherwise), highlight=False, soft_wrap=True)
    return folder.root


def check_start(config: PrecomputeConfig) -> bool:
    """Compare what lies in the output with what this job would write there; nothing is encoded or written.

    Returns:
        Whether the data set is whole, of this job and of the images as they are now.

    Raises:
        Changed: the records are of another job, or images have changed since.
        UserError: source, tokenizer or output cannot be used.
    """
    _, _, source, folder, plan = _open_job(config, tell=False)
    folder.require_same_job(plan)
    if not is_complete(folder, plan, allow_partial=config.allow_partial):
        return False
    rows = read_inputs(folder.root, len(source))
    changed = find_changed(rows, np.arange(len(source)), source, source.stamps())
    if changed and not config.encode_changed:
        raise _changed_images(folder, changed, source)
    return not changed


def _open_job(config: PrecomputeConfig, *, tell: bool) -> tuple[Path, Tokenizer, ImageSource, DatasetFolder, Plan]:
    """What a job works with, checked: the folder of the tokenizer's weights, tokenizer, images, output and plan."""
    folder = DatasetFolder(Path(config.output).expanduser().absolute())
    tokenizer_folder = weights_folder("tokenizer", config.tokenizer)
    tokenizer = load_network(Tokenizer, tokenizer_folder, name=config.tokenizer_weights)
    _require_fitting_images(config, tokenizer)
    source = open_source(config.source, tell=tell)
    _require_storable(source, tokenizer)
    tokenizer_hash = weights_hash(tokenizer_folder, config.tokenizer_weights)
    repa = open_repa_stream(config.repa, "cpu", tokenizer.config.num_positions)
    if folder.recorded("source_fingerprint") == source.sized_fingerprint:
        source.fingerprint = source.sized_fingerprint  # begun by an earlier version, with the same images
    plan = make_plan(config, source, tokenizer_hash, tokenizer.config.structure, repa.description if repa else None)
    return tokenizer_folder, tokenizer, source, folder, plan


def _changed_images(folder: DatasetFolder, changed: list[int], source: ImageSource) -> Changed:
    described = describe_changed(changed, source)
    return Changed(
        f"{folder.root}: {described} since these records were made. Choose another output for records of the images as "
        "they are now; or set encode_changed=true to encode their units again here, and then train anew what was "
        "trained on these records",
        [described],
    )


def _changed_since(folder: DatasetFolder, source: ImageSource, stamps: np.ndarray, console: Console) -> list[int]:
    """Images of a finished data set that are no longer those it was made of; says so where there are none."""
    rows = read_inputs(folder.root, len(source))
    before = rows["stamp"].copy()
    changed = find_changed(rows, np.arange(len(source)), source, stamps)
    if changed:
        return changed
    if (rows["stamp"] != before).any():
        with writing(folder.root):
            replace_inputs(folder.root, rows)
    unknown = int((~known(rows)).sum())
    console.print(f"{folder.root}: complete, nothing to do")
    if unknown and stamps.any():
        console.print(
            f"of {unknown} of {len(source)} images it was not noted which bytes they had (records of an earlier "
            "version, or units left out): whether they have changed is not known"
        )
    return []


def _current_parts(
    folder: DatasetFolder, plan: Plan, source: ImageSource, stamps: np.ndarray, console: Console
) -> dict[int, dict[str, Any]]:
    """Part manifests of the units that are done and whose images are still those that were encoded."""
    parts = folder.committed(plan)
    for unit in list(parts):
        indices = plan.units[unit]
        changed = find_changed(read_inputs(folder.part(unit), len(indices)), indices, source, stamps)
        if changed:
            console.print(f"unit {unit} is encoded again: {describe_changed(changed, source)}", markup=False)
            folder.open_again([unit])
            del parts[unit]
    return parts


def _encode_missing(
    config: PrecomputeConfig,
    plan: Plan,
    parts: dict[int, dict[str, Any]],
    folder: DatasetFolder,
    source: ImageSource,
    stamps: np.ndarray,
    tokenizer_folder: Path,
    on_event: Callable[[PoolEvent], None] | None,
    console: Console,
) -> dict[int, str]:
    """Encode the units that `parts` lacks and add their manifests to it; returns units given up, with reasons."""
    missing = {unit: (indices,) for unit, indices in enumerate(plan.units) if unit not in parts}
    skipped = list(source.skipped)
    for part in parts.values():
        _note_skipped(skipped, part, source)
    if not missing:
        return {}
    given_up: dict[int, str] = {}
    done = sum(len(plan.units[unit]) for unit in parts)
    bars = ProgressBars({_TASK: len(source)}, completed={_TASK: done}, unit="images", console=console)
    with bars, cluster_session(config.session):
        cpus, gpus = config.cpus_per_actor, config.gpus_per_actor
        require_resources({"CPU": ("cpus_per_actor", cpus), "GPU": ("gpus_per_actor", gpus)})
        require_shared("output", folder.root)
        events = run_units(
            EncodingActor,
            {
                "tokenizer_folder": str(tokenizer_folder), "source": source, "config": config, "folder": folder,
                "plan_fingerprint": plan.fingerprint, "stamps": stamps,
            },
            missing,
            num_actors=config.num_actors,
            max_tries=config.max_attempts,
            fatal=UserError,
            options={"num_cpus": cpus, "num_gpus": gpus},
        )  # fmt: skip
        metrics = _Metrics(folder.root.name, len(missing), len(skipped))
        with closing(events):
            for event in events:
                metrics.note(event)
                if event.kind == "committed":
                    parts[event.unit] = event.result
                    done += len(plan.units[event.unit])
                    _note_skipped(skipped, event.result, source)
                    bars.update(_TASK, done, f"{len(skipped)} skipped")
                elif event.reason:
                    console.print(f"unit {event.unit} {event.kind}: {event.reason}")
                if event.kind == "failed":
                    given_up[event.unit] = event.reason
                if on_event is not None:
                    on_event(event)
    if given_up and not config.allow_partial:
        lines = [f"  unit {unit}: {reason}" for unit, reason in sorted(given_up.items())]
        raise UserError(
            f"{len(given_up)} of {len(plan.units)} units failed {config.max_attempts} times each:\n"
            + "\n".join(lines)
            + f"\nthe other units are finished in {folder.parts} and nothing was merged; run the same "
            "command again once the cause is gone, or with allow_partial=true to go without them"
        )
    return given_up


class EncodingActor(UnitWorker):
    """Holds the tokenizer and the index of the source, encodes one unit per call."""

    def __init__(
        self,
        *,
        tokenizer_folder: str,
        source: ImageSource,
        config: PrecomputeConfig,
        folder: DatasetFolder,
        plan_fingerprint: str,
        stamps: np.ndarray,
    ) -> None:
        torch.set_num_threads(config.threads_per_actor)
        torch.backends.cudnn.deterministic = True  # the same bytes whoever encodes a unit
        settle_precision(config.precision, config.device)
        tokenizer = load_network(Tokenizer, tokenizer_folder, name=config.tokenizer_weights)
        self._encode = partial(
            encode_unit,
            source=source,
            tokenizer=tokenizer.to(config.device).eval(),
            config=config,
            folder=folder,
            plan_fingerprint=plan_fingerprint,
            repa=open_repa_stream(config.repa, config.device, tokenizer.config.num_positions),
            stamps=stamps,
        )

    def compute(self, unit: int, indices: np.ndarray) -> dict[str, Any]:
        """Encode and commit a unit; see `encode_unit`."""
        return self._encode(unit, indices)


class _Metrics:
    """What Ray's dashboard and Prometheus show: images, images a second, skipped inputs, units left.

    Args:
        dataset: name of the output folder, by which jobs are told apart.
        num_units: units that this run has to encode.
        num_skipped: inputs skipped before it.
    """

    def __init__(self, dataset: str, num_units: int, num_skipped: int) -> None:
        from ray.util.metrics import Counter, Gauge  # ray reads its environment when it is imported

        tag = "dataset"
        self._images = Counter("nvg_precompute_images", "Images encoded by this run.", (tag,))
        self._images_per_s = Gauge("nvg_precompute_images_per_s", "Images a second since this run began.", (tag,))
        self._skipped = Gauge("nvg_precompute_skipped", "Inputs that were no readable image.", (tag,))
        self._units_left = Gauge("nvg_precompute_units_left", "Units neither finished nor given up.", (tag,))
        for metric in (self._images, self._images_per_s, self._skipped, self._units_left):
            metric.set_default_tags({tag: ascii_name(dataset)})
        self._began = time.monotonic()
        self._num_images, self._num_left, self._num_skipped = 0, num_units, num_skipped
        self._show()

    def note(self, event: PoolEvent) -> None:
        """Count an event."""
        self._num_left -= event.kind in ("committed", "failed")
        if event.kind == "committed":
            num_images = event.result["num_images"]
            self._num_images += num_images
            self._num_skipped += len(event.result["skipped"])
            if num_images:
                self._images.inc(num_images)
        self._show()

    def _show(self) -> None:
        self._images_per_s.set(self._num_images / max(time.monotonic() - self._began, 1e-9))
        self._skipped.set(self._num_skipped)
        self._units_left.set(self._num_left)


def _note_skipped(skipped: list[SkippedInput], part: dict[str, Any], source: ImageSource) -> None:
    skipped += [SkippedInput(**item) for item in part["skipped"]]
    check_bad_inputs(skipped, source)


def _require_fitting_images(config: PrecomputeConfig, tokenizer: Tokenizer) -> None:
    for name in ("image_size", "image_channels"):
        found, expected = getattr(config.source, name), getattr(tokenizer.config, name)
        if found != expected:
            raise refuse(
                f"source.{name}",
                found,
                f"{expected}, for which the tokenizer in {config.tokenizer} was built",
                f"set source.{name}={expected}",
            )


def _require_storable(source: ImageSource, tokenizer: Tokenizer) -> None:
    """Labels and ids are two bytes wide in a record."""
    for name, number in (("classes", len(source.class_names)), ("codes", tokenizer.config.codebook_size)):
        if number > MAX_UINT16_VALUES:
            raise UserError(
                f"found {number} {name}, expected at most {MAX_UINT16_VALUES}: a record has two bytes for it"
            )


def plan_precompute(config: PrecomputeConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    source = config.source
    return [
        f"join or start Ray ({config.session.address})",
        f"open the {source.kind} source {source.path or ''}".rstrip(),
        f"encode {source.num_views} view(s) per image with {config.tokenizer} on {config.num_actors} actor(s), "
        f"{config.images_per_unit} images per unit, batches of {config.batch_size}, in {config.precision}",
        config.repa.plan,
        f"merge the parts and write the manifest in {config.output}",
    ]
