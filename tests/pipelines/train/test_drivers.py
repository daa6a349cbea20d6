"""The supervisor's display where there is no terminal, and what counts as finished."""

import io
import json

import pytest
from rich.console import Console

from pipelines.checkpoints import commit
from pipelines.configuration import dump_config
from pipelines.train import drivers
from pipelines.train.config import OptimizerConfig
from pipelines.train.generator import ContentRun, StructureRun


@pytest.fixture
def runs(tmp_path):
    optimizer = OptimizerConfig(total_images=100, global_batch=10)
    content = ContentRun(run_folder=str(tmp_path / "content"), optimizer=optimizer)
    return {"content": content, "structure": StructureRun(run_folder=str(tmp_path / "structure"), optimizer=optimizer)}


def log(run, step, folder):
    row = {"step": step, "loss": 1.0, "step_s": 0.5, "images_per_s": 20.0}
    path = folder / run
    path.mkdir(exist_ok=True)
    with open(path / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


def test_a_line_is_written_only_when_something_changed(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drivers, "LINE_EVERY_S", 0.0)
    with drivers._Display(runs, list(runs), 2, Console(file=io.StringIO())) as display:
        for step in (None, None, 2, None, None):
            if step is not None:
                log("content", step, tmp_path)
            display.update(list(runs))
        display.finished("content")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "content 0/10 starting | structure 0/10 starting" in lines[0]
    assert "content 2/10 loss 1.0000  20 images/s | structure 0/10 starting | all 2/20 steps" in lines[1]
    assert lines[2] == "content finished"


def test_finished_means_the_last_checkpoint_of_the_same_settings_however_they_were_written(runs, tmp_path):
    run = runs["content"]
    temporary = tmp_path / "content" / "checkpoints" / "step-00000010.tmp"
    temporary.mkdir(parents=True)
    assert not drivers.is_finished(run)
    commit(temporary)
    assert not drivers.is_finished(run)
    file = tmp_path / "content" / drivers.DRIVER_CONFIG_FILE
    file.write_text(dump_config(run) + "structure: {depth: 12}\n")  # as files were written before
    assert drivers.is_finished(run)
    file.write_text(dump_config(run).replace("lr: 0.0001", "lr: 0.0002"))
    assert not drivers.is_finished(run)
