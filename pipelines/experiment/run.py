"""`nvg run`: images → tokenizer → records → both generators → samples → scores → report, as far as it is not done yet.

Every step is one of the project's own commands with its own folder; a step that is finished is passed over, one that
was stopped goes on where it was, and nothing is ever done over: what is to be done anew is moved aside first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypedDict

from rich.console import Console
from rich.rule import Rule

from cluster.actors import require_shared
from cluster.files import write_atomically
from cluster.session import cluster_session
from nvg.errors import UserError
from nvg.json_files import read_json
from pipelines.configuration import dump_config
from pipelines.entry import TrainingStopped
from pipelines.evaluate.config import REPORT_FILE
from pipelines.experiment.images import check_images
from pipelines.experiment.plan import Plan, describe_standing, make_plan
from pipelines.experiment.status import STATUS_PAGE, LiveStatus
from pipelines.experiment.steps import STEPS, ExperimentConfig, Standing
from pipelines.precompute.plan import DatasetFolder
from pipelines.run_folder import folder_lock

_TIMES_FILE = "times.json"
_STEP_CONFIGS_FOLDER = "configs"
_TIMED = ("tokenizer", "precompute", "generators")  # the report tells; of itself an evaluation tells there as well


def plan_experiment(config: ExperimentConfig, *, anew: str | None = None, only: str | None = None) -> list[str]:
    """The images, and each step with how it stands, for a dry run: one line each.

    Raises:
        UserError: see `run_experiment`; but what has changed is told.
    """
    plan, lines = make_plan(config), check_images(config)
    standings = plan.look()
    redone = _redone(plan, standings, anew, only)
    lines += [f"{line}: {plan.steps[name].description}" for name, line in _stand(plan, standings, redone, only).items()]
    folder = Path(config.folder)
    report = [] if config.evaluation is None else [f"write {folder / REPORT_FILE}"]
    return [*lines, *report, f"meanwhile keep {folder / STATUS_PAGE} up to date"]


def run_experiment(
    config: ExperimentConfig, *, anew: str | None = None, only: str | None = None, console: Console | None = None
) -> Path:
    """Do what is not finished yet; prints headlines, the score table and the report's place.

    Args:
        anew: a step that is done again, and all after it; what is there of them is moved aside.
        only: the one step that is done; what it reads must be finished.
        console: where to print.

    Returns:
        The report; the experiment's folder where it has none.

    Raises:
        UserError: a step cannot be done, or what is there is of other settings or inputs; the message says what to
            change. Finished steps stay.
        TrainingStopped: as asked, by a signal.
    """
    console = console or Console()
    plan = make_plan(config)
    for line in check_images(config):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    standings = plan.look()
    redone = _redone(plan, standings, anew, only)
    chosen = list(plan.steps) if only is None else [only]
    plan.refuse_changed({name: standings[name] for name in chosen if name not in redone})
    for line in _stand(plan, standings, redone, only).values():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    with folder_lock(plan.folder, "experiment", "folder"):
        _keep_step_configs(config, plan.folder / _STEP_CONFIGS_FOLDER, chosen)
        times = _StepTimes(plan.folder / _TIMES_FILE, console)
        if redone:
            _set_aside(plan, redone, times, console)
            standings = plan.look()
        try:
            _do(config, plan, standings, chosen, times, console)
        except TrainingStopped as stopped:
            raise TrainingStopped(f"{stopped}{', without --from' if redone else ''}") from stopped
    return _keep_report(config, plan.folder, console)


def _redone(plan: Plan, standings: Mapping[str, Standing], anew: str | None, only: str | None) -> list[str]:
    """The steps that are done again, in their order."""
    if only is not None:
        if anew is not None:
            raise UserError("--only and --from are both given; give one of them")
        plan.require_before(only, standings)
    return [] if anew is None else plan.onwards(anew)


def _stand(plan: Plan, standings: Mapping[str, Standing], redone: Sequence[str], only: str | None) -> dict[str, str]:
    """Each step's name with how it stands and what is done with it, in words."""
    lines = {name: describe_standing(found) for name, found in standings.items()}
    if changed := [name for name, found in standings.items() if found.state == "changed" and name not in redone]:
        after = [name for name in plan.onwards(changed[0]) if name not in changed]
        lines |= dict.fromkeys(after, f"must be done anew with {changed[0]}")
    lines |= dict.fromkeys(redone, "done anew, and what is there moved aside")
    lines |= {name: "left out" for name in lines if only not in (None, name)}
    return {name: f"{name} ({lines[name]})" for name in plan.steps}


