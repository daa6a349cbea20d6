"""The whole chain in one command: images → tokenizer → records → both generators → samples → scores → report.

Every step is one of the project's own commands with its own folder; a step that is finished is passed over, one that
was stopped goes on where it was.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule

from cluster.files import write_atomically
from cluster.session import SessionConfig, cluster_session
from pipelines.configuration import dump_config
from pipelines.evaluate.config import REPORT_FILE, EvaluateConfig
from pipelines.evaluate.generator import RESULTS_FILE, run_evaluate
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.job import precompute
from pipelines.sources import SourceConfig
from pipelines.sources.folders import folder_channels
from pipelines.train.drivers import PairRunConfig, train_generators
from pipelines.train.tokenizer import TokenizerRunConfig, train_tokenizer

_TIMES_FILE = "times.json"
_STEP_CONFIGS_FOLDER = "configs"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The four steps, each as its own command would take it.

    Attributes:
        folder: where everything goes; the steps' folders lie below it.
        data: folder of class folders to use instead of `source`.
        source: the images. The steps' own sources refer to it.
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
    """The steps, for a dry run: one line each."""
    config = _with_own_images(config)
    source, pair = config.source, config.generators
    return [
        f"train the tokenizer on the {source.kind} source {source.path or ''}".rstrip()
        + f" for {config.tokenizer.optimizer.num_steps} steps in {config.tokenizer.run_folder}",
        f"precompute {config.precompute.source.num_views} view(s) per image into {config.precompute.output}",
        f"train both generators at the same time for {pair.content.optimizer.num_steps} and "
        f"{pair.structure.optimizer.num_steps} steps in {pair.content.run_folder} and {pair.structure.run_folder}",
        f"draw and score {config.evaluation.pool.num_samples} samples, write "
        f"{config.evaluation.output}/{RESULTS_FILE} and {Path(config.folder) / REPORT_FILE}",
    ]


def run_demo(config: DemoConfig, *, console: Console | None = None) -> Path:
    """Runs what is not finished yet; prints headlines, the score table and the report's place, and returns the report.

    Raises:
        UserError: a step cannot be done; the message says what to change. Finished steps stay.
    """
    console = console or Console()
    config = _with_own_images(config)
    folder = Path(config.folder).absolute()
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


def _with_own_images(config: DemoConfig) -> DemoConfig:
    """The demo with every step reading `config.data`, where that is given; grey or colour follows from the files."""
    if config.data is None:
        return config
    path = Path(config.data).expanduser().absolute()
    channels = folder_channels(path)

    def own(source: SourceConfig) -> SourceConfig:
        return replace(source, kind="folder", path=str(path), image_channels=channels)

    model = replace(config.tokenizer.model, image_channels=channels)
    return replace(
        config,
        source=own(config.source),
        tokenizer=replace(config.tokenizer, source=own(config.tokenizer.source), model=model),
        precompute=replace(config.precompute, source=own(config.precompute.source)),
        evaluation=replace(config.evaluation, source=own(config.evaluation.source)),
    )


class _StepTimes:
    """Seconds each step took until it was first finished, over all starts of the demo, and a headline for each."""

    def __init__(self, file: Path, console: Console) -> None:
        self.file, self.console = file, console
        self.steps: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}

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
