"""A whole experiment in this process and in seconds: everything is real but the pools of Ray and the scores."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cluster.files import write_atomically
from nvg.checkpoints.runs import resolve_checkpoint
from pipelines.configuration import load_config
from pipelines.experiment import run as running
from pipelines.experiment import steps
from pipelines.experiment.steps import STEPS, ExperimentConfig
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.job import _open_job
from pipelines.precompute.merge import merge_parts
from pipelines.precompute.unit import encode_unit
from pipelines.train.drivers import PairRunConfig
from pipelines.train.generator import train_generator

_FOLDER = "/the/folder"
SETTINGS = (
    "source.num_views=1",
    "source.view_policy=center",
    "tokenizer.model.base_width=8",
    "tokenizer.optimizer.total_images=128",
    "tokenizer.optimizer.warmup_images=0",
    "tokenizer.loss.soft_assignment_images=0",
    "tokenizer.loop.engine=plain",
    "tokenizer.loop.log_every_steps=1",
    "tokenizer.loop.checkpoint_every_steps=1",
    "precompute.source.split=test",
    "precompute.images_per_unit=150",
    *(
        f"generators.{kind}.{setting}"
        for kind in ("content", "structure")
        for setting in (
            f"{kind}.depth=1",
            "optimizer.total_images=128",
            "optimizer.warmup_images=0",
            "loop.engine=plain",
            "loop.log_every_steps=1",
            "loop.checkpoint_every_steps=1",
            "launch.launcher=process",
        )
    ),
)


def configured(folder: Path, *settings: str) -> ExperimentConfig:
    """The demo's file, shortened to two steps a training."""
    return _placed(_loaded(*(text.replace(str(folder), _FOLDER) for text in settings)), str(folder))


@cache
def _loaded(*settings: str) -> ExperimentConfig:
    return load_config(ExperimentConfig, "demo/digits.yaml", [f"folder={_FOLDER}", *SETTINGS, *settings])


def _placed(value: Any, folder: str) -> Any:
    """The configuration with every path below that folder."""
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: _placed(getattr(value, item.name), folder) for item in fields(value)})
    if isinstance(value, dict):
        return {key: _placed(item, folder) for key, item in value.items()}
    return value.replace(_FOLDER, folder) if isinstance(value, str) else value


class ChainHere:
    """What the steps do instead; notes which of them were begun.

    Attributes:
        begun: their names, in order.
        stop_in: the step that ends after a part of its work, by the error.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.stop_in: dict[str, BaseException] = {}
        train_tokenizer = steps.train_tokenizer

        def tokenizer(config: Any) -> Path:
            self._begin("tokenizer")
            if "tokenizer" in self.stop_in:
                train_tokenizer(replace(config, loop=replace(config.loop, stop_after_steps=1)))
            self._stop("tokenizer")
            return train_tokenizer(config)

        patch.setattr(steps, "train_tokenizer", tokenizer)
        patch.setattr(steps, "precompute", self._precompute)
        patch.setattr(steps, "train_generators", self._generators)
        patch.setattr(steps, "run_evaluate", self._evaluate)
        patch.setattr(running, "cluster_session", self._no_cluster)
        patch.setattr(running, "require_shared", lambda *_, **__: None)

    def _begin(self, name: str) -> None:
        self.begun.append(name)

    def _stop(self, name: str) -> None:
        if name in self.stop_in:
            raise self.stop_in.pop(name)

    def _precompute(self, config: PrecomputeConfig) -> Path:
        self._begin("precompute")
        _, tokenizer, source, folder, plan = _open_job(config, tell=False)
        with folder.locked():
            folder.adopt(plan)
            done = folder.committed(plan)
            for unit, indices in enumerate(plan.units):
                if unit not in done:
                    done[unit] = encode_unit(
                        unit,
                        indices,
                        source=source,
                        tokenizer=tokenizer.eval(),
                        config=config,
                        folder=folder,
                        plan_fingerprint=plan.fingerprint,
                        stamps=source.stamps(),
                    )
                self._stop("precompute")
            return merge_parts(folder, plan, done, source=source, tokenizer=tokenizer)

    def _generators(self, config: PairRunConfig) -> tuple[Path, ...]:
        self._begin("generators")
        for run in config.runs:
            if not (Path(run.run_folder) / "checkpoints" / f"step-{run.last_step:08d}").exists():
                train_generator(run)
            self._stop("generators")
        return tuple(resolve_checkpoint(run.run_folder) for run in config.runs)

    def _evaluate(self, config: Any, *, console: Any) -> dict[str, Any]:
        self._begin("evaluation")
        config = config.resolved()
        output = Path(config.output)
        (output / "pool").mkdir(parents=True, exist_ok=True)
        self._stop("evaluation")
        scores = {"num_flow_steps": config.sampling.num_flow_steps, "times": sorted(config.times)}
        write_atomically(output / "results.json", json.dumps(scores).encode())
        write_atomically(output / "report.html", f"<p>{config.title}</p>".encode())
        return scores

    def _no_cluster(self, config: Any) -> Any:
        self._begin("cluster")
        return nullcontext()

    def take(self) -> list[str]:
        """The steps that were begun since the last call; the cluster is none."""
        begun, self.begun = [name for name in self.begun if name in STEPS], []
        return begun
