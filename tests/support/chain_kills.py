"""Kills in every step of a whole chain, at random; the same command goes on, and the end is that of an undisturbed one.

    PYTHONPATH=.:tests/support .venv/bin/python tests/support/chain_kills.py /tmp/chain --kills 5 --seed 0

The chain is `nvg demo` on the bundled digits, shortened. In each of its steps (tokenizer, precompute, both generators
at once, evaluation) a process is killed by SIGKILL so many times: the command itself, a driver of its own, or a worker.
Asserted are, at every kill, that nothing of a command that died outlives it by long; at the end, that weights, losses
of every step, records, images and scores are those of the chain nothing happened to, bit for bit.
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
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pipelines.run_folder import read_metrics

TIMEOUT_S = 300.0
MARK = "NVG_CHAIN"  # in the environment of every process of a chain
WORKERS = ("EncodingActor", "TrainWorker", "TrainController", "ChunkWorker")  # not Ray's helpers
STEPS = ("tokenizer", "precompute", "generators", "evaluation")
SETTINGS = (
    "tokenizer.model.base_width=8",
    "tokenizer.optimizer.total_images=6400",
    "tokenizer.optimizer.warmup_images=0",
    "tokenizer.loop.log_every_steps=1",
    "tokenizer.loop.checkpoint_every_steps=10",
    "source.num_views=4",
    "precompute.images_per_unit=50",
    "generators.content.content.depth=2",
    "generators.content.optimizer.total_images=19200",
    "generators.content.optimizer.warmup_images=0",
    "generators.content.loop.log_every_steps=1",
    "generators.content.loop.checkpoint_every_steps=10",
    "generators.structure.structure.depth=2",
    "generators.structure.optimizer.total_images=19200",
    "generators.structure.optimizer.warmup_images=0",
    "generators.structure.loop.log_every_steps=1",
    "generators.structure.loop.checkpoint_every_steps=10",
    "evaluation.guidance_one=false",
    "evaluation.sampling.num_flow_steps=2",
    "evaluation.feature_training.num_steps=50",
    "evaluation.pool.num_samples=200",
    "evaluation.pool.chunk_size=20",
    "evaluation.pool.batch_size=20",
)
NUM_STEPS = {"tokenizer": 100, "content": 300, "structure": 300}


def main() -> None:
    """Runs undisturbed, runs with kills, compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=5, help="in each step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=STEPS, help="in which there are kills")
    given = parser.parse_args()
    draw = random.Random(given.seed)
    straight, killed = (Chain(given.folder.resolve() / name) for name in ("straight", "killed"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        compare(straight, killed, given, draw)
    finally:
        straight.end()
        killed.end()


def compare(straight: Chain, killed: Chain, given: argparse.Namespace, draw: random.Random) -> None:
    """Runs both, prints what was killed and that nobody can tell."""
    straight.start()
    straight.finish()
    seconds = json.loads((straight.folder / "times.json").read_text())
    results = json.loads((straight.folder / "evaluation" / "results.json").read_text())
    length_s = {"evaluation": sum(results["seconds"].values())}
    begun = time.monotonic()
    kills = []
    for step in given.steps:
        for number in range(given.kills):
            kills.append(killed.kill_in(step, number, given.kills, draw, length_s.get(step, 0.0)))
            sys.stderr.write(f"{kills[-1]}\n")
    killed.ensure_started()
    killed.finish()
    num_compared = compare_chains(straight, killed)
    report = {
        "command": "python " + " ".join(sys.argv),
        "kills": kills,
        "commands_started": killed.num_starts,
        "undisturbed_s": {name: round(step["seconds"]) for name, step in seconds.items()},
        "disturbed_s": round(time.monotonic() - begun),
        "compared": num_compared,
        "identical": True,
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


class Chain:
    """`nvg demo` in a folder, started again as often as it dies."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark, self.num_starts = folder, uuid.uuid4().hex, 0
        self.log = folder.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        folder.parent.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start the command."""
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        command = [sys.executable, "-m", "pipelines.cli.main", "demo", f"folder={self.folder}", *SETTINGS]
        self.num_starts += 1
        self.started_at = time.time()
        self.log.write_bytes(b"")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, env={**environment, MARK: self.mark}, stdout=log, stderr=log)

    def ensure_started(self) -> None:
        """Start it where it does not run; nothing of an earlier start may be left."""
        if self._process is None or self._process.poll() is not None:
            wait_until(lambda: not any(living(self.mark)), lambda: f"left behind: {list(living(self.mark))}")
            self.start()

    def finish(self) -> None:
        """Wait for its success; a worker's death may have ended it once."""
        assert self._process is not None
        assert self._process.wait(2 * TIMEOUT_S) == 0, self.said()
        self._process = None

    def end(self) -> None:
        """Leave nothing of it behind."""
        for process in list(living(self.mark)):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def kill_in(self, step: str, number: int, kills: int, draw: random.Random, length_s: float) -> dict[str, Any]:
        """Wait for a random place in a step, then kill one of its processes."""
        self.ensure_started()
        place = PLACES[step](self, (number + draw.random()) / (kills + 1))
        while True:
            wait_until(lambda: place() or self.is_finished(step), lambda: f"{step}: {self.said()}", self.ensure_started)
            time.sleep(draw.uniform(0.0, 0.8 * length_s if step == "evaluation" else 0.1))
            assert self._process is not None
            named = {process: name_of(process, self._process.pid) for process in living(self.mark)}
            victims = sorted((process for process in named if named[process]), key=lambda process: process.pid)
            if self._process.poll() is None and victims:
                break
        chosen = draw.choice(victims)
        with suppress(psutil.NoSuchProcess):
            chosen.kill()
        if chosen.pid == self._process.pid:
            self._process.wait()
        return {"step": step, "killed": named[chosen], "after_s": round(time.time() - self.started_at, 1)}

    def is_finished(self, step: str) -> bool:
        """Whether the chain is past a step."""
        with suppress(OSError, ValueError, KeyError):
            return json.loads((self.folder / "times.json").read_text())[step]["finished"]
        return False

    def said(self) -> str:
        """The end of what the command wrote."""
        return self.log.read_text()[-3000:]

    def fingerprint(self) -> dict[str, Any]:
        """Everything that a user keeps, by name: hashes of files, losses of every step, scores."""
        found: dict[str, Any] = {}
        for run, num_steps in NUM_STEPS.items():
            rows = read_metrics(self.folder / run)
            assert [row["step"] for row in rows] == list(range(1, num_steps + 1)), (run, [row["step"] for row in rows])
            found[f"{run}/loss"] = [row["loss"] for row in rows]
            last = self.folder / run / "checkpoints" / f"step-{num_steps:08d}"
            found |= {f"{run}/{file.name}": digest(file) for file in last.glob("*.safetensors")}
        records = self.folder / "records"
        found |= {
            file.relative_to(self.folder).as_posix(): digest(file)
            for file in records.rglob("*")
            if file.is_file() and not file.name.startswith(".")
        }
        assert not list(records.glob("parts/tmp-*")), "unfinished units were left"
        results = json.loads((self.folder / "evaluation" / "results.json").read_text())
        found |= {f"results/{name}": results[name] for name in results if name != "seconds"}
        return found


def compare_chains(straight: Chain, other: Chain) -> int:
    """How many things both have; raises AssertionError, which names what differs."""
    expected, found = straight.fingerprint(), other.fingerprint()
    assert found.keys() == expected.keys(), set(found) ^ set(expected)
    different = [name for name in expected if found[name] != expected[name]]
    assert not different, different
    return len(expected)


def living(mark: str) -> Iterator[psutil.Process]:
    """Every process whose environment bears a mark."""
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def metrics_reach(chain: Chain, names: tuple[str, ...], share: float) -> Callable[[], bool]:
    """Whether one of the trainings has come to a share of its steps, in this start of the command."""

    def reached() -> bool:
        for name in names:
            file = chain.folder / name / "metrics.jsonl"
            if file.is_file() and file.stat().st_mtime > chain.started_at:
                return len(read_metrics(file.parent)) >= share * NUM_STEPS[name]
        return False

    return reached


def units_reach(chain: Chain, share: float) -> Callable[[], bool]:
    """Whether a share of the units is written and another one is being written."""
    parts = chain.folder / "records" / "parts"

    def reached() -> bool:
        begun = [path for path in parts.glob("tmp-*/*") if exists_since(path, chain.started_at)]
        return bool(begun) and len(list(parts.glob("part-*"))) >= share * 20

    return reached


def evaluation_runs(chain: Chain, share: float) -> Callable[[], bool]:
    """Whether the last step has begun; it begins anew in every start."""
    del share  # the moment is drawn from the time it takes
    return lambda: "evaluation ─" in chain.log.read_text()


PLACES: dict[str, Callable[[Chain, float], Callable[[], bool]]] = {
    "tokenizer": lambda chain, share: metrics_reach(chain, ("tokenizer",), share),
    "precompute": units_reach,
    "generators": lambda chain, share: metrics_reach(chain, ("content", "structure"), share),
    "evaluation": evaluation_runs,
}


def name_of(process: psutil.Process, command: int) -> str:
    """What a process is among those that are killed; empty for Ray's own."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        words = process.cmdline()
        if process.pid == command:
            return "command"
        if words and words[0].startswith("ray::") and any(worker in words[0] for worker in WORKERS):
            return words[0].split()[0].split(".")[0]
        if "-m" in words and words[words.index("-m") + 1].startswith("pipelines."):
            return f"driver {words[words.index('-m') + 1]}"
    return ""


def exists_since(path: Path, moment: float) -> bool:
    """Whether a file is there and was written after a moment."""
    try:
        return path.stat().st_mtime > moment
    except OSError:
        return False


def digest(file: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def wait_until(
    condition: Callable[[], bool], what: Callable[[], str], between: Callable[[], None] | None = None
) -> None:
    """Fails with `what` after the time; `between` is called before each look."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what()} after {TIMEOUT_S:.0f} s"
        if between is not None:
            between()
        time.sleep(0.05)


if __name__ == "__main__":
    main()
