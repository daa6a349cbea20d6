"""The optional log to Weights & Biases: complete without a network, and never in the way of a training."""

import json
import logging
import time

import pytest
from tiny_training import build_task, tiny_config

from pipelines.run_folder import read_metrics
from pipelines.train.config import WandbConfig
from pipelines.train.launch import run_training

pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def no_service(monkeypatch, tmp_path):
    """Nobody listens at the service's address, and there is no key in the environment or at home."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.slow
def test_offline_log_of_a_run_resumed_twice_holds_every_row(tmp_path):
    folder = tmp_path / "run"
    wandb = WandbConfig(enabled=True, mode="offline")
    for stop in (5, 8, None):
        run_training(tiny_config(folder, wandb=wandb, stop_after_steps=stop), build_task)
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == list(range(1, 13))

    run_id = (folder / "wandb-id.txt").read_text()
    sessions = sorted((folder / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(sessions) == 3  # one id for all of them
    assert (folder / "wandb" / "latest-run").resolve() == sessions[-1].parent
    deadline = time.monotonic() + 60  # its service writes on for a moment on a busy machine
    while json.dumps(rows[-1]["loss"]).encode() not in sessions[-1].read_bytes() and time.monotonic() < deadline:
        time.sleep(0.2)
    logged = sessions[-1].read_bytes()  # the newest is whole: it alone has to be sent
    for row in rows:
        for name in ("loss", "absolute", "grad_norm"):
            assert json.dumps(row[name]).encode() in logged


def test_runs_of_the_same_name_are_different_runs(tmp_path):
    ids = set()
    for parent in ("a", "b"):
        folder = tmp_path / parent / "run"
        run_training(tiny_config(folder, wandb=WandbConfig(enabled=True), stop_after_steps=1), build_task)
        ids.add((folder / "wandb-id.txt").read_text())
    assert len(ids) == 2


def test_service_that_refuses_is_one_warning_and_the_training_goes_on(tmp_path, caplog):
    wandb = WandbConfig(enabled=True, mode="online")
    with caplog.at_level(logging.WARNING, "pipelines.train.sinks"):
        run_training(tiny_config(tmp_path, wandb=wandb), build_task)
    assert len(read_metrics(tmp_path)) == 12
    [warning] = [record.message for record in caplog.records if record.name == "pipelines.train.sinks"]
    assert warning.startswith("wandb could not be started, training without it: ")
