"""From a run config to a trained folder, on this rank or through Ray; config.yaml and provenance.json."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar
import torch
from cluster.files import write_atomically
from cluster.ranks import leave_process_group, normalise_rank_environment
from nvg.errors import UserError
from pipelines.configuration import dump_config, load_config
from pipelines.train.config import DeepSpeedConfig, LaunchConfig, LoopConfig, OptimizerConfig
from pipelines.train.interrupt import EXIT_STOPPED, TrainingStopped, forget_request
from pipelines.train.loop import train
from pipelines.train.task import TrainingConfig, TrainingTask
from pipelines.training_window import NonFiniteLossError
from pipelines.run_folder import write_provenance


class RunConfig(Protocol):
    """The fields that every training's config has."""

    @property
    def run_folder(self) -> str:
        """Outputs."""
        ...

    @property
    def optimizer(self) -> OptimizerConfig:
        """AdamW, schedule, batch."""
        ...

    @property
    def loop(self) -> LoopConfig:
        """Loop and engine."""
        ...

    @property
    def deepspeed(self) -> DeepSpeedConfig:
        """ZeRO."""
        ...

    @property
    def launch(self) -> LaunchConfig:
        """Where the ranks run."""
        ...


Config = TypeVar("Config", bound=RunConfig)
TaskBuilder = Callable[[Config], TrainingTask]


def run_training(config: Config, build_task: TaskBuilder[Config]) -> Path:
    """Train as ``config.launch`` says.

    Args:
        config: the run's configuration.
        build_task: makes objective and data; called on every rank.

    Returns:
        The newest checkpoint's folder.

    Raises:
        UserError, TrainingStopped: see :func:`pipelines.train.loop.train`.
    """
    forget_request(Path(config.run_folder))
    if config.launch.launcher == "ray":
        from pipelines.training_ray import train_through_ray  # Ray is needed for this launcher only

        return train_through_ray(config, build_task)
    return run_on_this_rank(config, build_task)


def run_on_this_rank(config: Config, build_task: TaskBuilder[Config]) -> Path:
    """Train in this process, which is one rank of whatever launcher started it.

    Args:
        config: the run's configuration.
        build_task: makes objective and data.

    Returns:
        The newest checkpoint's folder.
    """
    place = normalise_rank_environment()
    run_folder = Path(config.run_folder).resolve()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        task = build_task(config)
    if place.is_main:
        write_provenance(run_folder, config, task.batches.fingerprint)
    training = TrainingConfig(optimizer=config.optimizer, loop=config.loop, deepspeed=config.deepspeed)
    return train(task, training, run_folder)








Schema = TypeVar("Schema")


def command(
    schema: type[Schema], run: Callable[[Schema], object], description: str, arguments: Sequence[str] | None
) -> int:
    """Command line of a training module: ``--config FILE key=value …`` under any launcher.

    Args:
        schema: the run config's dataclass.
        run: called with the config.
        description: for ``--help``.
        arguments: None reads ``sys.argv``.

    Returns:
        Exit code: 0, 2 after a message for the user, 143 where a signal or the file ``stop`` ended the training.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", default=None, help="YAML file; without it the defaults")
    parser.add_argument("--local_rank", type=int, default=None, help="given by the deepspeed launcher; unused")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file")
    given = parser.parse_args(arguments)
    try:
        run(load_config(schema, given.config, given.overrides))
    except (UserError, NonFiniteLossError) as error:
        sys.stderr.write(f"\nerror: {error}\n")
        return 2
    except TrainingStopped as stopped:
        sys.stderr.write(f"\n{stopped}\n")
        leave_process_group()
        return EXIT_STOPPED
    leave_process_group()
    return 0
