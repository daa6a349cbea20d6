"""Send a command to a Ray cluster as a job, follow its log and return its exit code.

Two ways to reach the code on the other side:

* without an upload (`working_dir=None`) the job runs in the folder the caller stands in, which the head
  must see under the same path: the same machine, or a shared file system. Relative outputs land there.
* with an upload, Ray copies `working_dir` to the cluster and the job runs in that copy, which goes away
  with the cluster: outputs must then be given as absolute paths on storage the cluster shares.
"""

import asyncio
import logging
import math
import os
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cluster.head import local_head
from cluster.session import ClusterError, SessionConfig, check_reachable, refused_token, session_environment, variable

# Never part of an upload: the job server refuses more than 100 MiB, and outputs are not code.
_UPLOAD_EXCLUDES = [
    "/runs/", "/build/", "/dist/", "/wandb/", "/tests/data/", "*.egg-info/", "*.safetensors", ".git", ".venv",
    "__pycache__/", "/docs/",
]  # fmt: skip
_STOP_WAIT_S = 120
_STATUS_POLL_S = 0.5
_STATUS_TIMEOUT_S = 60.0
_AGENT_TIMEOUT_S = 180.0  # its imports take this long on a busy machine
_NO_AGENT_YET = "No available agent"
EXIT_STOPPED = 143


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """How a command becomes a Ray job.

    Attributes:
        address: job server ("http://host:8265"), cluster address ("host:6379") or "auto" for the cluster
            of RAY_ADDRESS; None starts a cluster on this machine for as long as the job runs.
        working_dir: folder to upload and run in; None runs in the current folder without an upload.
        excludes: patterns (as in .gitignore) left out of the upload.
        env_vars: environment variables of the job and of its workers.
        submission_id: name of the job; None makes one. An id can be used once per cluster.
        num_cpus: logical CPUs held by the job's driver itself.
        session: size of the cluster to start when `address` is None.
    """

    address: str | None = None
    working_dir: str | None = None
    excludes: list[str] = field(default_factory=lambda: list(_UPLOAD_EXCLUDES))
    env_vars: dict[str, str] = field(default_factory=dict)
    submission_id: str | None = None
    num_cpus: float = 0
    session: SessionConfig = field(default_factory=lambda: SessionConfig(address="local"))

    def __post_init__(self) -> None:
        if not 0 <= self.num_cpus < math.inf:
            raise ValueError(f"num_cpus is {self.num_cpus}; expected 0 or more; change num_cpus")
        if self.working_dir is not None and not Path(self.working_dir).is_dir():
            raise ValueError(
                f"working_dir is {self.working_dir!r}; expected a folder that is there; change working_dir"
            )


def submit(
    command: Sequence[str], config: JobConfig | None = None, *, write: Callable[[str], object] | None = None
) -> int:
    """Run a command as a Ray job and wait for it.

    Args:
        command: program and arguments, for example ["nvg", "precompute", "--config", "demo/digits.yaml"].
        config: where and how; None starts a local cluster and runs in the current folder.
        write: receives the job's output in chunks; None prints it to this process's stdout.

    Returns:
        Exit code of the command; 143 when the job was stopped, 1 when it failed without a code.

    Raises:
        ValueError: the command is empty.
        ClusterError: no job server answers, it has another version of Ray, or it refuses the job.
    """
    config = config or JobConfig()
    if not command:
        raise ValueError("There is no command to submit; write it after `--`: nvg submit -- nvg doctor")
    os.environ.update(session_environment(config.session))
    with ExitStack() as stack:
        address = config.address
        if address is None:
            address = stack.enter_context(local_head(config.session))
        return _run_job(address, command, config, write or _print)


def job_entrypoint(command: Sequence[str], *, folder: str | None) -> str:
    """The shell line of a job, in which every argument reaches the program unchanged.

    Args:
        folder: where it runs; None leaves the choice to the job server (the upload).
    """
    line = shlex.join(command)
    return line if folder is None else f"cd {shlex.quote(folder)} && exec {line}"


