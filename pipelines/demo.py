"""The whole chain in one command: images → tokenizer → records → both generators → samples → scores → report.

Every step is one of the project's own commands with its own folder; a step that is finished is passed over, one that
was stopped goes on where it was.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from rich.console import Console
from rich.rule import Rule

from cluster.files import write_atomically
from cluster.session import SessionConfig, cluster_session
from eval.evaluation import LEAST_IMAGES
from eval.features.extractors import ExtractorSpec, given_extractor, scores_of
from eval.pages.page import caveat_notes
from eval.results import count_caveats
from nvg.bounds import refuse
from nvg.json_files import read_json
from pipelines.configuration import dump_config
from pipelines.evaluate.against import given_reference
from pipelines.evaluate.config import REPORT_FILE, EvaluateConfig
from pipelines.evaluate.generator import RESULTS_FILE, run_evaluate
from pipelines.evaluate.images import Parts, describe_parts, open_parts
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.job import precompute
from pipelines.sources import BadImage, ImageSource, SourceConfig, open_source
from pipelines.train.drivers import PairRunConfig, train_generators
from pipelines.train.tokenizer import TokenizerRunConfig, train_tokenizer

_TIMES_FILE = "times.json"
_STEP_CONFIGS_FOLDER = "configs"
_OWN_OF_A_STEP = ("split", "num_views", "view_policy", "flip")
_NUM_LOOKED_AT = 64
DARK = 16  # grey levels of 255 up to which a border counts as black
_FEW = 0.1


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The four steps, each as its own command would take it.

    Attributes:
        folder: where everything goes; the steps' folders lie below it.
        data: folder of class folders that `source` was chosen for, see `pipelines.own_images`; null for none.
        source: the images. The steps' own sources refer to it, and differ from it in split and views alone.
        session: the one Ray cluster of all steps.
    """

    folder: str = "runs/demo"
    data: str | None = None
    seed: int = 0
    source: SourceConfig = field(default_factory=SourceConfig)
    tokenizer: TokenizerRunConfig = field(default_factory=TokenizerRunConfig)
    precompute: PrecomputeConfig = field(
        default_factory=lambda: PrecomputeConfig(tokenizer="runs/demo/tokenizer", output="runs/demo/records")
    )
    generators: PairRunConfig = field(default_factory=PairRunConfig)
    evaluation: EvaluateConfig = field(
        default_factory=lambda: EvaluateConfig(
            tokenizer="runs/demo/tokenizer",
            content="runs/demo/content",
            structure="runs/demo/structure",
            output="runs/demo/evaluation",
        )
    )
    session: SessionConfig = field(default_factory=SessionConfig)


def plan_demo(config: DemoConfig) -> list[str]:
    """The images and the steps, for a dry run: one line each.

    Raises:
        UserError: the images do not suffice; see `check_demo`.
    """
    source, pair = config.source, config.generators
    return [
        *check_demo(config),
        f"train the tokenizer on the {source.kind} source {source.path or ''}".rstrip()
        + f" for {config.tokenizer.optimizer.num_steps} steps in {config.tokenizer.run_folder}",
        f"precompute {config.precompute.source.num_views} view(s) per image into {config.precompute.output}",
        f"train both generators at the same time for {pair.content.optimizer.num_steps} and "
        f"{pair.structure.optimizer.num_steps} steps in {pair.content.run_folder} and {pair.structure.run_folder}",
        f"draw and score {config.evaluation.pool.num_samples} samples, write "
        f"{config.evaluation.output}/{RESULTS_FILE} and {Path(config.folder) / REPORT_FILE}",
    ]


def check_demo(config: DemoConfig) -> list[str]:
    """Everything that can be checked before the first step, so that no training is in vain.

    Returns:
        For people: which part has which classes, and what will be left out or go wrong.

    Raises:
        UserError: steps that read different images, too few images, a missing extractor or reference.
    """
    steps = {"tokenizer": config.tokenizer, "precompute": config.precompute, "evaluation": config.evaluation}
    for name, step in steps.items():
        for key in (item.name for item in fields(SourceConfig) if item.name not in _OWN_OF_A_STEP):
            expected, found = getattr(config.source, key), getattr(step.source, key)
            if found != expected:
                expected = f"{expected!r} as source.{key} is: every step divides the same images"
                raise refuse(f"{name}.source.{key}", found, expected, f"set source.{key} alone")
    evaluation = config.evaluation
    evaluation.judge.extractor()
    if evaluation.pool.num_samples < LEAST_IMAGES:
        found = evaluation.pool.num_samples
        raise refuse("evaluation.pool.num_samples", found, f"{LEAST_IMAGES} or more for precision and recall")
    if evaluation.reference:
        given_reference(evaluation)
        train = open_source(config.precompute.source)
        _require_every_class(train, f"{len(train)} training images")
        return _black_borders(config, train)
    parts = open_parts(evaluation.source)
    _require_every_class(parts.train, describe_parts(parts)[0])
    if not given_extractor(evaluation) and len(parts.train.class_names) < 2:
        raise refuse(
            "evaluation.extractor_path",
            evaluation.extractor_path,
            "Inception's weights for images of one class: the feature network learns to tell classes apart",
            "set it with evaluation.extractor_kind=inception-v3-compat, or divide the images into class folders",
        )
    return [*describe_parts(parts), *_marked_scores(evaluation, parts), *_black_borders(config, parts.train)]


