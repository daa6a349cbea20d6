"""A Ray head of one's own on this machine, on ports that nobody else uses.

`ray.init` always gives the job agent port 52365, so of two clusters that it starts on one machine only the first takes
jobs. `ray start` lets every port be chosen.
"""

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.process import stop_process
from cluster.session import ClusterError, SessionConfig, free_port, session_environment, settle_temporary_folder

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.2


@contextmanager
def local_head(config: SessionConfig) -> Iterator[str]:
    """Run a head with its job server for as long as the block lasts.

    Args:
        config: size of the cluster, folders, authentication.

    Yields:
        The job server's address, "http://127.0.0.1:port".

    Raises:
        ClusterError: the head does not start; the message holds the end of its log.
    """
    if config.temp_dir is None:
        settle_temporary_folder()
    dashboard = f"127.0.0.1:{free_port()}"
    host, port = dashboard.split(":")
    sizes = {
        "num-cpus": config.num_cpus,
        "num-gpus": config.num_gpus,
        "object-store-memory": config.object_store_memory_bytes,
        "temp-dir": config.temp_dir,
    }
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        f"--port={free_port()}",
        f"--dashboard-host={host}",
        f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free_port()}",
        *(f"--{name}={value}" for name, value in sizes.items() if value is not None),
    ]
    environment = {**session_environment(config), **os.environ}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            if not _answers(f"http://{dashboard}/api/version", process):
                log.seek(0)
                raise ClusterError(
                    f"Ray's head did not start within {START_TIMEOUT_S:.0f} s: {log.read()[-1000:].strip()} "
                    "Run `nvg doctor` to see /dev/shm, disk and memory."
                )
            yield f"http://{dashboard}"
        finally:
            stop_process(process, STOP_TIMEOUT_S)


def _answers(url: str, process: "subprocess.Popen[bytes]") -> bool:
    """Whether the server answers before the time is up or its process has ended."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except urllib.error.HTTPError:
            return True  # it is there, and asks for a token
        except (TimeoutError, urllib.error.URLError, ConnectionError):
            time.sleep(POLL_S)  # nobody listens yet
    return False
