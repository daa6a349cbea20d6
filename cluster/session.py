"""Start a Ray cluster on this machine or join one that runs, as a context manager.

Every entry point that needs Ray goes through `cluster_session`, so that one place decides what a worker inherits
(threads, authentication, log level) and that nobody shuts down a cluster somebody else started.
"""

import logging
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

# `$temp_dir/session_<date>_<time>_<pid>/sockets/plasma_store` must fit into a Unix socket's 107 bytes.
_MAX_TEMP_DIR_BYTES = 40
MAX_TMPDIR_BYTES = _MAX_TEMP_DIR_BYTES - len("/ray")  # Ray's own folder there
_SHORT_TEMP_DIR = "/tmp"
_ADDRESS = re.compile(r"(ray://)?([^/:\s]+|\[[0-9a-fA-F:.]+\]):[0-9]+")
MIN_OBJECT_STORE_BYTES = 80 * 2**20
_CONNECT_TIMEOUT_S = 10.0

# What Ray's own processes read at start. A value already in the environment wins.
_SESSION_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # written out, since Ray's default moves from release to release
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # who reserves no GPU sees none
    "RAY_JOB_STOP_WAIT_TIME_S": "120",  # 3 s by default: a stop would cut the last checkpoint
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",  # inside a job, the session's variables win over the job's
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_raylet_start_wait_time_s": "120",  # 30 s by default: too short on a busy machine
}


