"""An experiment as a Ray job on three nodes, of which one is lost in each step, and the head once; nobody can tell.

    PYTHONPATH=.:tests/support .venv/bin/python tests/support/node_losses.py /tmp/losses
    PYTHONPATH=.:tests/support .venv/bin/python tests/support/node_losses.py /tmp/losses --whole

The experiment is `nvg run demo/digits.yaml`, shortened as in `chain_kills.py` or whole, sent by `nvg submit` to a
cluster with a token: a head that only drives, two nodes that compute. A node is lost by SIGKILL to all that runs on it,
and another one joins. Last the head is lost, too: the command ends, the same one goes on with a new head. Weights,
losses, records, images and scores are those of the same job without losses, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from chain_kills import NUM_STEPS, PLACES, SETTINGS, STEPS, Chain, compare_chains, wait_until
from ray_nodes import RayNodes

from cluster.process import stop_process

REPOSITORY = Path(__file__).resolve().parents[2]
ON_RAY = ("tokenizer.launch={launcher: ray, cpus_per_worker: 2.0}", "session.address=auto")
WORKERS = {
    "tokenizer": ("TrainWorker",),
    "precompute": ("EncodingActor",),
    "generators": ("TrainWorker",),
    "evaluation": ("ChunkWorker",),
}
# The demo with a line for each step, and with units that are small enough to lose a node between two of them.
WHOLE = (
    "tokenizer.loop.log_every_steps=1",
    "precompute.images_per_unit=50",
    "generators.content.loop.log_every_steps=1",
    "generators.structure.loop.log_every_steps=1",
)
WHOLE_STEPS = {"tokenizer": 500, "content": 4000, "structure": 2250}


def main() -> None:
    """Runs without losses, with them, compares, and prints what happened."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=STEPS, help="in which a node is lost")
    parser.add_argument("--whole", action="store_true", help="the demo in its full length")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    settings = WHOLE if given.whole else SETTINGS
    if given.whole:
        NUM_STEPS.update(WHOLE_STEPS)
    with three_nodes() as nodes:
        straight, disturbed = (
            JobChain(given.folder.resolve() / name, nodes, settings) for name in ("straight", "disturbed")
        )
        straight.start()
        straight.finish()
        lost = [disturbed.lose_in(step) for step in given.steps]
        lost.append(disturbed.lose_head())
        disturbed.start()
        disturbed.finish()
    num_compared = compare_chains(straight, disturbed)
    report = {"command": "python " + " ".join(sys.argv), "lost": lost, "compared": num_compared, "identical": True}
    report["seconds"] = {chain.folder.name: chain.seconds() for chain in (straight, disturbed)}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


def three_nodes() -> RayNodes:
    """A cluster with a token, its code the one of this checkout; nodes one and two are still to be added."""
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "support")])
    token = uuid.uuid4().hex * 2
    return RayNodes({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


class JobChain(Chain):
    """The experiment as a job, started again as often as its head is lost."""

    def __init__(self, folder: Path, nodes: RayNodes, settings: tuple[str, ...]) -> None:
        super().__init__(folder)
        self.nodes, self.settings = nodes, settings

    def start(self) -> None:
        """Send it, with two nodes that compute."""
        for number in range(2 - len(self.nodes.alive() - {"head"})):
            self.nodes.add(f"node-{number}-{uuid.uuid4().hex[:4]}")
        run = ["run", "demo/digits.yaml", f"folder={self.folder}", *self.settings, *ON_RAY]
        nvg = [sys.executable, "-m", "pipelines.cli.main"]
        self.num_starts += 1
        self.started_at = time.time()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*nvg, "submit", "--address", self.nodes.job_server, "--", *nvg, *run],
                env=self.nodes.environment,
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
            )

    def ensure_started(self) -> None:
        """Start it where it has not been; a lost node must not end it."""
        if self._process is None:
            self.start()
        assert self._process is not None
        assert self._process.poll() is None, self.said()

    def end(self) -> None:
        """Leave nothing of it behind but the job, which ends with its nodes."""
        if self._process is not None:
            stop_process(self._process, 0.0)

    def lose_in(self, step: str) -> dict[str, Any]:
        """Wait for the middle of a step, kill a node that works on it, and add another one."""
        self.ensure_started()
        place = PLACES[step](self, 0.4)
        held: list[str] = []

        def works() -> bool:
            assert not self.is_finished(step), f"{step} was over before a node was lost: {self.said()}"
            name = self.nodes.holding(*WORKERS[step]) if place() else None
            held.extend([name] if name else [])
            return bool(held)

        wait_until(works, lambda: f"{step}: {self.said()}", self.ensure_started)
        self.nodes.lose(held[0])
        self.nodes.add(f"{step}-{uuid.uuid4().hex[:4]}")
        return {"step": step, "lost": held[0], "after_s": round(time.time() - self.started_at, 1)}

    def lose_head(self) -> dict[str, Any]:
        """Kill the head and with it the job; the nodes end by themselves. Then start a new head."""
        self.ensure_started()
        assert self._process is not None
        after_s = round(time.time() - self.started_at, 1)
        self.nodes.lose("head")
        code = self._process.wait(600)
        assert code == 2, (code, self.said())
        assert "start the same command again" in self.said(), self.said()
        for name in self.nodes.started - {"head"}:
            wait_until(lambda name=name: self.nodes.has_ended(name), lambda: self.nodes.said())
            self.nodes.lose(name)
        self.nodes.start_head()
        return {"step": "head", "lost": "head", "after_s": after_s}

    def seconds(self) -> dict[str, int]:
        """What the steps took."""
        times = json.loads((self.folder / "times.json").read_text())
        return {name: round(step["seconds"]) for name, step in times.items()}


if __name__ == "__main__":
    main()
