"""A Ray cluster of several nodes on one machine, each started by `ray start` and lost by SIGKILL.

The nodes are processes of their own in a folder of their own; the caller is not connected to them. Programs reach the
cluster through `environment`, jobs through `job_server`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from cluster.session import MIN_OBJECT_STORE_BYTES, SessionConfig, free_port, session_environment

TIMEOUT_S = 600.0
# A head that is gone is given up after the first time, 60 s by default; a node's agent takes long on a busy machine;
# workers of Ray keep the priority of their starter.
_VARIABLES = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    "RAY_agent_register_timeout_ms": "400000",
    "RAY_worker_niceness": "0",
}
# Ports that are given are not waited for: Ray ends a node whose agent has not written its own after 15 s.
_PORTS = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")
_OTHERS = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH", "RAY_JOB_CONFIG")  # of the cluster a test is joined to


class RayNodes:
    """A head and worker nodes of one GPU each that there is not; a context manager that leaves nothing behind.

    Args:
        variables: of the environment of every node and program, such as RAY_AUTH_MODE and RAY_AUTH_TOKEN.
        head_cpus: logical CPUs of the head, whose driver processes take none.
    """

    def __init__(self, variables: Mapping[str, str] | None = None, *, head_cpus: int = 0) -> None:
        outside = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
        given = {**_VARIABLES, **(variables or {})}
        self._base = {**outside, **given}
        self._base |= {k: v for k, v in session_environment(SessionConfig()).items() if k not in given}
        self._head_cpus = head_cpus
        self._folder = tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp")
        self._ports = [free_port() for _ in range(2)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> RayNodes:
        self.start_head()
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._processes):
            self.lose(name)
        self._folder.cleanup()

    @property
    def address(self) -> str:
        """Of the head."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def job_server(self) -> str:
        """Address of the job server."""
        return f"http://127.0.0.1:{self._ports[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment of a program that joins the cluster."""
        return {**self._base, "RAY_ADDRESS": self.address}

    def start_head(self) -> None:
        """Start the head, for the first time or after it was lost: at the same ports."""
        port, dashboard = self._ports
        self._bring(
            "head", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
            f"--num-cpus={self._head_cpus}", f"--temp-dir={self._folder.name}",
            f"--ray-client-server-port={free_port()}",
        )  # fmt: skip

    def add(self, *names: str, inside: Sequence[str] = ()) -> None:
        """Start worker nodes of two logical CPUs and wait until the head knows them.

        Args:
            names: of the nodes.
            inside: a command that starts them, such as `unshare`.
        """
        for name in names:
            self._bring(name, f"--address={self.address}", "--num-cpus=2", inside=inside)

    def holding(self, *kinds: str) -> str | None:
        """Name of a worker node with a process of Ray's of one of these kinds, such as TrainWorker; None without."""
        for name, process in self._processes.items():
            with suppress(psutil.NoSuchProcess):
                lines = [" ".join(one.cmdline()) for one in psutil.Process(process.pid).children(recursive=True)]
                if name != "head" and any(kind in line for line in lines for kind in kinds if line.startswith("ray::")):
                    return name
        return None

    def lose(self, name: str) -> None:
        """Kill a node with everything on it, at once."""
        process = self._processes.pop(name)
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(process.pid)
            tree = [own, *own.children(recursive=True)]
            for one in tree:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait()

    def alive(self) -> set[str]:
        """Names of the nodes that the head takes for alive."""
        states = self._node_states()
        return {name for name in self._processes if states.get(name) == "ALIVE"}

    @property
    def started(self) -> set[str]:
        """Names of the nodes that were started and not lost by `lose`."""
        return set(self._processes)

    def has_ended(self, name: str) -> bool:
        """Whether a node has ended by itself."""
        return self._processes[name].poll() is not None

    def said(self) -> str:
        """The end of every node's log."""
        logs = sorted(Path(self._folder.name).glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-600:]}" for log in logs)

    def _node_states(self) -> dict[str, str]:
        try:
            nodes = self._get("/api/v0/nodes?detail=1&limit=100")["data"]["result"]["result"]
        except OSError:
            return {}
        return {node["node_name"]: node["state"] for node in nodes}

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(self.job_server + path)
        if token := self._base.get("RAY_AUTH_TOKEN"):
            request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def _start(self, name: str, *options: str, inside: Sequence[str] = ()) -> None:
        assert name not in self._processes, name
        command = [
            *inside, str(Path(sys.executable).with_name("ray")), "start", "--block", f"--node-name={name}",
            "--node-ip-address=127.0.0.1", "--num-gpus=1", f"--object-store-memory={MIN_OBJECT_STORE_BYTES}",
            "--min-worker-port=0", "--max-worker-port=0", *(f"--{kind}={free_port()}" for kind in _PORTS), *options,
        ]  # fmt: skip
        with open(Path(self._folder.name) / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                command, env=self._base, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _bring(self, name: str, *options: str, inside: Sequence[str] = ()) -> None:
        """Start a node until it is there: Ray leaves a node 30 s for it, which are too few on a busy machine."""
        deadline = time.monotonic() + TIMEOUT_S
        self._start(name, *options, inside=inside)
        while name not in self.alive():
            assert time.monotonic() < deadline, self.said()
            if self._processes[name].poll() is not None:
                assert "timed out during startup" in self.said(), self.said()
                self.lose(name)
                self._start(name, *options, inside=inside)
            time.sleep(0.2)