class ClusterError(ValueError):
    """The cluster asked for cannot be joined or started; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """Which cluster to use and, when it has to be started, how large it is.

    Attributes:
        address: "auto" joins the cluster of RAY_ADDRESS (set inside a Ray job) and starts one on this
            machine where that is not set; "local" always starts one; anything else ("10.0.0.5:6379",
            "ray://head:10001") joins that one or fails.
        num_cpus: logical CPUs of a started cluster; None takes all cores.
        num_gpus: logical GPUs of a started cluster; None takes what Ray finds.
        object_store_memory_bytes: shared memory of a started cluster; None leaves the choice to Ray.
        temp_dir: folder of Ray's sockets and logs of a started cluster, an absolute path of at most
            40 bytes; None means Ray's default, see `settle_temporary_folder`.
        threads_per_worker: OMP_NUM_THREADS and MKL_NUM_THREADS of every worker, so that concurrent
            workers do not fight over cores.
        env_vars: further environment variables of every worker.
        auth_mode: "disabled" or "token" (Ray reads the token from RAY_AUTH_TOKEN or its file). The
            variable RAY_AUTH_MODE, where set, wins. A started cluster's dashboard listens on loopback.
        log_to_driver: whether the workers' output appears in this terminal.
    """

    address: str = "auto"
    num_cpus: int | None = None
    num_gpus: int | None = None
    object_store_memory_bytes: int | None = None
    temp_dir: str | None = None
    threads_per_worker: int = 1
    env_vars: dict[str, str] = field(default_factory=dict)
    auth_mode: str = "disabled"
    log_to_driver: bool = False

    def __post_init__(self) -> None:
        store, temp_dir = self.object_store_memory_bytes, self.temp_dir
        num_bytes = 0 if temp_dir is None else len(os.fsencode(temp_dir))
        checks = {
            "address": (bool(self.address), '"auto", "local" or the address of a cluster'),
            "num_cpus": (self.num_cpus is None or self.num_cpus >= 1, "1 or more, or null for all cores"),
            "num_gpus": (self.num_gpus is None or self.num_gpus >= 0, "0 or more, or null for what is found"),
            "object_store_memory_bytes": (
                store is None or store >= MIN_OBJECT_STORE_BYTES,
                f"{MIN_OBJECT_STORE_BYTES} or more, or null to let Ray choose",
            ),
            "temp_dir": (
                temp_dir is None or (os.path.isabs(temp_dir) and num_bytes <= _MAX_TEMP_DIR_BYTES),
                f"an absolute path of at most {_MAX_TEMP_DIR_BYTES} bytes, not {num_bytes}, since Ray's socket names "
                "below it are limited to 107",
            ),
            "threads_per_worker": (self.threads_per_worker >= 1, "1 or more"),
            "auth_mode": (self.auth_mode in ("disabled", "token"), '"disabled" or "token"'),
        }
        for key, (fits, expected) in checks.items():
            if not fits:
                raise ValueError(f"session.{key} is {getattr(self, key)!r}; expected {expected}; change session.{key}")


@dataclass(frozen=True, kw_only=True)
class ClusterSession:
    """A connected cluster.

    Attributes:
        address: address of the head ("host:port").
        dashboard_url: "http://host:port" of the dashboard and job server, or "" when there is none.
        started: whether this process started the cluster, and so will end it.
        num_cpus: logical CPUs of the whole cluster.
        num_gpus: logical GPUs of the whole cluster.
    """

    address: str
    dashboard_url: str
    started: bool
    num_cpus: int
    num_gpus: int


def session_environment(config: SessionConfig) -> dict[str, str]:
    """Variables that Ray's processes read when they start, without those the environment already sets."""
    wanted = {**_SESSION_ENVIRONMENT, "RAY_AUTH_MODE": config.auth_mode}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def settle_temporary_folder(*, for_ray: bool = True) -> None:
    """Have this process and its children put their sockets below /tmp where TMPDIR is too long for them, and say so.

    Slurm names such folders. Ray, and whoever shares tensors between processes, makes sockets there, whose names may
    have 107 bytes.

    Args:
        for_ray: Ray is started next, so that RAY_TMPDIR counts too.

    Raises:
        ClusterError: RAY_TMPDIR, which is meant for these sockets alone, is too long.
    """
    for name in ("RAY_TMPDIR", "TMPDIR") if for_ray else ("TMPDIR",):
        num_bytes = len(os.fsencode(os.environ.get(name, "")))
        if num_bytes <= MAX_TMPDIR_BYTES:
            continue
        if name == "RAY_TMPDIR":
            raise ClusterError(
                f"RAY_TMPDIR has {num_bytes} bytes; expected at most {MAX_TMPDIR_BYTES}, since Ray's socket names "
                "below it are limited to 107; shorten it, or unset it and set session.temp_dir"
            )
        sys.stderr.write(
            f"nvg: TMPDIR has {num_bytes} bytes, too many for the names of sockets (at most {MAX_TMPDIR_BYTES}); "
            f"{_SHORT_TEMP_DIR} is used. RAY_TMPDIR or session.temp_dir choose another place for Ray.\n"
        )
        os.environ[name] = _SHORT_TEMP_DIR
        tempfile.tempdir = None  # asked for again


def worker_environment(config: SessionConfig, address: str) -> dict[str, str]:
    """Environment variables of every worker of the session.

    Args:
        config: threads, and variables of one's own, which win.
        address: "host:port" of the head. Without it a worker that asks for the cluster's state would ask the one
            started last on its machine, and Ray Train would take its own controller for dead.
    """
    threads = str(config.threads_per_worker)
    named = {} if address.startswith("ray://") else {"RAY_ADDRESS": address}
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **named, **config.env_vars}


