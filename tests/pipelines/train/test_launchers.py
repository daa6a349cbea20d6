"""The same losses under the deepspeed launcher, torchrun and Ray Train, with two real ranks."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tiny_training import build_task, run, tiny_config

from cluster.devices import WITHOUT_GPU
from cluster.session import ClusterError, free_port
from nvg.checkpoints.runs import find_damage
from nvg.errors import UserError
from pipelines.run_folder import read_metrics
from pipelines.train.config import LaunchConfig
from pipelines.train.launch import run_training

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LONG_IMAGES = 192
SCRIPT = Path(__file__).parents[2] / "support" / "tiny_training.py"
BIN = Path(sys.executable).parent


def losses(folder):
    return [row["loss"] for row in read_metrics(folder)]


def launch(repository, command, *settings):
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(repository),
        "OMP_NUM_THREADS": "1",
        **WITHOUT_GPU,
    }
    return subprocess.run(
        [*command, str(SCRIPT), *settings, "loop.engine=deepspeed"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Losses of one rank without DeepSpeed."""
    folder = tmp_path_factory.mktemp("plain")
    run_training(tiny_config(folder), build_task)
    return losses(folder)


def long_config(folder):
    config = tiny_config(folder)
    return replace(config, optimizer=replace(config.optimizer, total_images=LONG_IMAGES))


@pytest.fixture(scope="module")
def expected_long(tmp_path_factory):
    """The same over 24 steps."""
    folder = tmp_path_factory.mktemp("long")
    run_training(long_config(folder), build_task)
    return losses(folder)


def test_deepspeed_launcher_all_zero_stages_and_resume(repository, tmp_path, expected_long):
    command = [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    settings = [f"run_folder={tmp_path}", "stages=[0,1,2,3]", f"optimizer.total_images={LONG_IMAGES}"]
    first = launch(repository, command, *settings, "loop.stop_after_steps=6")
    assert first.returncode == 0, first.stderr[-3000:]
    for stage in range(4):
        assert losses(tmp_path / f"zero{stage}") == pytest.approx(expected_long[:6], rel=1e-5)
    second = launch(repository, command, *settings)
    assert second.returncode == 0, second.stderr[-3000:]
    for stage in range(4):
        assert losses(tmp_path / f"zero{stage}") == pytest.approx(expected_long, rel=1e-5)
    assert [row["step"] for row in read_metrics(tmp_path / "zero1")] == list(range(1, 25))

    # Optimizer states of DeepSpeed are refused by the plain engine, with the reason.
    with pytest.raises(UserError, match=r"written by 2 rank\(s\) of deepspeed-zero1, this run has 1 of plain"):
        run_training(long_config(tmp_path / "zero1"), build_task)


def test_another_number_of_ranks_takes_every_zero_stage_up(two_ranks, tmp_path, expected_long):
    """Two ranks, then one, then two again for 20 steps; every loss is that of one rank throughout."""
    config = replace(long_config(tmp_path), stages=[0, 1, 2, 3])
    for here, last_step in ((two_ranks.run, 2), (lambda function, given: function(given), 4), (two_ranks.run, 24)):
        here(run, replace(config, loop=replace(config.loop, engine="deepspeed", stop_after_steps=last_step)))
    for stage in range(4):
        assert losses(tmp_path / f"zero{stage}") == pytest.approx(expected_long, rel=1e-5)
        assert not list((tmp_path / f"zero{stage}" / "checkpoints").glob("*.tmp"))


def test_signal_to_the_launcher_saves_on_both_ranks_and_resumes(repository, two_ranks, tmp_path, expected):
    command = [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    first = launch(repository, command, f"run_folder={tmp_path}", "fault=term")
    assert first.returncode != 0
    assert "tiny: stopped after step 6 of 12" in first.stdout + first.stderr
    two_ranks.run(run, tiny_config(tmp_path, engine="deepspeed"))
    assert losses(tmp_path) == pytest.approx(expected, rel=1e-5)


def test_killed_rank_ends_the_launch_at_once_and_the_same_training_goes_on(repository, two_ranks, tmp_path, expected):
    command = [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    first = launch(repository, command, f"run_folder={tmp_path}", "fault=kill")
    assert first.returncode != 0
    assert not psutil.pid_exists(int((tmp_path / "fault").read_text()))
    two_ranks.run(run, tiny_config(tmp_path, engine="deepspeed"))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert losses(tmp_path) == pytest.approx(expected, rel=1e-5)


def test_torchrun(repository, tmp_path, expected):
    command = [str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", str(free_port())]
    result = launch(repository, command, f"run_folder={tmp_path}")
    assert result.returncode == 0, result.stderr[-3000:]
    assert losses(tmp_path) == pytest.approx(expected, rel=1e-5)


def test_ray_train(ray_session, tmp_path, expected, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parent))
    run_folder = tmp_path / "Würfel 猫 😀 [x] #1"  # Ray takes ASCII alone for its names
    config = tiny_config(run_folder, engine="deepspeed")
    config = replace(config, launch=LaunchConfig(launcher="ray", num_workers=2, max_failures=0))
    checkpoint = run_training(config, build_task)
    assert checkpoint == run_folder / "checkpoints" / "step-00000012"
    assert losses(run_folder) == pytest.approx(expected, rel=1e-5)

    with pytest.raises(UserError, match=r"configuration has changed\n  model.depth: checkpoint 2, this run 3"):
        run_training(replace(config, depth=3), build_task)

    def refuse(config):
        raise UserError("the records are of another kind")

    with pytest.raises(UserError, match="the records are of another kind"):
        run_training(replace(config, run_folder=str(tmp_path / "refused")), refuse)
    assert not (tmp_path / "refused").exists()


def test_ray_train_that_does_not_fit_the_cluster_is_refused(ray_session, tmp_path):
    config = replace(tiny_config(tmp_path), launch=LaunchConfig(launcher="ray", num_workers=64))
    with pytest.raises(ClusterError, match=r"launch.num_workers is 64, which takes 64 CPUs .* expected at most 4"):
        run_training(config, build_task)


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_each_rank_hashes_the_checkpoint_files_that_it_wrote(repository, tmp_path, zero_stage):
    command = [str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", str(free_port())]
    done = subprocess.run(
        [*command, str(SCRIPT.with_name("sealing_ranks.py")), str(tmp_path), str(zero_stage)],
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", **WITHOUT_GPU},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    main, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert sorted(other["hashed"]) == sorted(other["written"])
    assert bool(other["written"]) == (zero_stage > 0)
    assert set(main["written"]) < set(main["hashed"])
    assert {"model.safetensors", "ema.safetensors", "trainer.json"} < set(main["hashed"])
    checkpoint = tmp_path / "checkpoints" / "step-00000012"
    marked = [Path(name).name for name in json.loads((checkpoint / "COMPLETE").read_text())["files"]]
    assert sorted(marked) == sorted(main["hashed"] + other["hashed"])  # each once
    assert find_damage(checkpoint) is None
