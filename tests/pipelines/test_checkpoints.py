"""A checkpoint is whole or it is not used."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from tiny_training import build_task, tiny_config

from nvg.checkpoints import runs
from nvg.checkpoints.runs import resolve_checkpoint
from nvg.errors import UserError
from pipelines import checkpoints
from pipelines.run_folder import read_metrics
from pipelines.train.launch import run_training
from pipelines.train.state import TrainerState


@pytest.fixture
def run_folder(tmp_path):
    """A finished tiny run with checkpoints 4, 8 and 12."""
    run_training(tiny_config(tmp_path / "run"), build_task)
    return tmp_path / "run"


def checkpoint(run_folder, step):
    return run_folder / "checkpoints" / runs.checkpoint_name(step)


def test_resolve_takes_run_and_checkpoint_folders(run_folder):
    assert resolve_checkpoint(run_folder) == checkpoint(run_folder, 12)
    assert resolve_checkpoint(checkpoint(run_folder, 4)) == checkpoint(run_folder, 4)
    assert (run_folder / "checkpoints" / "latest").read_text() == "step-00000012\n"
    with pytest.raises(UserError, match="does not exist"):
        resolve_checkpoint(run_folder / "nothing")


def truncate(folder):
    path = folder / "plain" / "plain.pt"
    os.truncate(path, path.stat().st_size // 2)


def flip_bit(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": truncate,
    "flipped bit": flip_bit,
    "missing file": lambda folder: (folder / "trainer.json").unlink(),
    "no marker": lambda folder: (folder / "COMPLETE").unlink(),
    "empty marker": lambda folder: (folder / "COMPLETE").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_newest_means_the_one_before(run_folder, damage, caplog):
    straight = read_metrics(run_folder)
    weights = (checkpoint(run_folder, 12) / "ema.safetensors").read_bytes()
    damage(checkpoint(run_folder, 12))
    assert resolve_checkpoint(run_folder) == checkpoint(run_folder, 8)
    assert "step-00000012 is damaged" in caplog.text
    caplog.clear()
    with pytest.raises(UserError, match="damaged"):
        resolve_checkpoint(checkpoint(run_folder, 12))
    run_training(tiny_config(run_folder), build_task)
    assert "step-00000012 is damaged" in caplog.text
    assert [row["loss"] for row in read_metrics(run_folder)] == [row["loss"] for row in straight]
    assert (checkpoint(run_folder, 12) / "ema.safetensors").read_bytes() == weights
    assert checkpoint(run_folder, 12).with_name("step-00000012.damaged").is_dir()


def test_latest_is_not_needed_and_left_overs_are_removed(run_folder):
    (run_folder / "checkpoints" / "latest").unlink()
    (run_folder / "checkpoints" / "step-00000016.tmp").mkdir()
    assert resolve_checkpoint(run_folder) == checkpoint(run_folder, 12)
    truncate(checkpoint(run_folder, 12))
    run_training(tiny_config(run_folder), build_task)
    assert not (run_folder / "checkpoints" / "step-00000016.tmp").exists()


def test_damaged_ones_are_set_aside_once_a_good_one_is_found(run_folder, caplog):
    for step in (8, 12):
        truncate(checkpoint(run_folder, step))
    run_training(tiny_config(run_folder, checkpoint_every_steps=5), build_task)
    assert caplog.text.count("is damaged") == 2
    names = sorted(path.name for path in (run_folder / "checkpoints").iterdir())
    assert names == [
        "latest",
        "step-00000004",
        "step-00000005",
        "step-00000008.damaged",
        "step-00000010",
        "step-00000012",
        "step-00000012.damaged",
    ]


def test_change_that_is_accepted_is_noted_in_the_checkpoints(tmp_path, caplog):
    run_training(tiny_config(tmp_path, stop_after_steps=4), build_task)
    config = tiny_config(tmp_path, accept_changed=["optimizer.lr"])
    config = replace(config, optimizer=replace(config.optimizer, lr=0.005))
    with pytest.raises(UserError, match=r"optimizer.lr: checkpoint 0.01, this run 0.005(?s:.*)loop.accept_changed"):
        run_training(replace(config, loop=replace(config.loop, accept_changed=[])), build_task)
    newest = run_training(config, build_task)
    assert "going on with a changed setting: optimizer.lr" in caplog.text
    note = "from step 4: optimizer.lr: checkpoint 0.01, this run 0.005"
    assert TrainerState.read(newest).accepted == [note]
    assert run_training(config, build_task) == newest


def test_all_damaged_is_an_error_not_a_fresh_start(run_folder):
    for step in (4, 8, 12):
        truncate(checkpoint(run_folder, step))
    with pytest.raises(UserError, match="every checkpoint in"):
        run_training(tiny_config(run_folder), build_task)


def test_changed_configuration_is_refused_by_name(run_folder):
    config = tiny_config(run_folder, seed=5)
    with pytest.raises(UserError, match=r"model.depth: checkpoint 2, this run 3") as error:
        run_training(replace(config, depth=3), build_task)
    assert "loop.seed: checkpoint 0, this run 5" in str(error.value)


def test_changed_data_are_refused_by_name(run_folder):
    path = checkpoint(run_folder, 12) / "trainer.json"
    state = json.loads(path.read_text())
    state["data"]["name"] = "others"
    path.write_text(json.dumps(state))
    marker = checkpoint(run_folder, 12) / "COMPLETE"
    temporary = checkpoint(run_folder, 12).rename(checkpoint(run_folder, 12).with_suffix(".tmp"))
    (temporary / marker.name).unlink()
    checkpoints.commit(temporary)
    with pytest.raises(UserError, match="the data has changed\n  name: checkpoint 'others', this run 'tiny'"):
        run_training(tiny_config(run_folder), build_task)


def test_retention(tmp_path):
    run_training(tiny_config(tmp_path, checkpoint_every_steps=1, keep_last=2, keep_every_steps=5), build_task)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == [runs.checkpoint_name(step) for step in (5, 10, 11, 12)]


def test_full_disk_keeps_older_checkpoints(tmp_path, monkeypatch):
    run_training(tiny_config(tmp_path, stop_after_steps=4), build_task)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.train.saving.save_weights", full)
        with pytest.raises(UserError, match="step-00000012 could not be written: no space left"):
            run_training(tiny_config(tmp_path), build_task)
    assert [row["failed_checkpoints"] for row in read_metrics(tmp_path)] == [0] * 8 + [1] * 4  # step 8 had none
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000004"]
    assert resolve_checkpoint(run_training(tiny_config(tmp_path), build_task)).name == "step-00000012"


def test_save_that_would_not_fit_is_put_off_and_the_next_one_is_written(tmp_path, monkeypatch, caplog):
    usage, calls = shutil.disk_usage, []

    def scarce(path):
        calls.append(path)
        return usage(path)._replace(free=1000 if 2 <= len(calls) <= 3 else 1 << 40)

    monkeypatch.setattr(shutil, "disk_usage", scarce)
    run_training(tiny_config(tmp_path, keep_last=1, checkpoint_every_steps=3), build_task)
    assert "step-00000006 could not be written: no space left" in caplog.text
    assert [row["failed_checkpoints"] for row in read_metrics(tmp_path)] == [0] * 6 + [1] * 6
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000012"]


def test_second_training_in_the_same_folder_is_refused(tmp_path):
    from cluster.ranks import Ranks
    from pipelines.run_folder import run_lock

    with run_lock(tmp_path, Ranks()), pytest.raises(UserError, match="another training is writing"):
        run_training(tiny_config(tmp_path), build_task)