def job_environment(config: JobConfig) -> dict[str, str]:
    """Environment variables of a job: its stop delay, this interpreter's programs first, then the config's.

    The path of this interpreter is given only where the job shares this machine's files.
    """
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S), "PYTHONUNBUFFERED": "1"}
    if config.working_dir is None:
        programs = os.path.dirname(sys.executable)
        environment["PATH"] = f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**environment, **config.env_vars}


def _run_job(address: str, command: Sequence[str], config: JobConfig, write: Callable[[str], object]) -> int:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # else it reports a normal end
    submission_id = config.submission_id or f"nvg-{uuid.uuid4().hex[:12]}"
    runtime_env: dict = {"env_vars": job_environment(config)}
    if config.working_dir is not None:
        runtime_env |= {"working_dir": config.working_dir, "excludes": config.excludes}
    try:
        check_reachable(address)
        # Else RAY_ADDRESS, where it is set, would win over the argument.
        with variable("RAY_API_SERVER_ADDRESS", "" if address == "auto" else address):
            client = JobSubmissionClient(address)
        _require_same_version(client, address)
        _send(
            client,
            entrypoint=job_entrypoint(command, folder=os.getcwd() if config.working_dir is None else None),
            submission_id=submission_id,
            runtime_env=runtime_env,
            entrypoint_num_cpus=config.num_cpus,
        )
    except ClusterError:
        raise
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        if said := refused_token(address, error):
            raise ClusterError(said) from error
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ClusterError(
            f"The job server at {address!r} did not take the job {submission_id!r}: {reason}. "
            "The address is that of the head's dashboard, for example http://head:8265."
        ) from error
    try:
        asyncio.run(_follow(client, submission_id, write))
        return _exit_code(client, submission_id)
    except KeyboardInterrupt:
        client.stop_job(submission_id)
        _exit_code(client, submission_id)
        raise
    except (RuntimeError, OSError) as error:
        raise ClusterError(
            f"The job server at {address!r} is gone while job {submission_id!r} ran: {error}. With its head the job is "
            "lost; once there is a head again, start the same command again: it goes on from its files."
        ) from error


def _require_same_version(client, address: str) -> None:
    import ray

    there = getattr(client, "_server_ray_version", ray.__version__)
    if there != ray.__version__:
        raise ClusterError(
            f"The Ray cluster at {address!r} runs Ray {there}, this process has {ray.__version__}; expected the same; "
            f"install ray=={there} here, or start the cluster with {ray.__version__}"
        )


def _send(client, **job) -> None:
    """Submit the job; a head that has only just started may not have its agent yet and says so."""
    deadline = time.monotonic() + _AGENT_TIMEOUT_S
    while True:
        try:
            client.submit_job(**job)
            return
        except RuntimeError as error:
            if _NO_AGENT_YET not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(_STATUS_POLL_S)  # the job server has no call that waits


async def _follow(client, submission_id: str, write: Callable[[str], object]) -> None:
    async for chunk in client.tail_job_logs(submission_id):
        write(chunk)


def _exit_code(client, submission_id: str) -> int:
    """Exit code of a job whose log has ended; the job server is asked until it has noted the end."""
    from ray.job_submission import JobStatus

    deadline = time.monotonic() + _STATUS_TIMEOUT_S + _STOP_WAIT_S
    while True:
        info = client.get_job_info(submission_id)
        if info.status.is_terminal():
            break
        if time.monotonic() > deadline:
            raise ClusterError(
                f"The log of job {submission_id!r} has ended but its status is still {info.status}; "
                f"ask `ray job status {submission_id}`."
            )
        time.sleep(_STATUS_POLL_S)  # the job server has no call that waits
    if info.status == JobStatus.STOPPED:
        return EXIT_STOPPED
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    return 0 if info.status == JobStatus.SUCCEEDED else 1


def _print(chunk: str) -> None:
    sys.stdout.write(chunk)
    sys.stdout.flush()
