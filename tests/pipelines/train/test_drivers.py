"""The supervisor's display where there is no terminal, and what counts as finished."""

import io
import json

import pytest
from rich.console import Console

from pipelines.checkpoints import commit
from pipelines.configuration import dump_config
from pipelines.run_folder import CONFIG_FILE
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


def shown(runs, tmp_path, capsys, *, num_parallel):
    """Lines of two steps told of the first training, and of its end."""
    with drivers._Display(runs, list(runs), num_parallel, Console(file=io.StringIO())) as display:
        display.bars._every_s = 0.0
        for step in (None, None, 2, None, None):
            if step is not None:
                log("content", step, tmp_path)
            display.update(list(runs))
        display.finished("content")
    return capsys.readouterr().err.splitlines()


def test_a_line_is_written_only_when_something_changed(runs, tmp_path, capsys):
    lines = shown(runs, tmp_path, capsys, num_parallel=2)
    assert lines == [
        "content 0/10 steps starting | structure 0/10 steps",
        "content 0/10 steps starting | structure 0/10 steps starting",
        "content 2/10 steps loss 1.0000  20 images/s | structure 0/10 steps starting",
        "content finished",
    ]


def test_more_trainings_than_run_at_once_are_one_bar(runs, tmp_path, capsys):
    lines = shown(runs, tmp_path, capsys, num_parallel=1)
    assert lines[0] == "trainings 0/20 steps time left not known yet  content, structure"
    assert lines[1].startswith("trainings 2/20 steps")
    assert lines[2:] == ["trainings 2/20 steps time left not known yet  content", "content finished"]


def test_finished_means_the_last_checkpoint_of_the_same_settings_however_they_were_written(runs, tmp_path):
    run = runs["content"]
    temporary = tmp_path / "content" / "checkpoints" / "step-00000010.tmp"
    temporary.mkdir(parents=True)
    assert not drivers.is_finished(run)
    commit(temporary)
    assert not drivers.is_finished(run)
    file = tmp_path / "content" / CONFIG_FILE
    file.write_text(dump_config(run) + "structure: {depth: 12}\n")  # as files were written before
    assert drivers.is_finished(run)
    file.write_text(dump_config(run).replace("lr: 0.0001", "lr: 0.0002"))
    assert not drivers.is_finished(run)
