"""The order of an experiment's steps, what is refused before anything starts, and how all of them stand.

Nobody says the order: a step comes after those whose outputs hold what it reads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, pairwise
from pathlib import Path

from nvg.bounds import refuse
from nvg.errors import Changed, UserError
from pipelines.experiment.steps import STEPS, ExperimentConfig, Progress, Standing, Step, steps_of


@dataclass(frozen=True)
class Plan:
    """The steps of an experiment.

    Attributes:
        folder: of the experiment.
        steps: by name, in the order of work.
        needs: name to the steps whose outputs it reads.
    """

    folder: Path
    steps: Mapping[str, Step]
    needs: Mapping[str, set[str]]

    def look(self) -> dict[str, Standing]:
        """How each step stands; nothing is written.

        Raises:
            UserError: a step cannot be done, whatever is there.
        """
        standings: dict[str, Standing] = {}
        for name, step in self.steps.items():
            standings[name] = step.look(all(standings[other].state == "finished" for other in self.needs[name]))
        return standings

    def onwards(self, name: str) -> list[str]:
        """A step and all after it.

        Raises:
            UserError: the experiment has no such step.
        """
        if name not in self.steps:
            raise refuse("the step", name, f"one of {', '.join(self.steps)}", "name another one")
        names = list(self.steps)
        return names[names.index(name) :]

    def refuse_changed(self, standings: Mapping[str, Standing]) -> None:
        """Raises Changed where something that is there is not what is asked for now."""
        changed = {name: found.changes for name, found in standings.items() if found.state == "changed"}
        if not changed:
            return
        first = next(iter(changed))
        lines = [f"{name}: {line}" for name, changes in changed.items() for line in changes]
        raise Changed(
            f"{self.folder} holds steps of other settings or inputs than these:\n  "
            + "\n  ".join(lines)
            + f"\nto be done anew: {', '.join(self.onwards(first))}; set these back, choose another folder, or add "
            f"--from {first}, which does so and keeps what is there beside it",
            lines,
        )

    def require_before(self, name: str, standings: Mapping[str, Standing]) -> None:
        """Raises UserError unless everything is finished that a step reads."""
        self.onwards(name)
        for other in self.steps:
            if other in self.needs[name] and standings[other].state != "finished":
                found = f"{other} is not finished ({describe_standing(standings[other])})"
                raise UserError(f"--only {name}: {found}; leave --only out, or begin with --only {other}")


def make_plan(config: ExperimentConfig) -> Plan:
    """Put the steps in order.

    Raises:
        UserError: there is none, two write to one place, one waits for itself, or something that one reads is nowhere.
    """
    if not config.folder:
        raise refuse("folder", "", "the experiment's own folder")
    folder, steps = Path(config.folder).expanduser().absolute(), steps_of(config)
    if not steps:
        raise UserError(f"the experiment has no step; expected one of {', '.join(STEPS)}; give its section")
    _refuse_shared_outputs(steps, folder)
    makers = {output: step.name for step in steps for output in map(_place, step.outputs.values())}
    needs: dict[str, set[str]] = {step.name: set() for step in steps}
    reads: dict[tuple[str, str], str] = {}
    for step in steps:
        for key, path in step.inputs.items():
            made_by = [maker for output, maker in makers.items() if _place(path).is_relative_to(output)]
            if not made_by and not Path(path).expanduser().exists():
                raise refuse(key, path, "what is there already, or lies in what a step here makes", _whose(key, steps))
            for maker in made_by:
                needs[step.name].add(maker)
                reads[step.name, maker] = f"{key} is {path}"
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        circle = error.args[1]
        lines = [f"  {reader} waits for {maker}: {reads[reader, maker]}" for maker, reader in pairwise(circle)]
        raise UserError(
            "the steps wait for each other in a circle:\n" + "\n".join(lines) + "\nname another place in one of these"
        ) from None
    by_name = {step.name: step for step in steps}
    return Plan(folder, {name: by_name[name] for name in order}, needs)


def _refuse_shared_outputs(steps: Sequence[Step], folder: Path) -> None:
    """Refuse outputs of which one is or holds another, or the folder of the experiment."""
    outputs = {key: _place(path) for step in steps for key, path in step.outputs.items()}
    for key, place in outputs.items():
        if _place(folder).is_relative_to(place):
            raise refuse(key, str(place), f"a place below or beside the experiment's folder {folder}")
    for (first, there), (key, place) in combinations(outputs.items(), 2):
        if there.is_relative_to(place) or place.is_relative_to(there):
            raise refuse(key, str(place), f"a place apart from {first}, which is {there}", "give each step its own")


def _whose(key: str, steps: Sequence[Step]) -> str:
    missing = [name for name in STEPS if name not in {step.name for step in steps}]
    return f"change {key}" + (f", or add the step that makes it ({' or '.join(missing)})" if missing else "")


def _place(path: str | Path) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))


def describe_standing(found: Standing) -> str:
    """How a step stands, in words."""
    if found.state == "changed":
        return f"must be done anew, because {'; '.join(found.changes)}"
    if found.state == "begun":
        return f"goes on at {', '.join(map(describe_progress, found.progress))}"
    return found.state


def describe_progress(progress: Progress) -> str:
    """How far a part of a step is, in words."""
    note = f" ({progress.note})" if progress.note else ""
    return f"{progress.part} {progress.done:,} of {progress.total:,} {progress.unit}{note}".strip()
