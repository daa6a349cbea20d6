"""Many evaluations against one reference, each on few samples.

`nvg eval sweep` tries many sampling settings on the same generators. `nvg eval follow` scores the EMA weights of
trainings that run, beside them, without stopping them: it watches run folders only, so it may run on spare devices or
another machine that sees them, and what it scores it copies first, since trainings delete old checkpoints.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, cast

from rich.console import Console

from cluster.files import write_atomically
from cluster.session import cluster_session
from eval.pages import page
from eval.pictures.plots import scatter
from nvg.bounds import at_least, positive, refuse
from nvg.checkpoints.runs import TRAINER_FILE, newest_valid
from nvg.json_files import Count, parse_json, read_json
from nvg.sampling import SamplingConfig
from pipelines.evaluate.against import draw_against, open_against, print_against
from pipelines.evaluate.config import EvaluateConfig, make_folder, require

SWEEP_FILE, PAGE_FILE = "sweep.json", "sweep.html"
_SCORES = {"fid": "FID ↓", "fd": "FD ↓", "inception_score": "IS ↑", "precision": "precision ↑", "recall": "recall ↑"}
_SCORES_FILE = "scores.jsonl"
_WEIGHTS_FOLDER = "weights"
_SWEPT = ("content_guidance", "structure_guidance", "top_p_last", "num_flow_steps")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(EvaluateConfig):
    """An evaluation against a reference, once for every combination of the values listed.

    Attributes:
        content_guidance, structure_guidance, top_p_last, num_flow_steps: values tried in place of those of `sampling`;
            an empty list tries its value alone.
    """

    content_guidance: list[float] = field(default_factory=list)
    structure_guidance: list[float] = field(default_factory=list)
    top_p_last: list[float] = field(default_factory=list)
    num_flow_steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "an npz file; a sweep compares with a reference", "reference")
        for name in ("samples_file", "samples_folder"):
            if getattr(self, name):
                raise refuse(name, getattr(self, name), "nothing, since a sweep keeps no images", "leave it empty")

    def combinations(self) -> list[dict[str, float]]:
        """The settings that change, one dictionary a combination; those listed last change fastest."""
        lists = {name: getattr(self, name) for name in _SWEPT if getattr(self, name)}
        return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def plan_sweep(config: SweepConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    combinations = config.combinations()
    return [
        f"read the reference {config.reference}",
        *(f"draw and score {config.pool.num_samples} samples: {describe(changed)}" for changed in combinations),
        f"write {SWEEP_FILE} and {PAGE_FILE} in {config.output}",
    ]


def run_sweep(config: SweepConfig, *, console: Console | None = None) -> Path:
    """Score every combination; started again, it goes on where it was.

    Returns:
        The page with the plot of FID against the Inception score.

    Raises:
        UserError: weights or reference are missing or do not belong together, or a value is impossible.
    """
    console = console or Console()
    resolved = config.resolved()
    output = make_folder(resolved.output)
    tries = [SamplingConfig(**{**asdict(config.sampling), **changed}) for changed in config.combinations()]
    opened = open_against(resolved)
    rows: list[dict[str, Any]] = []
    with cluster_session(config.session):
        for changed, sampling in zip(config.combinations(), tries, strict=True):
            one = replace(resolved, sampling=sampling)
            spec = replace(opened.spec, sampling=sampling)
            _, results = draw_against(one, replace(opened, spec=spec), console=console, title=describe(changed))
            rows.append({"changed": changed, "sampling": asdict(sampling), **results})
            scores = results["scores"]["generated"]
            line = "  ".join(f"{title} {_marked(results, key)}" for key, title in _SCORES.items() if key in scores)
            console.print(f"{describe(changed)}: {line}", highlight=False, soft_wrap=True)
            write_atomically(output / SWEEP_FILE, f"{json.dumps(rows, indent=2, allow_nan=False)}\n".encode())
    for note in _notes(rows):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    write_atomically(output / PAGE_FILE, _sweep_page(rows).encode())
    return output / PAGE_FILE


def describe(changed: Mapping[str, float]) -> str:
    """A combination in words: `content_guidance 3.5, num_flow_steps 10`."""
    return ", ".join(f"{name} {value:g}" for name, value in changed.items()) or "as configured"


def _marked(results: Mapping[str, Any], score: str) -> str:
    return f"{results['scores']['generated'][score]:.3f}{page.dagger(results, 'generated', score)}"


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is to be said of the scores of any row, once."""
    return list(dict.fromkeys(note for row in rows for note in page.caveat_notes(row)))


