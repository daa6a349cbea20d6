"""What the training modules load, and the names that they had before."""

import os
import subprocess
import sys

import pytest
from made_records import write_records

from pipelines.run_folder import read_metrics

_WITHOUT_A_CLUSTER = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "deepspeed", "streaming"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
_THREE_STEPS = (
    "loop.engine=plain",
    "loop.log_every_steps=1",
    "optimizer.total_images=24",
    "optimizer.warmup_images=0",
    "optimizer.global_batch=8",
)


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


@pytest.mark.slow
def test_a_bare_machine_trains_everything_with_the_plain_engine(repository, tmp_path):
    """Where there is no Ray, DeepSpeed or streaming library: the tokenizer on images, a generator on records."""
    records = write_records(tmp_path / "records")
    runs = {
        "tokenizer": (
            *("model.image_size=16", "model.image_channels=1", "model.base_width=8", "model.width_multipliers=[1,1,1]"),
            *("model.norm_groups=8", "model.latent_channels=4", "model.codebook_size=16"),
        ),
        "generator": (f"data.path={records}", "content.depth=1", "content.width=64"),
    }
    for name, settings in runs.items():
        folder = tmp_path / name
        arguments = (f"pipelines.train.{name}", f"run_folder={folder}", *settings, *_THREE_STEPS)
        done = python(repository, "-c", _WITHOUT_A_CLUSTER, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [row["step"] for row in read_metrics(folder)] == [1, 2, 3]
