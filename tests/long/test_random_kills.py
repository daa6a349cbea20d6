"""Kills at random places, of trainings and of a precompute: the same command goes on and nobody can tell afterwards.

Short versions with a kill at a chosen place are in `tests/pipelines/train` and `tests/pipelines/precompute`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    "program",
    [
        ["tests/support/training_faults_on_ray.py", "FOLDER", "--rounds", "2"],
        ["benchmarks/precompute_kills.py", "--kills", "5", "--seed", "0"],
    ],
    ids=["trainings", "precompute"],
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
