"""Kills precompute at random and asserts that nobody can tell from its records: actor, driver and node, in mid-unit.

    .venv/bin/python benchmarks/precompute_kills.py --kills 5 --seed 0

A Ray cluster of a head and two nodes is started here; the driver is `nvg precompute` in a process of its own. After
the kills the job is finished. Asserted are: bytes of every file as of an undisturbed run, nothing unfinished left, no
process of the job alive, no new file in /dev/shm. Exit code 0 means all of it held.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from random_tokenizer import SMALL, write_tokenizer

from cluster.session import MIN_OBJECT_STORE_BYTES, SessionConfig, free_port, session_environment

KINDS = ("actor", "driver", "node")
NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": MIN_OBJECT_STORE_BYTES}
TIMEOUT_S = 180.0


def main() -> None:
    """Runs undisturbed, runs with kills, compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--images-per-unit", type=int, default=40)
    parser.add_argument("--views", type=int, default=9)
    given = parser.parse_args()
    generator = random.Random(given.seed)
    kinds = [*given.kinds, *generator.choices(given.kinds, k=max(0, given.kills - len(given.kinds)))][: given.kills]
    generator.shuffle(kinds)
    os.environ.update(session_environment(SessionConfig(address="local")))
    shared_before = orphaned_memory()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tokenizer(root / "tokenizer", SMALL)
        with Nodes() as nodes:
            job = Job(root, nodes.environment, given.images_per_unit, given.views)
            job.start("undisturbed")
            job.finish()
            kills = []
            job.start("disturbed")
            for kind in kinds:
                kills.append(kill(kind, job, nodes, generator))
            job.finish()
            expected, found = file_hashes(root / "undisturbed"), file_hashes(root / "disturbed")
            assert found == expected, sorted(set(found.items()) ^ set(expected.items()))[:5]
            assert not list((root / "disturbed" / "parts").glob("tmp-*")), "unfinished units were left"
            pids = {*job.pids, *nodes.pids, *nodes.actor_pids()}
        wait_for(lambda: not alive(pids), f"processes {alive(pids)} are still alive")
    wait_for(lambda: orphaned_memory() <= shared_before, f"left in /dev/shm: {orphaned_memory() - shared_before}")
    report = {
        "command": "python " + " ".join(sys.argv),
        "kills": kills,
        "drivers_started": len(job.pids),
        "files_compared": len(expected),
        "records": json.loads(job.manifest)["num_records"],
        "identical": True,
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


class Nodes:
    """A head without CPUs and two nodes of one CPU, all of them processes of this script."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self._actors: set[int] = set()

    def __enter__(self) -> Nodes:
        from ray.cluster_utils import Cluster

        ports = {"dashboard_port": free_port(), "dashboard_agent_listen_port": free_port(), "include_dashboard": True}
        self._cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, **ports})
        self._workers: list[Any] = [self.add() for _ in range(2)]
        self.environment = {**os.environ, "RAY_ADDRESS": str(self._cluster.address)}
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()

    def add(self) -> Any:
        """Start a node."""
        node = self._cluster.add_node(wait=True, **NODE)
        self.pids |= {info.process.pid for infos in node.all_processes.values() for info in infos}
        return node

    def actor_pids(self) -> set[int]:
        """Actors that live on the nodes at the moment; earlier ones are remembered for the end."""
        raylets = {info.process.pid for node in self._workers for info in node.all_processes.get("raylet", [])}
        found = {pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_actor(pid, raylets)}
        self._actors |= found
        return self._actors

    def kill_actor(self, generator: random.Random) -> int:
        """SIGKILL one of the living actors."""
        pid = generator.choice(sorted(alive(self.actor_pids())))
        os.kill(pid, signal.SIGKILL)
        return pid

    def kill_node(self, generator: random.Random) -> int:
        """SIGKILL everything of a node and start another one in its place."""
        self.actor_pids()
        node = self._workers.pop(generator.randrange(len(self._workers)))
        pid = node.all_processes["raylet"][0].process.pid
        self._cluster.remove_node(node, allow_graceful=False)
        self._workers.append(self.add())
        return pid


class Job:
    """`nvg precompute` as a process of its own, started again as often as it is killed."""

    def __init__(self, root: Path, environment: dict[str, str], images_per_unit: int, views: int) -> None:
        self._root, self._environment = root, environment
        self._settings = [
            f"tokenizer={root / 'tokenizer'}", "source.split=all", "source.view_policy=shift",
            f"source.num_views={views}", "batch_size=16", f"images_per_unit={images_per_unit}", "num_actors=2",
            "shard_bytes=65536", "max_attempts=6",
        ]  # fmt: skip
        self.pids: list[int] = []

    def start(self, output: str) -> None:
        """Start the driver."""
        self.output = self._root / output
        command = [sys.executable, "-m", "pipelines.cli.main", "precompute", *self._settings, f"output={self.output}"]
        self._log = (self._root / f"{output}.log").open("a+")
        self._process = subprocess.Popen(command, env=self._environment, stdout=self._log, stderr=self._log)
        self.pids.append(self._process.pid)

    def in_mid_unit(self) -> bool:
        """Whether some actor writes at the moment."""
        assert self._process.poll() is None, f"the driver ended: {self.said()}"
        return any((self.output / "parts").glob("tmp-*/*"))

    def kill(self) -> int:
        """SIGKILL the driver and start it again."""
        pid = self._process.pid
        self._process.kill()
        self._process.wait()
        self.start(self.output.name)
        return pid

    def finish(self) -> None:
        """Wait for the driver's success."""
        assert self._process.wait(TIMEOUT_S) == 0, self.said()
        self.manifest = (self.output / "manifest.json").read_text()

    def said(self) -> str:
        """What the driver wrote."""
        self._log.seek(0)
        return self._log.read()


def kill(kind: str, job: Job, nodes: Nodes, generator: random.Random) -> dict[str, Any]:
    """Waits for a unit in progress and a random moment more, then kills."""
    wait_for(job.in_mid_unit, "no unit began")
    time.sleep(generator.uniform(0.0, 0.5))
    done = len(list((job.output / "parts").glob("part-*")))
    acts: dict[str, Callable[[], int]] = {
        "actor": lambda: nodes.kill_actor(generator),
        "driver": job.kill,
        "node": lambda: nodes.kill_node(generator),
    }
    return {"kind": kind, "pid": acts[kind](), "units_done_before": done}


def wait_for(condition: Callable[[], bool], message: str) -> None:
    """Polls until a condition holds."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.05)


def is_actor(pid: int, raylets: set[int]) -> bool:
    """Whether a process is an encoding actor below one of these raylets."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return False
    return title.startswith(b"ray::EncodingActor") and parent in raylets


def alive(pids: set[int]) -> set[int]:
    """Those that live; a zombie does not."""
    living = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            living.add(pid)
    return living


def orphaned_memory() -> set[str]:
    """Files of shared memory that no living process maps; other jobs of the machine use theirs."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            mapped |= {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
    return {str(path) for path in Path("/dev/shm").iterdir()} - mapped


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file, the lock's apart."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".precompute.lock"
    }


if __name__ == "__main__":
    main()
