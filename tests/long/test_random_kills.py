"""Kills at random places, of trainings, of a precompute and of a whole chain: the same command goes on and nobody can
tell afterwards.

`NVG_KILLS` says how many kills there are (five in a precompute and in each step of a chain), `NVG_SEED` where. Short
versions with a kill at a chosen place are in `tests/pipelines` (`train`, `precompute`, `test_demo.py`) and in
`tests/eval/pool`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(3600)]

KILLS, SEED = os.environ.get("NVG_KILLS", "5"), os.environ.get("NVG_SEED", "0")


@pytest.mark.parametrize(
    "program",
    [
        ["tests/support/training_faults_on_ray.py", "FOLDER", "--rounds", "2", "--seed", SEED],
        ["benchmarks/precompute_kills.py", "--kills", KILLS, "--seed", SEED],
        ["tests/support/chain_kills.py", "FOLDER", "--kills", KILLS, "--seed", SEED],
    ],
    ids=["trainings", "precompute", "chain"],
)
def test_killed_at_random_the_same_command_goes_on(program, repository, tmp_path):
    path = os.pathsep.join([str(repository), str(repository / "tests" / "support")])
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, *(str(tmp_path) if word == "FOLDER" else word for word in program)],
        env={**environment, "PYTHONPATH": path},
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
