"""A node lost in each step of an experiment as a Ray job, and the head: the same weights and scores, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(3600)]


def test_a_node_lost_in_each_step_and_the_head_change_no_bit(repository, tmp_path):
    path = os.pathsep.join([str(repository), str(repository / "tests" / "support")])
    done = subprocess.run(
        [sys.executable, "tests/support/node_losses.py", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert [lost["step"] for lost in report["lost"]] == ["tokenizer", "precompute", "generators", "evaluation", "head"]
    assert report["identical"]
