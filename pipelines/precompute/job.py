"""Images to visual granularity records: `nvg precompute`.

A driver cuts the source into units, Ray actors encode them, and the finished units are merged. Stopped at any
point and started again, it goes on with the units that are missing; the bytes of the result do not depend on
the number of actors, on kills, or on restarts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.session import cluster_session
from nvg.checkpoints import load_network, weights_hash
from nvg.errors import UserError
from nvg.records import MAX_UINT16_VALUES
from nvg.tokenizer import Tokenizer
from pipelines.checkpoints import weights_folder
from pipelines.precompute.beside import open_repa_stream
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.merge import merge_parts
from pipelines.precompute.plan import DatasetFolder, Plan, is_complete, make_plan
from pipelines.sources import ImageSource, SkippedInput, check_bad_inputs, open_source

if TYPE_CHECKING:
    from pipelines.precompute.pool import PoolEvent

__all__ = ["PrecomputeConfig", "precompute"]


def precompute(
    config: PrecomputeConfig,
    *,
    on_event: Callable[[PoolEvent], None] | None = None,
    console: Console | None = None,
) -> Path:
    """Write the record data set of a source, or finish one that was begun.

    Args:
        config: The job.
        on_event: Called for every event of a unit (started, committed, retried, failed).
        console: Where progress is shown; quiet when it is not a terminal.

    Returns:
        The data set's folder: MDS shards, index.json, manifest.json, sources.txt, dequantizer.safetensors.

    Raises:
        UserError: Source, tokenizer or output cannot be used, too many inputs are bad, the disk is full, or
            units failed again and again. Finished units stay.

    DEVIATION: views are encoded once, in float32 and a recorded number of crops; the release encodes every image anew
    in each epoch, in bfloat16 with a fresh crop.
    """
    console = console or Console(stderr=True)
    folder = DatasetFolder(Path(config.output).expanduser().absolute())
    tokenizer_folder = weights_folder("tokenizer", config.tokenizer)
    tokenizer = load_network(Tokenizer, tokenizer_folder, name=config.tokenizer_weights)
    _require_fitting_images(config, tokenizer)
    source = open_source(config.source)
    _require_storable(source, tokenizer)
    tokenizer_hash = weights_hash(tokenizer_folder, config.tokenizer_weights)
    repa = open_repa_stream(config.repa, "cpu")
    plan = make_plan(config, source, tokenizer_hash, tokenizer.config.structure, repa.description if repa else None)
    with folder.locked():
        if is_complete(folder, plan, allow_partial=config.allow_partial):
            console.print(f"{folder.root}: complete, nothing to do")
            return folder.root
        folder.adopt(plan)
        parts = folder.committed(plan)
        given_up = _encode_missing(
            config, plan, parts, folder=folder, source=source, tokenizer_folder=tokenizer_folder,
            on_event=on_event, console=console,
        )  # fmt: skip
        folder.remove_unfinished()
        return merge_parts(folder, plan, parts, source=source, tokenizer=tokenizer, given_up=given_up)


def _encode_missing(
    config: PrecomputeConfig,
    plan: Plan,
    parts: dict[int, dict[str, Any]],
    *,
    folder: DatasetFolder,
    source: ImageSource,
    tokenizer_folder: Path,
    on_event: Callable[[PoolEvent], None] | None,
    console: Console,
) -> dict[int, str]:
    """Encode the units that `parts` lacks and add their manifests to it; returns units given up, with reasons."""
    missing = {unit: indices for unit, indices in enumerate(plan.units) if unit not in parts}
    skipped = list(source.skipped)
    for part in parts.values():
        _note_skipped(skipped, part, source, config)
    if not missing:
        return {}
    with (
        _progress(console) as progress,
        cluster_session(config.session),
    ):
        from pipelines.precompute.metrics import PoolMetrics
        from pipelines.precompute.pool import encode_units

        metrics = PoolMetrics(folder.root.name, len(missing), len(skipped))
        finished = sum(len(plan.units[unit]) for unit in parts)
        task = progress.add_task("precompute", total=len(source), completed=finished, bad=len(skipped))

        def handle(event: PoolEvent) -> None:
            metrics.note(event)
            if event.part is not None:
                parts[event.unit] = event.part
                _note_skipped(skipped, event.part, source, config)
                progress.update(task, advance=len(plan.units[event.unit]), bad=len(skipped))
            elif event.reason:
                console.print(f"unit {event.unit} {event.kind}: {event.reason}")
            if on_event is not None:
                on_event(event)

        failures = encode_units(
            missing,
            source=source,
            tokenizer_folder=str(tokenizer_folder),
            config=config,
            folder=folder,
            plan_fingerprint=plan.fingerprint,
            on_event=handle,
        )
    if failures and not config.allow_partial:
        lines = [f"  unit {unit}: {reason}" for unit, reason in sorted(failures.items())]
        raise UserError(
            f"{len(failures)} of {len(plan.units)} units failed {config.max_attempts} times each:\n"
            + "\n".join(lines)
            + f"\nthe other units are finished in {folder.parts} and nothing was merged; run the same "
            "command again once the cause is gone, or with allow_partial=true to go without them"
        )
    return failures


def _note_skipped(
    skipped: list[SkippedInput], part: dict[str, Any], source: ImageSource, config: PrecomputeConfig
) -> None:
    skipped += [SkippedInput(**item) for item in part["skipped"]]
    check_bad_inputs(skipped, source)


def _require_fitting_images(config: PrecomputeConfig, tokenizer: Tokenizer) -> None:
    for name in ("image_size", "image_channels"):
        found, expected = getattr(config.source, name), getattr(tokenizer.config, name)
        if found != expected:
            raise UserError(
                f"source.{name} is {found}, but the tokenizer in {config.tokenizer} was built for "
                f"{expected}; set source.{name}={expected}"
            )


def _require_storable(source: ImageSource, tokenizer: Tokenizer) -> None:
    """Labels and ids are two bytes wide in a record."""
    for name, number in (("classes", len(source.class_names)), ("codes", tokenizer.config.codebook_size)):
        if number > MAX_UINT16_VALUES:
            raise UserError(
                f"found {number} {name}, expected at most {MAX_UINT16_VALUES}: a record has two bytes for it"
            )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.speed:.1f} images/s" if console.is_terminal else ""),
        TimeRemainingColumn(),
        TextColumn("{task.fields[bad]} skipped"),
        console=console,
        disable=not console.is_terminal,
    )


def plan_precompute(config: PrecomputeConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    source = config.source
    return [
        f"join or start Ray ({config.session.address})",
        f"open the {source.kind} source {source.path or ''}".rstrip(),
        f"encode {source.num_views} view(s) per image with {config.tokenizer} on {config.num_actors} actor(s), "
        f"{config.images_per_unit} images per unit, batches of {config.batch_size}",
        f"merge the parts and write the manifest in {config.output}",
    ]
