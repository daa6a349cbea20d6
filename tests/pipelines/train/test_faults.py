"""Kills in the middle of a save, bad gradients, a full disk, a rank that hangs: the run goes on from what is whole."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_training import build_task, tiny_config

from nvg.errors import NotFiniteError
from pipelines.run_folder import read_metrics
from pipelines.train.config import DeepSpeedConfig
from pipelines.train.launch import run_training
from pipelines.train.state import TrainerState

SUPPORT = Path(__file__).parents[2] / "support"


def run_script(repository, name, *arguments):
    return subprocess.run(
        [sys.executable, str(SUPPORT / name), *arguments],
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_killed_at_every_place_of_a_save(repository, tmp_path):
    done = run_script(repository, "killed_saves.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = {line["place"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert len(found) == 6
    for place, line in found.items():
        committed = place in ("before latest", "while pruning")
        assert line["newest"] == f"step-{8 if committed else 4:08d}", place
        assert line["killed"], place
        assert line["again"] == 0, place
        assert line["same"], place
        assert line["left"] == ["latest", "step-00000012"], place


def checkpoint(folder, step):
    return folder / "checkpoints" / f"step-{step:08d}"


ENGINES = ["plain", 0, 1, 2, 3]


def config_of(engine, folder, **loop):
    if engine == "plain":
        return tiny_config(folder, **loop)
    config = tiny_config(folder, engine="deepspeed", **loop)
    return replace(config, deepspeed=DeepSpeedConfig(zero_stage=engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_one_gradient_that_is_not_finite_changes_nothing(tmp_path, engine):
    config = replace(config_of(engine, tmp_path, checkpoint_every_steps=1, keep_last=20), bad_gradients=[5])
    run_training(config, build_task)
    for name in ("model", "ema"):
        before, after = (load_file(checkpoint(tmp_path, step) / f"{name}.safetensors") for step in (5, 6))
        assert all(after[key].equal(before[key]) for key in before)
        assert not all(
            after[key].equal(value) for key, value in load_file(checkpoint(tmp_path, 7) / f"{name}.safetensors").items()
        )
    assert [row["skipped_steps"] for row in read_metrics(tmp_path)] == [0] * 5 + [1] * 7
    state = TrainerState.read(checkpoint(tmp_path, 12))
    assert (state.images, state.ema_images) == (96, 88)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_that_stay_bad_end_the_run_and_leave_finite_weights(tmp_path, engine):
    config = config_of(engine, tmp_path, max_skipped_steps=2)
    with pytest.raises(NotFiniteError, match=r"3 optimizer steps in a row .* up to step 8, sample ids \[\d"):
        run_training(replace(config, bad_gradients=list(range(5, 12))), build_task)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-00000004"]


@pytest.mark.slow
def test_rank_that_hangs_is_ended_with_its_stack_and_goes_on_later(repository, tmp_path):
    settings = [f"run_folder={tmp_path}", "loop.hang_timeout_s=2", "fault=hang"]
    first = run_script(repository, "tiny_training.py", *settings)
    assert first.returncode == 1
    assert "_happen" in (tmp_path / "stacks-rank0.txt").read_text()
    second = run_script(repository, "tiny_training.py", *settings)
    assert second.returncode == 0, second.stderr
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 13))
    assert not (tmp_path / "stacks-rank0.txt").exists()
