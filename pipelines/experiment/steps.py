"""The experiment file, and its steps: what each reads and writes, how it stands, and how it is done.

What a step was made of lies in its own folder: of a training in its checkpoints, of records in their plan, of an
evaluation in `made_of.json`. So a step finds out by itself whether what it has done is what it is asked for, also where
a command of its own or an earlier version did it, and which settings decide that is said once, where the step is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

from rich.console import Console

from cluster.files import write_atomically
from cluster.session import SessionConfig
from eval.features.extractors import given_extractor
from eval.pages.page import time_text
from eval.results import RESULTS_FILE
from nvg.checkpoints import file_hash, weights_hash
from nvg.checkpoints.runs import checkpoints_in
from nvg.errors import Changed, UserError
from nvg.json_files import read_json
from nvg.records import MANIFEST_FILE
from pipelines.evaluate.config import REPORT_FILE, EvaluateConfig
from pipelines.evaluate.generator import run_evaluate
from pipelines.evaluate.images import open_parts
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.job import check_start as check_records
from pipelines.precompute.job import precompute
from pipelines.precompute.plan import DatasetFolder
from pipelines.run_folder import CHECKPOINTS_FOLDER, METRICS_FILE
from pipelines.sources import SourceConfig, open_source
from pipelines.train.config import RunConfig
from pipelines.train.drivers import PairRunConfig, last_row, row_text, train_generators
from pipelines.train.generator import check_start as check_generator
from pipelines.train.state import flatten
from pipelines.train.tokenizer import TokenizerRunConfig, train_tokenizer
from pipelines.train.tokenizer import check_start as check_tokenizer

MADE_OF_FILE = "made_of.json"
STEPS = ("tokenizer", "precompute", "generators", "evaluation")
State = Literal["finished", "begun", "to do", "changed"]
# Of an evaluation: what moves no number of it, and paths, in whose place stands what lies there.
_DECIDES_NOTHING = ("session.", "times.", "pool.num_actors", "pool.cpus_per_actor", "pool.max_tries")
_NAMED_BY_CONTENT = (
    "tokenizer", "content", "structure", "records", "reference", "extractor_path", "judge.feature_weights", "output",
    "source.path",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """The steps of an experiment, each as its own command would take it; null leaves a step out.

    Attributes:
        folder: where everything goes; the steps' folders lie below it.
        data: folder of class folders that `source` was chosen for, see `own_images`; null for none.
        origin: how to come by the images, told where there is nothing at `source.path`.
        source: the images. A step takes all of it that its own source does not say; that is split and views at most.
        tokenizer, precompute, generators, evaluation: the steps. What one reads that no other makes must be there.
        session: the one Ray cluster of all steps.
    """

    SHARED: ClassVar = {"source": ("tokenizer.source", "precompute.source", "evaluation.source")}

    folder: str = "runs/experiment"
    data: str | None = None
    seed: int = 0
    origin: str = ""
    source: SourceConfig = field(default_factory=SourceConfig)
    tokenizer: TokenizerRunConfig | None = None
    precompute: PrecomputeConfig | None = None
    generators: PairRunConfig | None = None
    evaluation: EvaluateConfig | None = None
    session: SessionConfig = field(default_factory=SessionConfig)


@dataclass(frozen=True)
class Progress:
    """How far a part of a step is.

    Attributes:
        part: its name; empty where the step has one part alone.
        done, total: of what `unit` names, in the plural.
        note: a few words beside it: loss, speed, the time that is left.
    """

    part: str
    done: int
    total: int
    unit: str
    note: str = ""


@dataclass(frozen=True)
class Standing:
    """What of a step is done.

    Attributes:
        state: "changed" where what is there is of other settings or inputs.
        changes: which, "key: old → new" each.
        progress: of its parts; empty before it begins.
    """

    state: State
    changes: Sequence[str] = ()
    progress: Sequence[Progress] = ()


@dataclass(frozen=True)
class Step:
    """One step of an experiment.

    Attributes:
        name: of its section.
        inputs: setting to local path, of what another step may make.
        outputs: setting to local path, of what it makes.
        results: what is moved aside where this step alone is done anew; empty for its outputs.
        shown: files for the reader of a status, as far as they are there.
        description: what it will do.
        look: compares what is there with what is asked for and writes nothing; told whether everything that it reads is
            there. Raises UserError where the step cannot be done, whatever is there.
        progress: how far it is, from what it writes; told when it was started, in seconds since 1970.
        run: does it, or what is missing of it; told what the steps before it took, in seconds.
    """

    name: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    shown: Sequence[Path]
    description: str
    look: Callable[[bool], Standing]
    progress: Callable[[float], list[Progress]]
    run: Callable[[Mapping[str, float], Console], object]
    results: Sequence[Path] = ()


def steps_of(config: ExperimentConfig) -> list[Step]:
    """The steps that the file has, in the order of the chain."""
    steps: list[Step] = []
    if config.tokenizer is not None:
        steps.append(_tokenizer_step(config.tokenizer))
    if config.precompute is not None:
        steps.append(_precompute_step(config.precompute))
    if config.generators is not None:
        steps.append(_generators_step(config.generators))
    if config.evaluation is not None:
        steps.append(_evaluation_step(config.evaluation))
    return steps


def _tokenizer_step(config: TokenizerRunConfig) -> Step:
    def check(run: TokenizerRunConfig) -> int:
        has_begun = checkpoints_in(Path(run.run_folder) / CHECKPOINTS_FOLDER)
        return check_tokenizer(run, open_source(run.source) if has_begun else None)

    source, steps = f"{config.source.kind} source {config.source.path or ''}".rstrip(), config.optimizer.num_steps
    return Step(
        name="tokenizer",
        inputs={},
        outputs={"tokenizer.run_folder": config.run_folder},
        shown=[Path(config.run_folder) / METRICS_FILE],
        description=f"train the tokenizer on the {source} for {steps} steps in {config.run_folder}",
        look=lambda _: _look_at({"": config}, check),
        progress=lambda _: [_training_progress("", config)],
        run=lambda *_: train_tokenizer(config),
    )


def _precompute_step(config: PrecomputeConfig) -> Step:
    def progress(_: float) -> list[Progress]:
        folder = DatasetFolder(Path(config.output))
        total, unit = folder.recorded("num_inputs"), folder.recorded("images_per_unit")
        if not isinstance(total, int) or not isinstance(unit, int):
            return []
        num_parts, is_merged = len(list(folder.parts.glob("part-*"))), (folder.root / MANIFEST_FILE).exists()
        return [Progress("", total if is_merged else min(num_parts * unit, total), total, "images")]

    def look(ready: bool) -> Standing:
        try:
            is_whole = ready and check_records(config)
        except Changed as changed:
            return Standing("changed", changed.changes)
        begun = progress(0.0)
        return Standing("finished" if is_whole else "begun" if begun else "to do", progress=begun)

    return Step(
        name="precompute",
        inputs={"precompute.tokenizer": config.tokenizer},
        outputs={"precompute.output": config.output},
        shown=[Path(config.output) / MANIFEST_FILE],
        description=f"precompute {config.source.num_views} view(s) per image into {config.output}",
        look=look,
        progress=progress,
        run=lambda *_: precompute(config),
    )


def _generators_step(config: PairRunConfig) -> Step:
    inputs: dict[str, str] = {}
    for run in config.runs:
        read = {
            "data.path": "" if run.data.remote else run.data.path,
            "validation_path": run.validation_path or "",
            "init_from": run.init_from or "",
            "samples.tokenizer": run.samples.tokenizer,
        }
        inputs |= {f"generators.{run.kind}.{key}": path for key, path in read.items() if path}
    steps = " and ".join(f"{run.optimizer.num_steps}" for run in config.runs)
    folders = " and ".join(run.run_folder for run in config.runs)
    both = "both generators at the same time" if config.structure else "the content generator"
    return Step(
        name="generators",
        inputs=inputs,
        outputs={f"generators.{run.kind}.run_folder": run.run_folder for run in config.runs},
        shown=[Path(run.run_folder) / METRICS_FILE for run in config.runs],
        description=f"train {both} for {steps} steps in {folders}",
        look=lambda _: _look_at({run.kind: run for run in config.runs}, check_generator),
        progress=lambda _: [_training_progress(run.kind, run) for run in config.runs],
        run=lambda *_: train_generators(config),
    )


def _look_at(runs: Mapping[str, Any], check: Callable[[Any], int]) -> Standing:
    """How trainings stand; `check` gives the step that one would go on from."""
    changes: list[str] = []
    progress: list[Progress] = []
    for kind, run in runs.items():
        try:
            progress.append(replace(_training_progress(kind, run), done=check(run)))
        except Changed as changed:
            changes += [f"{kind}.{line}" if kind else line for line in changed.changes]
    if changes:
        return Standing("changed", changes)
    is_finished, has_begun = all(part.done >= part.total for part in progress), any(part.done for part in progress)
    return Standing("finished" if is_finished else "begun" if has_begun else "to do", progress=progress)


def _training_progress(kind: str, run: RunConfig) -> Progress:
    row = last_row(run)
    if row is None:
        return Progress(kind, 0, run.last_step, "steps")
    left = (run.last_step - int(row["step"])) * row["step_s"]
    note = row_text(row) + (f"  about {time_text(left)} left" if left > 0 else "")
    return Progress(kind, min(int(row["step"]), run.last_step), run.last_step, "steps", note)


class _MadeOf(TypedDict):
    settings: dict[str, Any]
    inputs: dict[str, str]


def _evaluation_step(config: EvaluateConfig) -> Step:
    output = Path(config.output)

    def look(ready: bool) -> Standing:
        """An evaluation of before there was the file is done again; its samples are taken from there."""
        written = [output / name for name in (MADE_OF_FILE, *([] if config.reference else [REPORT_FILE]))]
        if not ready or not all(file.exists() for file in written) or not _is_json(output / RESULTS_FILE):
            return Standing("to do")
        advice = "remove it: the evaluation is then done again, with the samples that are there"
        before = read_json(output / MADE_OF_FILE, _MadeOf, "what an evaluation was made of", advice)
        changes = _changes(before, made_of(config))
        return Standing("changed", changes) if changes else Standing("finished")

    def progress(since: float) -> list[Progress]:
        """Samples on disk, of the pools that this start has opened."""
        pool = config.pool
        num_pools = 2 if config.guidance_one and not config.reference else 1
        total = num_pools * math.ceil(pool.num_samples / pool.chunk_size) * pool.chunk_size
        opened = [file.parent for file in output.glob("pool/*/pool.json") if file.stat().st_mtime >= since]
        done = sum(len(list(folder.glob("chunk-*.safetensors"))) for folder in opened) * pool.chunk_size
        return [Progress("", min(done, total), total, "samples")]

    def run(seconds: Mapping[str, float], console: Console) -> None:
        now = made_of(config)
        run_evaluate(replace(config, times=dict(seconds)), console=console)
        write_atomically(output / MADE_OF_FILE, json.dumps(now, indent=1).encode())

    read = {name: getattr(config, name) for name in ("tokenizer", "content", "structure", "records")}
    written = {name: getattr(config, name) for name in ("output", "samples_folder")}
    return Step(
        name="evaluation",
        inputs={f"evaluation.{name}": path for name, path in read.items() if path},
        outputs={f"evaluation.{name}": path for name, path in written.items() if path},
        shown=[output / REPORT_FILE, output / RESULTS_FILE],
        description=f"draw and score {config.pool.num_samples} samples, write {output / RESULTS_FILE}",
        look=look,
        progress=progress,
        run=run,
        # Without the samples, which are drawn again only where what decides them has changed.
        results=[output / name for name in (RESULTS_FILE, REPORT_FILE, MADE_OF_FILE)],
    )


def _is_json(file: Path) -> bool:
    with suppress(UserError):
        return bool(read_json(file, dict[str, Any], "scores", ""))
    return False


def made_of(config: EvaluateConfig) -> _MadeOf:
    """Everything that decides the results of an evaluation: settings, and what these point to, by its content.

    Of images it is their names and sizes, as for a tokenizer's training.

    Raises:
        UserError: something is missing or does not belong together.
    """
    config = config.resolved()
    settings = flatten({**asdict(config), "curves": sorted(config.curves)})
    weights = {"content": config.weights, "structure": config.weights, "tokenizer": config.tokenizer_weights}
    inputs = {key: weights_hash(folder, name) for key, name in weights.items() if (folder := getattr(config, key))}
    if config.records:
        inputs["records"] = file_hash(Path(config.records) / MANIFEST_FILE)
    if extractor := given_extractor(config):
        inputs["extractor_path"] = extractor.weights_hash()
    if judge := config.judge.extractor():
        inputs["judge.feature_weights"] = judge.weights_hash()
    if config.reference:
        inputs["reference"] = file_hash(Path(config.reference))
    else:
        parts = open_parts(config.source).by_name()
        inputs |= {f"images of {name}": part.sized_fingerprint for name, part in parts.items()}
    kept = {key: value for key, value in settings.items() if not key.startswith(_DECIDES_NOTHING)}
    kept = {key: value for key, value in kept.items() if key not in _NAMED_BY_CONTENT}
    return {"settings": json.loads(json.dumps(kept)), "inputs": inputs}


def _changes(before: _MadeOf, now: _MadeOf) -> list[str]:
    """What differs, "key: old → new" each; a setting that there was not yet had what is its default."""
    unset = flatten(asdict(EvaluateConfig(tokenizer=".", content=".", output=".")))
    settings = {key: (before["settings"].get(key, unset.get(key)), value) for key, value in now["settings"].items()}
    inputs = {
        key: tuple(found["inputs"].get(key, "none") for found in (before, now))
        for key in {**before["inputs"], **now["inputs"]}
    }
    pairs = {**settings, **inputs}.items()
    return [f"{key}: {_short(old)} → {_short(new)}" for key, (old, new) in pairs if old != new]


def _short(value: Any) -> str:
    """A value as it is shown; a hash by its beginning."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) < 64 else f"{text[:12]}…"