@contextmanager
def cluster_session(config: SessionConfig) -> Iterator[ClusterSession]:
    """Start or join a Ray cluster; at the end, shut down only what this call started.

    A process that is already connected (a test session, an outer `with`) keeps its connection.

    Raises:
        ClusterError: the cluster cannot be joined or started.
    """
    os.environ.update(session_environment(config))
    import ray  # Ray reads its environment at import

    if ray.is_initialized():
        yield _describe(started=False)
        return
    address = _resolve_address(config)
    if address == "local" and config.temp_dir is None:
        settle_temporary_folder()
    head = f"{ray.util.get_node_ip_address()}:{free_port()}" if address == "local" else address
    arguments: dict = {
        "runtime_env": {"env_vars": worker_environment(config, head)},
        "log_to_driver": config.log_to_driver,
        "logging_level": logging.WARNING,
    }
    if address == "local":
        arguments |= {
            "num_cpus": config.num_cpus,
            "num_gpus": config.num_gpus,
            "object_store_memory": config.object_store_memory_bytes,
            "include_dashboard": True,  # Ray Train V2 asks the State API; without it, runs time out
            "dashboard_host": "127.0.0.1",
            "_temp_dir": config.temp_dir,
        }
    try:
        check_reachable(address)
        with variable("RAY_GCS_SERVER_PORT", head.rpartition(":")[2]):
            ray.init(address, **arguments)
    except Exception as error:
        told = isinstance(error, ConnectionError | TimeoutError | RuntimeError | ValueError | OSError)
        if not told and type(error) is not Exception:  # what Ray raises where its node was too slow to start
            raise
        raise ClusterError(_failure_message(address, error)) from error
    try:
        yield _describe(started=address == "local")
    finally:
        ray.shutdown()


def ascii_name(name: str) -> str:
    """A name for Ray, which takes ASCII alone for tags and runs: what is not ASCII as in a URL."""
    return "".join(letter if letter.isascii() else quote(letter, errors="surrogateescape") for letter in name)


def free_port() -> int:
    """A TCP port of this machine that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """An environment variable for a moment."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _resolve_address(config: SessionConfig) -> str:
    """Where to connect. Raises ClusterError for what is no address of a cluster."""
    name, address = "address", config.address
    if address == "auto":
        name, address = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(("http://", "https://")):
        host = urlsplit(address).hostname or "HOST"
        raise ClusterError(
            f"{name} is {address!r}, the address of a job server; expected that of the cluster, {host}:6379 or "
            f"ray://{host}:10001; change {name}, or send the command to the job server: nvg submit --address "
            f"{address} -- nvg …"
        )
    if address not in ("auto", "local") and not _ADDRESS.fullmatch(address):
        raise ClusterError(
            f"{name} is {address!r}; expected HOST:PORT of the head, such as 10.0.0.5:6379, ray://HOST:PORT, auto or "
            f"local; change {name}"
        )
    return address


def check_reachable(address: str) -> None:
    """Refuse an address nobody listens at, at once: Ray itself would retry for minutes. Raises OSError."""
    host, separator, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


def refused_token(address: str, error: BaseException | None) -> str | None:
    """What to say where the cluster asks for another token than this process has; None for other errors."""
    while error is not None and "authentication token" not in str(error).lower():  # Ray has several exceptions for it
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    return (
        f"The Ray cluster at {address!r} does not take this process's token: found RAY_AUTH_MODE="
        f"{os.environ.get('RAY_AUTH_MODE', '')} and another token or none; expected the token of its nodes; set "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it"
    )


def _failure_message(address: str, error: Exception) -> str:
    if said := refused_token(address, error):
        return said
    if str(error).startswith("Version mismatch"):
        return (
            f"The Ray cluster at {address!r} has other versions than this process. {' '.join(str(error).split())} "
            "Expected the same of both: start this command in the cluster's environment, or the cluster in this one."
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if address == "local":
        return (
            f"Ray could not be started on this machine: {reason}. Run `nvg doctor` to see /dev/shm, disk "
            "and memory; where other work has the machine, start the same command again once there is less of it."
        )
    return (
        f"No Ray cluster could be joined at {address!r}: {reason}. Check that the head runs and can be "
        'reached and that RAY_AUTH_MODE is the same on both sides, or use address "local" to start one here.'
    )


def _describe(*, started: bool) -> ClusterSession:
    import ray
    from ray._private.worker import get_dashboard_url  # the public context exists only where init was called

    resources = ray.cluster_resources()
    dashboard = get_dashboard_url()
    return ClusterSession(
        address=ray.get_runtime_context().gcs_address,
        dashboard_url=f"http://{dashboard}" if dashboard else "",
        started=started,
        num_cpus=int(resources.get("CPU", 0)),
        num_gpus=int(resources.get("GPU", 0)),
    )