def _sweep_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """FID against the Inception score, and the table, as one HTML page; `rows` are what was noted, at least one.

    In features without an Inception score, FD stands against precision.
    """
    scores, name = [row["scores"]["generated"] for row in rows], page.distance_name(rows[0])
    distance, across, title = ("fid", "inception_score", "Inception score")
    if distance not in scores[0]:
        distance, across, title = ("fd", "precision", "precision")
    best = min(range(len(rows)), key=lambda number: scores[number][distance])
    points = [
        (score[across], score[distance], describe(row["changed"]), number == best)
        for number, (row, score) in enumerate(zip(rows, scores, strict=True))
    ]
    shown = {key: name + " ↓" if key == "fd" else text for key, text in _SCORES.items() if key in scores[0]}
    table = [[describe(row["changed"]), *(_marked(row, key) for key in shown)] for row in rows]
    remarks = "; ".join([*rows[0]["not_comparable_because"], *_notes(rows)])
    against = f"{name} against {'the ' if across == 'inception_score' else ''}{title}"
    return page.page(
        "Sampling settings",
        page.header("Sampling settings"),
        page.section(
            against,
            "Each point is one setting. Guidance and a smaller nucleus trade variety for legibility: the score rises, "
            f"and beyond some point {name} rises with it.",
            page.figure(
                scatter(points, title, name),
                f"{against} of every setting",
                f"{scores[0]['num_images']:,} samples a setting; the lowest {name} in colour. {remarks}",
            ),
            page.table(["setting", *shown.values()], table, first=best),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class FollowConfig(EvaluateConfig):
    """An evaluation against a reference that is repeated while the generators are trained.

    Attributes:
        eval_every_images: images of the content training between two evaluations.
        poll_s: pause between two looks at the run folders.
        until_images: the evaluation at or past so many images is the last; 0 goes on until stopped.
    """

    eval_every_images: int = at_least(1, 5_000_000)
    poll_s: float = positive(60.0)
    until_images: int = at_least(0, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "an npz file to compare samples with", "reference")


def plan_follow(config: FollowConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    end = f"until {config.until_images:,} images" if config.until_images else "until stopped"
    return [
        f"look at {config.content} and {config.structure or 'no structure generator'} every {config.poll_s:g} s, {end}",
        f"after every {config.eval_every_images:,} images copy the newest whole checkpoints, draw "
        f"{config.pool.num_samples} samples of their {config.weights} weights, score them against {config.reference}",
        f"append a line to {config.output}/{_SCORES_FILE}",
    ]


def run_follow(
    config: FollowConfig, *, console: Console | None = None, wait: Callable[[float], None] = time.sleep
) -> Path:
    """Score checkpoints as they come; started again, it goes on after the last one scored.

    Args:
        config: what is followed.
        console: where scores are shown.
        wait: called with the pause between two looks, seconds; a test lets trainings go on in it.

    Returns:
        The file of scores, one JSON line an evaluation.

    Raises:
        UserError: weights or reference do not belong together.
    """
    console = console or Console()
    output = make_folder(config.output)
    rows = read_scores(output)
    with cluster_session(config.session):
        while not (rows and config.until_images and rows[-1]["content_images"] >= config.until_images):
            due = rows[-1]["content_images"] + config.eval_every_images if rows else 0
            found = _newest(config, console)
            if found is None or found["content"][1] < due:
                wait(config.poll_s)
                continue
            rows.append(_score(config, found, output, console))
            text = "".join(f"{json.dumps(row, allow_nan=False)}\n" for row in rows)
            write_atomically(output / _SCORES_FILE, text.encode())
    return output / _SCORES_FILE


class _Scored(TypedDict):
    content_images: Count


class _Seen(TypedDict):
    images: Count


def read_scores(output: Path) -> list[dict[str, Any]]:
    """What was scored so far, oldest first."""
    path, advice = output / _SCORES_FILE, "remove the line: that evaluation is then made again"
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = [
        parse_json(line, _Scored, f"{path}, line {number}", "what was scored", advice)
        for number, line in enumerate(lines, start=1)
    ]
    return cast(list[dict[str, Any]], rows)


def _newest(config: FollowConfig, console: Console) -> dict[str, tuple[Path, int]] | None:
    """Newest whole checkpoint of each run and the images it has seen; None until all have one."""
    found = {}
    for name in ("content", "structure"):
        run = getattr(config, name)
        if not run:
            continue
        checkpoint = newest_valid(Path(run).expanduser().absolute() / "checkpoints", console.print)
        if checkpoint is None:
            return None
        found[name] = (checkpoint, images_seen(checkpoint))
    return found


def images_seen(checkpoint: Path) -> int:
    """Images a training had seen at a checkpoint.

    Raises:
        UserError: it does not say.
    """
    seen: Any = read_json(checkpoint / TRAINER_FILE, _Seen, "a checkpoint of nvg train", "give its run folder")
    return seen["images"]


def _score(config: FollowConfig, found: dict[str, tuple[Path, int]], output: Path, console: Console) -> dict[str, Any]:
    copies = {name: _copy(path, config.weights, output / _WEIGHTS_FOLDER / name) for name, (path, _) in found.items()}
    one = replace(config, **{name: str(path) for name, path in copies.items()}).resolved()
    _, results = draw_against(one, open_against(one), console=console, title=found["content"][0].name)
    console.print(f"\n{found['content'][1]:,} images", style="bold", highlight=False)
    print_against(results, console)
    shutil.rmtree(output / _WEIGHTS_FOLDER)
    images = {f"{name}_images": count for name, (_, count) in found.items()}
    kept = {name: results[name] for name in ("caveats", "protocol")}
    return {**images, "scores": results["scores"]["generated"], **kept}


def _copy(checkpoint: Path, weights: str, target: Path) -> Path:
    """The weights and what describes them, out of reach of the training's own tidying."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in (f"{weights}.safetensors", "config.json", TRAINER_FILE):
        shutil.copy2(checkpoint / file, target / file)
    return target
