"""Faults of trainings on Ray that take minutes, each with its assertion; run by hand, the output goes to docs/results.

    PYTHONPATH=.:tests/support .venv/bin/python tests/support/training_faults_on_ray.py /tmp/faults --rounds 2

On one local cluster of 3 logical CPUs: the driver is killed by SIGKILL, then by SIGTERM; a worker is killed at a random
step; both generators train where the devices suffice for one of them only. Every time the same command goes on and
ends with the losses of a run that nothing happened to.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from record_training import NUM_STEPS, record_config
from tiny_networks import save_tokenizer

from cluster.session import SessionConfig, cluster_session
from nvg.checkpoints.runs import resolve_checkpoint
from pipelines.configuration import dump_config
from pipelines.entry import EXIT_STOPPED
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.job import precompute
from pipelines.run_folder import read_metrics
from pipelines.sources import SourceConfig
from pipelines.train.config import LaunchConfig
from pipelines.train.drivers import PairRunConfig
from pipelines.train.generator import GeneratorRunConfig, train_generator
from pipelines.train.state import TrainerState

KINDS = ("content", "structure")
ONE = ("pipelines.train.generator",)
BOTH = ("pipelines.cli.main", "train", "generators")
TIMEOUT_S = 120.0
LONG = 10 * NUM_STEPS


def main() -> None:
    """Runs every fault; an assertion that fails ends the script."""
    parser = argparse.ArgumentParser(description="Faults of trainings on Ray.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2, help="of the worker killed at a random step")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    session = SessionConfig(address="local", num_cpus=3, num_gpus=0, object_store_memory_bytes=200 * 2**20)
    with cluster_session(session) as cluster:
        faults = Faults(given.folder.resolve(), cluster.address)
        faults.check("driver killed", faults.driver_killed)
        faults.check("driver told to stop", faults.driver_told_to_stop)
        for number in range(given.rounds):
            step = draw.randint(3, LONG - 10)
            faults.check(f"worker killed near step {step}", partial(faults.worker_killed, number, step))
        faults.check("two trainings, devices for one", faults.too_few_devices)


class Faults:
    """Records, the losses nothing happened to, and the faults.

    Args:
        root: empty folder.
        address: of the running cluster.
    """

    def __init__(self, root: Path, address: str) -> None:
        self.root, self.address = root, address
        save_tokenizer(root / "tokenizer")
        config = PrecomputeConfig(
            source=SourceConfig(split="test"), tokenizer=str(root / "tokenizer"), output=str(root / "records")
        )
        self.records = precompute(config)
        self.straight: dict[str, list[float]] = {}
        for kind in KINDS:
            run = self.config(root / "straight" / kind, kind)
            train_generator(replace(run, loop=replace(run.loop, engine="plain"), launch=LaunchConfig()))
            self.straight[kind] = losses(run)

    def config(self, folder: Path, kind: str = "content") -> Any:
        """Sixty small steps on two ranks, a checkpoint after every fifth."""
        config = record_config(self.records, folder, kind)
        return replace(
            config,
            optimizer=replace(config.optimizer, total_images=LONG * config.optimizer.global_batch),
            loop=replace(config.loop, checkpoint_every_steps=5, keep_last=2),
            launch=LaunchConfig(launcher="ray", num_workers=2, max_failures=2),
        )

    def check(self, name: str, fault: Callable[[], str]) -> None:
        """Run one and say what was seen."""
        start = time.monotonic()
        said = fault()
        wait_until(self.is_idle, "workers outlive their driver")
        sys.stdout.write(f"{name}: {said}; {time.monotonic() - start:.0f} s\n")
        sys.stdout.flush()

    def driver_killed(self) -> str:
        """No worker outlives it, and the same command goes on."""
        config = self.config(self.root / "driver-killed")
        driver = self.started(config, 7)
        driver.kill()
        driver.wait()
        wait_until(self.is_idle, "workers outlive their driver")
        return self.ends_well(config)

    def driver_told_to_stop(self) -> str:
        """The workers save their last step, and the same command goes on from it."""
        config = self.config(self.root / "driver-stopped")
        driver = self.started(config, 7)
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(TIMEOUT_S) == EXIT_STOPPED, driver.returncode
        step = TrainerState.read(resolve_checkpoint(config.run_folder)).step
        assert step == read_metrics(Path(config.run_folder))[-1]["step"] < LONG, step
        return f"saved step {step}, {self.ends_well(config)}"

    def worker_killed(self, number: int, step: int) -> str:
        """The run goes on by itself."""
        config = self.config(self.root / f"worker-killed-{number}")
        driver = self.started(config, step)
        victims = self.workers()
        assert victims, "no worker runs"
        victims[-1].kill()
        assert driver.wait(TIMEOUT_S) == 0, driver.returncode
        self.compare(config)
        return "went on by itself, the same losses"

    def too_few_devices(self) -> str:
        """One trains, the other says that it waits; both end."""
        content, structure = (self.config(self.root / "pair" / kind, kind) for kind in KINDS)
        pair = self.start(PairRunConfig(content=content, structure=structure), self.root / "both", BOTH)
        assert pair.wait(3 * TIMEOUT_S) == 0, pair.returncode
        for config in (content, structure):
            self.compare(config)
        said = (self.root / "both.log").read_text()
        assert "waiting for 2 CPU" in said, said[-500:]
        return "the second said that it waits, both ended with the same losses"

    def started(self, config: GeneratorRunConfig, step: int) -> subprocess.Popen[bytes]:
        """A driver that has come to a step."""
        driver = self.start(config, Path(config.run_folder))
        wait_until(lambda: len(read_metrics(Path(config.run_folder))) >= step, f"no step {step}")
        return driver

    def start(self, config: object, name: Path, command: tuple[str, ...] = ONE) -> subprocess.Popen[bytes]:
        """A driver of its own on the cluster; its configuration and log lie beside `name`."""
        name.parent.mkdir(parents=True, exist_ok=True)
        file = name.with_suffix(".yaml")
        file.write_text(dump_config(config))
        with open(name.with_suffix(".log"), "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *command, "--config", str(file)],
                env={**os.environ, "RAY_ADDRESS": self.address},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ends_well(self, config: GeneratorRunConfig) -> str:
        """The same command ends with the losses of the straight run."""
        assert self.start(config, Path(config.run_folder)).wait(TIMEOUT_S) == 0
        self.compare(config)
        return "the same command went on, the same losses"

    def compare(self, config: GeneratorRunConfig) -> None:
        """Every step once, with the losses of the straight run."""
        steps = [row["step"] for row in read_metrics(Path(config.run_folder))]
        assert steps == list(range(1, LONG + 1)), steps
        np.testing.assert_allclose(losses(config), self.straight[config.kind], rtol=1e-4)

    def is_idle(self) -> bool:
        """Every CPU free, no rank alive."""
        import ray

        return ray.available_resources().get("CPU", 0) == ray.cluster_resources()["CPU"] and not self.workers()

    def workers(self) -> list[psutil.Process]:
        """Ranks of trainings on this script's cluster."""
        found = [process for process in psutil.process_iter(["cmdline"]) if _is_rank(process)]
        return [process for process in found if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("RAY_ADDRESS") == self.address
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False


def losses(config: GeneratorRunConfig) -> list[float]:
    """Loss of every step."""
    return [row["loss"] for row in read_metrics(Path(config.run_folder))]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Fails with `what` after the time."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} after {TIMEOUT_S:.0f} s"
        time.sleep(0.2)


def _is_rank(process: psutil.Process) -> bool:
    line = " ".join(process.info["cmdline"] or [])
    return line.startswith("ray::") and "TrainWorker" in line


if __name__ == "__main__":
    main()