def _do(
    config: ExperimentConfig,
    plan: Plan,
    standings: Mapping[str, Standing],
    chosen: Sequence[str],
    times: _StepTimes,
    console: Console,
) -> None:
    """The chosen steps, in order; looks again at those after one that was done."""
    is_idle = all(standings[name].state == "finished" for name in chosen)
    with (
        nullcontext() if is_idle else cluster_session(config.session),
        LiveStatus(plan, standings, times.seconds) as status,
    ):
        if not is_idle:
            require_shared("folder", plan.folder)
            if config.source.path:
                require_shared("source.path", Path(config.source.path), written=False)
        done: set[str] = set()
        for name in chosen:
            step, standing = plan.steps[name], standings[name]
            if plan.needs[name] & done:
                standing = step.look(True)
                plan.refuse_changed({name: standing})
            is_finished = standing.state == "finished"
            with times.step(name, is_finished=is_finished):
                if not is_finished:
                    status.begins(name)
                    step.run(times.seconds, console)
                    done.add(name)
            status.ends(name, "finished earlier" if is_finished else "finished")


def _set_aside(plan: Plan, names: Sequence[str], times: _StepTimes, console: Console) -> None:
    """Rename what is there of some steps; the last one first, so that no step is left whose inputs are gone.

    Raises:
        UserError: another process writes to a place; nothing was moved.
    """
    places: list[Path] = []
    for name in reversed(names):
        step = plan.steps[name]
        own = step.results if step.results and len(names) == 1 else map(Path, step.outputs.values())
        for place in (place.expanduser().absolute() for place in own if place.expanduser().exists()):
            if place.is_dir():
                with DatasetFolder(place).locked() if name == "precompute" else folder_lock(place, "step", "folder"):
                    pass
            places.append(place)
    for place in places:
        aside = next(aside for n in range(1, 1_000_000) if not (aside := _aside(place, n)).exists())
        place.rename(aside)
        console.print(f"moved {place} to {aside.name}", highlight=False, markup=False, soft_wrap=True)
    for name in names:
        times.forget(name)
    console.print("to go on after a stop, leave --from out: it would begin anew once more", highlight=False)


def _aside(place: Path, number: int) -> Path:
    return place.with_name(f"{place.name}.before-{number}")


def _keep_report(config: ExperimentConfig, folder: Path, console: Console) -> Path:
    report = folder / REPORT_FILE
    written = None if config.evaluation is None else Path(config.evaluation.output) / REPORT_FILE
    if written is None or not written.is_file():
        return folder
    write_atomically(report, written.read_bytes())
    console.print(f"\nopen     {report}", highlight=False, markup=False, soft_wrap=True)
    return report


class _Timed(TypedDict):
    seconds: float
    finished: bool


class _StepTimes:
    """Seconds each step took until it was first finished, over all starts, and a headline for each."""

    def __init__(self, file: Path, console: Console) -> None:
        self.file, self.console = file, console
        self.steps: dict[str, _Timed] = {}
        if file.exists():
            advice = "remove it: times are then counted anew"
            self.steps = read_json(file, dict[str, _Timed], "how long steps of an experiment took", advice)

    @property
    def seconds(self) -> dict[str, float]:
        return {name: step["seconds"] for name, step in self.steps.items()}

    def forget(self, name: str) -> None:
        """A step is done anew."""
        if self.steps.pop(name, None) is not None:
            self._write()

    @contextmanager
    def step(self, name: str, *, is_finished: bool) -> Iterator[None]:
        """Times the block and keeps what it took even if it is interrupted."""
        self.console.print(Rule(f"{name} · finished earlier" if is_finished else name, align="left", style="dim"))
        if name not in _TIMED:
            yield
            return
        step = self.steps.setdefault(name, {"seconds": 0.0, "finished": False})
        step["finished"] = is_finished
        start = time.monotonic()
        try:
            yield
            step["finished"] = True
        finally:
            if not is_finished:
                step["seconds"] += time.monotonic() - start
            self._write()

    def _write(self) -> None:
        write_atomically(self.file, json.dumps(self.steps, indent=2).encode())


def _keep_step_configs(config: ExperimentConfig, folder: Path, chosen: Sequence[str]) -> None:
    """Writes each step's resolved configuration, to run it again alone; that of one left out only where none is."""
    steps: dict[str, Any] = {name: getattr(config, name) for name in STEPS}
    if config.generators is not None:
        steps |= {run.kind: run for run in config.generators.runs}
    folder.mkdir(exist_ok=True)
    for name, step in steps.items():
        file = folder / f"{name}.yaml"
        if step is not None and ((name if name in STEPS else "generators") in chosen or not file.exists()):
            write_atomically(file, dump_config(step).encode())
