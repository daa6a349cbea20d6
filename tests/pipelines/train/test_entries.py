"""What the training modules load, and the names that they had before."""

import os
import subprocess
import sys

import pytest


def python(repository, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_training_entry_loads_neither_plots_nor_evaluation(repository):
    script = "import sys, pipelines.train.generator; print(sorted({'matplotlib', 'eval'} & sys.modules.keys()))"
    done = python(repository, "-c", script)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", ["generator", "tokenizer"])
def test_old_module_name_says_the_new_one_and_runs_it(repository, name):
    done = python(repository, "-m", f"pipelines.train_{name}", "optimizer.lr=-1")
    assert f"pipelines.train_{name} is called pipelines.train.{name} now" in done.stderr
    assert done.returncode == 2, done.stderr
    assert "optimizer.lr is -1" in done.stderr
