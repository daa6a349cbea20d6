"""A training that is asked to end saves what it has, on every rank alike, and goes on later."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import build_task, tiny_config

from cluster.ranks import Ranks
from nvg.errors import UserError
from pipelines.entry import EXIT_STOPPED, TrainingStopped
from pipelines.run_folder import read_metrics, run_lock
from pipelines.train import interrupt
from pipelines.train.interrupt import STOP_FILE, StopRequest, ask_to_stop, on_stop_signals
from pipelines.train.launch import run_training

pytestmark = pytest.mark.usefixtures("a_terminal")
SCRIPT = Path(__file__).parents[2] / "support" / "tiny_training.py"


def losses(folder):
    return [row["loss"] for row in read_metrics(folder)]


@pytest.mark.parametrize("fault", ["term", "int", "stop"])
@pytest.mark.parametrize("engine", ["plain", "deepspeed"])
def test_asked_to_end_it_saves_the_step_and_the_whole_equals_a_straight_run(tmp_path, engine, fault, monkeypatch):
    monkeypatch.setattr(interrupt, "POLL_S", 0.0)
    straight = run_training(tiny_config(tmp_path / "straight", engine=engine), build_task)
    config = replace(tiny_config(tmp_path / "stopped", engine=engine, log_every_steps=4), fault=fault)
    with pytest.raises(TrainingStopped, match=r"tiny: stopped after step 6 of 12.*step-00000006 is whole"):
        run_training(config, build_task)
    assert [row["step"] for row in read_metrics(tmp_path / "stopped")] == [4, 6]
    assert not (tmp_path / "stopped" / STOP_FILE).exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    resumed = run_training(config, build_task)
    for name in ("model", "ema"):
        file = f"{name}.safetensors"
        assert (resumed / file).read_bytes() == (straight / file).read_bytes()


def test_second_ctrl_c_ends_at_once_and_one_that_a_launcher_passes_on_does_not(monkeypatch, capfd):
    told = []
    with on_stop_signals(lambda *_: told.append(True)):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the terminal has sent it, and the launcher sends it too
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(told) == 3
        monkeypatch.setattr(interrupt, "SAME_PRESS_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.count("press it again to end at once") == 1
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_job_in_the_background_of_a_script_does_not_hear_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = []
    try:
        with on_stop_signals(lambda *_: told.append(True)):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(told) == 1


def test_request_of_an_earlier_session_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupt, "POLL_S", 0.0)
    ask_to_stop(tmp_path)
    assert run_training(tiny_config(tmp_path), build_task).name == "step-00000012"


def test_refused_start_changes_nothing_and_leaves_the_request_to_whom_it_is_meant_for(tmp_path):
    config = tiny_config(tmp_path, stop_after_steps=4)
    run_training(config, build_task)
    kept = {name: (tmp_path / name).read_bytes() for name in ("config.yaml", "provenance.json")}
    ask_to_stop(tmp_path)
    with pytest.raises(UserError, match=r"model.depth: checkpoint 2, this run 3"):
        run_training(replace(config, depth=3), build_task)
    with run_lock(tmp_path, Ranks()), pytest.raises(UserError, match="another training is writing"):
        run_training(config, build_task)
    assert (tmp_path / STOP_FILE).exists()
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    run_training(config, build_task)
    assert not (tmp_path / STOP_FILE).exists()


def test_request_made_while_a_training_starts_is_met(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupt, "POLL_S", 0.0)
    ask_to_stop(tmp_path)

    def build_slowly(config):
        ask_to_stop(tmp_path)
        return build_task(config)

    with pytest.raises(TrainingStopped, match="stopped after step 1 of 12"):
        run_training(tiny_config(tmp_path), build_slowly)


def test_one_rank_that_was_signalled_stops_all(tmp_path):
    told = []

    class OtherSaysYes(Ranks):
        def any(self, answer):
            told.append(answer)
            return True

    request = StopRequest(tmp_path / STOP_FILE, OtherSaysYes(rank=1, world_size=2))
    assert request.asked()  # another rank says so
    request.signalled(signal.SIGTERM, None)
    request.asked()
    assert told == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["term", "int"])
def test_exit_code_says_that_it_was_stopped(repository, tmp_path, fault):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), f"run_folder={tmp_path}", f"fault={fault}"],
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == EXIT_STOPPED, done.stderr
    assert "stopped after step 6 of 12" in done.stderr
