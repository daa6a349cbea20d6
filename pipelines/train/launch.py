"""From a run's configuration to a trained folder: on this rank, or through Ray Train V2 as launcher of the same loop.

Under Ray each training is one `TorchTrainer` with its own placement group, run name and port. Checkpoints go straight
to the run folder (all workers see it) under our own commit protocol; Ray restarts lost workers, and the loop then
resumes from the newest valid checkpoint by itself, exactly as after a start by hand.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

import nvg
from cluster.actors import require_resources, require_shared
from cluster.devices import WITHOUT_GPU
from cluster.ranks import FOR_EVER_S, Ranks, leave_process_group
from cluster.session import ClusterError, SessionConfig, ascii_name, cluster_session
from nvg.bounds import refuse
from nvg.checkpoints.runs import resolve_checkpoint
from nvg.errors import UserError
from pipelines.entry import EXIT_STOPPED, TrainingStopped, program
from pipelines.train.config import LaunchConfig, RunConfig
from pipelines.train.interrupt import ask_to_stop, on_stop_signals, request_in, stopped_text
from pipelines.train.loop import train
from pipelines.train.state import TrainerState
from pipelines.train.task import TrainingTask

Config = TypeVar("Config", bound=RunConfig)
TaskBuilder = Callable[[Config], TrainingTask]
_RAY_FOLDER = "ray"
_CODE_ROOT = Path(nvg.__file__).resolve().parents[1]


def run_training(config: Config, build_task: TaskBuilder[Config]) -> Path:
    """Train as `config.launch` says.

    Args:
        config: the run; relative paths are taken from the current folder.
        build_task: makes objective and data; called on every rank.

    Returns:
        The newest checkpoint's folder.

    Raises:
        UserError, TrainingStopped: see `train`; under Ray, a worker met it, or the cluster has too few resources.
    """
    if config.launch.launcher == "ray":
        return _train_through_ray(config, build_task)
    return run_on_this_rank(config, build_task, request_in(Path(config.run_folder)))


def run_on_this_rank(config: Config, build_task: TaskBuilder[Config], left_over: int | None = None) -> Path:
    """Train in this process, which is one rank of whatever launcher started it.

    Args:
        config: the run.
        build_task: makes objective and data.
        left_over: see `StopRequest`.

    Returns:
        The newest checkpoint's folder.
    """
    ranks = Ranks.read(device=config.loop.device, timeout_s=config.loop.hang_timeout_s)
    config.check_ranks(ranks.world_size)  # before anybody waits for ranks that are not there
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        task = build_task(config)
    return train(task, config, ranks, left_over=left_over)


Schema = TypeVar("Schema")


def command(
    schema: type[Schema], run: Callable[[Schema], object], description: str, arguments: Sequence[str] | None
) -> int:
    """Command line of a training module under any launcher; returns the exit code, see `pipelines.entry`."""
    code = program(schema, run, arguments, description=description)
    if code in (0, EXIT_STOPPED):
        leave_process_group()
    return code


def _train_through_ray(config: Config, build_task: TaskBuilder[Config]) -> Path:
    """Train with `config.launch.num_workers` ranks on the cluster; see `run_training`."""
    run_folder = Path(config.run_folder).resolve()
    left_over, is_new = request_in(run_folder), not run_folder.exists()
    session = SessionConfig(
        address=config.launch.address or "auto", num_cpus=_num_cpus(config.launch), log_to_driver=True
    )
    with cluster_session(session), on_stop_signals(lambda *_: ask_to_stop(run_folder)):
        import ray.train
        import ray.train.torch
        from ray import cloudpickle

        resources = worker_resources(config.launch)
        keys = {name: (f"launch.{name.lower()}s_per_worker", share) for name, share in resources.items()}
        require_resources(keys, "launch.num_workers", config.launch.num_workers)
        require_shared("run_folder", run_folder)
        trainer = ray.train.torch.TorchTrainer(
            _train_on_worker,
            train_loop_config={
                # As bytes: only workers need what it refers to, not the controller on the way.
                "run": cloudpickle.dumps((config, build_task, left_over)),  # pyright: ignore[reportPrivateImportUsage]
                "working_dir": os.getcwd(),
            },
            torch_config=ray.train.torch.TorchConfig(timeout_s=math.ceil(config.loop.hang_timeout_s or FOR_EVER_S)),
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.launch.num_workers,
                use_gpu=config.launch.gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(
                name=ascii_name(f"nvg-{run_folder.name}"),
                storage_path=str(run_folder / _RAY_FOLDER),
                failure_config=ray.train.FailureConfig(max_failures=config.launch.max_failures),
                worker_runtime_env={"env_vars": _worker_environment(config)},
            ),
        )
        try:
            _fit(trainer)
        except ray.train.TrainingFailedError as error:
            message = _own_message(error)
            if message is None:
                raise
            if is_new and {path.name for path in run_folder.glob("*")} <= {_RAY_FOLDER}:
                shutil.rmtree(run_folder, ignore_errors=True)  # the start was refused: no run has begun here
            raise UserError(message) from error
    return _require_finished(config, resolve_checkpoint(run_folder))


def _fit(trainer: Any) -> None:
    """Beside the main thread: there Ray would take Ctrl-C for itself and abort without a checkpoint."""
    beside = ThreadPoolExecutor(1, thread_name_prefix="ray-train")
    try:
        beside.submit(trainer.fit).result()
    finally:
        beside.shutdown(wait=False)  # where Ctrl-C was pressed again, the session's end frees the thread


def _require_finished(config: RunConfig, newest: Path) -> Path:
    """The newest checkpoint. Raises TrainingStopped where the workers were asked to end before the last step."""
    step = TrainerState.read(newest).step
    if step < config.last_step:
        raise TrainingStopped(stopped_text(newest.parents[1].name, step, config.optimizer.num_steps, newest))
    return newest


def _train_on_worker(given: dict[str, Any]) -> None:
    """Body of one Ray Train worker: one rank."""
    from ray import cloudpickle

    working_dir = Path(given["working_dir"])
    if working_dir.is_dir():  # Ray stands in a folder of its own; paths of the config are the driver's
        os.chdir(working_dir)
    with suppress(TrainingStopped):  # nothing failed, so nothing is to be restarted; the driver tells
        run_on_this_rank(*cloudpickle.loads(given["run"]))


def worker_resources(launch: LaunchConfig) -> dict[str, float]:
    """Ray resources of one rank."""
    resources = {"CPU": launch.cpus_per_worker}
    return resources | ({"GPU": launch.gpus_per_worker} if launch.gpus_per_worker else {})


def _num_cpus(launch: LaunchConfig) -> int:
    """Logical CPUs of a cluster that has to be started here: at least what the ranks ask for."""
    return max(math.ceil(launch.num_workers * launch.cpus_per_worker), os.cpu_count() or 1)


def python_path() -> str:
    """PYTHONPATH for a process that imports the project's packages."""
    return os.pathsep.join(filter(None, [str(_CODE_ROOT), os.environ.get("PYTHONPATH", "")]))


def _worker_environment(config: RunConfig) -> dict[str, str]:
    """Variables of one rank: it computes on what it reserves, whatever the driver's own environment says.

    Raises:
        UserError: `loop.device` asks for the other device.
    """
    gpus, device = config.launch.gpus_per_worker, "cuda" if config.launch.gpus_per_worker else "cpu"
    if config.loop.device not in ("auto", device):
        expected = "0 with loop.device=cpu, above 0 with loop.device=cuda"
        raise refuse("launch.gpus_per_worker", gpus, expected, "change one of them, or leave loop.device at auto")
    threads = str(config.loop.threads_per_rank or 1)
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": python_path()}
    return variables | ({"DS_ACCELERATOR": "cuda"} if gpus else WITHOUT_GPU)


def _own_message(error: BaseException) -> str | None:
    """Message of the first worker that failed with an error meant for the user; None when there is none."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for _, failure in sorted(failures.items()):
        cause: BaseException | None = failure
        while cause is not None:
            for candidate in (cause, getattr(cause, "cause", None)):
                if isinstance(candidate, UserError | ClusterError):
                    return str(candidate)
            cause = cause.__cause__
    return None