def _marked_scores(evaluation: EvaluateConfig, parts: Parts) -> list[str]:
    """Which scores will be marked as not to be trusted, because there are so few images."""
    counts = {"generated": evaluation.pool.num_samples, "held_out": len(parts.test)}
    extractor = ExtractorSpec(kind=evaluation.extractor_kind, path=evaluation.extractor_path)
    caveats = count_caveats(
        counts,
        scores=scores_of(extractor.kind),
        num_features=extractor.num_features,
        num_reference=len(parts.train),
        num_manifold=min(len(parts.train), evaluation.images_of_a_side or len(parts.train)),
    )
    named = {"extractor": {"distance": extractor.distance}}
    return [
        f"will be marked as not to be trusted: {note.removeprefix('† ')}"
        for note in caveat_notes({"scores": counts, "caveats": caveats, "protocol": named})
    ]


def _require_every_class(train: ImageSource, found: str) -> None:
    """Refuse classes that no generator could learn; `found` says which images there are."""
    missing = [name for label, name in enumerate(train.class_names) if label not in set(train.labels.tolist())]
    if missing:
        raise refuse(
            "source.path",
            train.config.path,
            f"training images of each class, found none of {len(missing)} ({', '.join(missing[:5])}): {found}",
            "give these classes more images or remove them, or lower source.judge_fraction and source.test_fraction",
        )


def border_of(pixels_SSC: np.ndarray) -> np.ndarray:
    """The outermost pixels of a picture, (N, C)."""
    return np.concatenate([pixels_SSC[0], pixels_SSC[-1], pixels_SSC[1:-1, 0], pixels_SSC[1:-1, -1]])


def _black_borders(config: DemoConfig, train: ImageSource) -> list[str]:
    """A warning where shifted views would draw black stripes onto pictures that have something at their borders."""
    sources = (config.tokenizer.source, config.precompute.source)
    if not any(source.view_policy == "shift" and source.num_views > 1 for source in sources):
        return []
    bright = []
    for index in range(0, len(train), max(1, len(train) // _NUM_LOOKED_AT)):
        try:
            border_NC = border_of(train.read(index, 0))
        except BadImage:
            continue  # counted and listed when the images are read
        bright.append(np.median(border_NC.max(axis=-1)) > DARK)
    if not bright or np.mean(bright) <= _FEW:
        return []
    return [
        f"BLACK BORDERS ahead: views are pictures shifted by a few pixels, the stripe left open filled with black, but "
        f"{sum(bright)} of {len(bright)} pictures looked at are not black at their borders; the tokenizer and the "
        "generators will learn the stripes and samples will show them; set source.view_policy=crop (and "
        "source.flip=true where mirrored pictures are as good)"
    ]


def run_demo(config: DemoConfig, *, console: Console | None = None) -> Path:
    """Runs what is not finished yet; prints headlines, the score table and the report's place, and returns the report.

    Raises:
        UserError: a step cannot be done; the message says what to change. Finished steps stay.
    """
    console = console or Console()
    folder = Path(config.folder).absolute()
    for line in check_demo(config):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    folder.mkdir(parents=True, exist_ok=True)
    _keep_step_configs(config, folder / _STEP_CONFIGS_FOLDER)
    times = _StepTimes(folder / _TIMES_FILE, console)
    with cluster_session(config.session):
        with times.step("tokenizer"):
            train_tokenizer(config.tokenizer)
        with times.step("precompute"):
            precompute(config.precompute)
        with times.step("generators"):
            train_generators(config.generators)
        console.print(Rule("evaluation", align="left", style="dim"))
        run_evaluate(replace(config.evaluation, times=times.seconds), console=console)
    report = folder / REPORT_FILE
    write_atomically(report, (Path(config.evaluation.output) / REPORT_FILE).read_bytes())
    console.print(f"\nopen     {report}", highlight=False, soft_wrap=True)
    return report


class _Timed(TypedDict):
    seconds: float
    finished: bool


class _StepTimes:
    """Seconds each step took until it was first finished, over all starts of the demo, and a headline for each."""

    def __init__(self, file: Path, console: Console) -> None:
        self.file, self.console = file, console
        self.steps: dict[str, _Timed] = {}
        if file.exists():
            advice = "remove it: times are then counted anew"
            self.steps = read_json(file, dict[str, _Timed], "how long steps of the demo took", advice)

    @property
    def seconds(self) -> dict[str, float]:
        return {name: step["seconds"] for name, step in self.steps.items()}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times the block and keeps what it took even if it is interrupted."""
        step = self.steps.setdefault(name, {"seconds": 0.0, "finished": False})
        headline = f"{name} · finished earlier" if step["finished"] else name
        self.console.print(Rule(headline, align="left", style="dim"))
        start, finished = time.monotonic(), False
        try:
            yield
            finished = True
        finally:
            if not step["finished"]:
                step["seconds"] += time.monotonic() - start
                step["finished"] = finished
                write_atomically(self.file, json.dumps(self.steps, indent=2).encode())


def _keep_step_configs(config: DemoConfig, folder: Path) -> None:
    """Writes each step's resolved configuration, so that it can be run again alone: `nvg … --config FILE`."""
    steps: dict[str, Any] = {
        "tokenizer": config.tokenizer,
        "precompute": config.precompute,
        "generators": config.generators,
        "content": config.generators.content,
        "structure": config.generators.structure,
        "evaluation": config.evaluation,
    }
    folder.mkdir(exist_ok=True)
    for name, step in steps.items():
        write_atomically(folder / f"{name}.yaml", dump_config(step).encode())
