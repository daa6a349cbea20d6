"""`nvg plan`: an experiment or files of its steps, as tables and as JSON, and what cannot be planned."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nvg.errors import UserError
from pipelines.cli.main import app
from pipelines.experiment.forecast import forecast, load_steps
from pipelines.experiment.forecast_page import estimators, hours_text, size_text
from pipelines.train.devices import find_device

IMAGENET = [
    "tokenizer/f16.yaml", "precompute/imagenet.yaml", "content/d16.yaml", "structure/d16.yaml", "eval/imagenet256.yaml",
]  # fmt: skip


def plan(*words: str) -> str:
    done = CliRunner().invoke(app, ["plan", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def imagenet() -> dict:
    return json.loads(plan(*IMAGENET, "--devices", "64", "--images", "1281167", "--price", "2", "--json"))


def test_all_steps_of_imagenet_with_their_hours(imagenet):
    steps = {step["name"]: step for step in imagenet["steps"]}
    assert list(steps) == ["tokenizer", "precompute", "content", "structure", "evaluation"]
    assert [step["speed"]["basis"] for step in steps.values()] == ["measured"] * 5
    assert steps["content"]["device_hours"] == pytest.approx(521 / 0.88 + 2, rel=0.03)  # 12 % is communication
    assert steps["precompute"]["num_images"] == 16 * 1_281_167
    assert steps["precompute"]["storage_bytes"] == pytest.approx(26e9 + 820e9, rel=0.01)
    assert steps["evaluation"]["device_hours"] == pytest.approx(1.41, rel=0.01)
    for step in steps.values():
        assert step["cost"] == 2 * step["device_hours"]
        assert step["device_hours"] >= step["hours"] > 0
    training = steps["content"]["training"]
    assert [row["zero_stage"] for row in training["stages"]] == [0, 1, 2, 3]
    assert training["micro_batch"] * training["passes"] * training["num_devices"] == 768
    assert training["checkpoint_bytes"] == 24 * 255_183_904
    assert (training["num_kept"], training["bends_at"]) == (8, 64)


def test_the_tables_say_what_the_numbers_say(imagenet):
    text = plan(*IMAGENET, "--devices", "64", "--images", "1281167", "--price", "2")
    row = re.findall(r"device-hours[^\n]*", text)[0]
    for step in imagenet["steps"]:
        assert hours_text(step["device_hours"]) in row
    for part in (
        "64 × NVIDIA H100 SXM, 80 GB",
        "measured",
        "cost",
        "ZeRO-3",
        "proposed: ZeRO-1",
        "scaling bends at 64",
    ):
        assert part in text


def test_an_experiment_is_planned_by_its_own_steps():
    found = forecast(load_steps(["demo/digits.yaml"]), find_device("rtx4090"), 1)
    assert [step.name for step in found] == ["tokenizer", "precompute", "content", "structure", "evaluation"]
    content = next(step for step in found if step.name == "content")
    assert content.num_images == 256_000
    assert content.bytes_read == 256_000 * 89  # a record of a 4 × 4 grid
    assert all(step.speed.basis == "predicted" for step in found)
    assert next(step for step in found if step.name == "precompute").num_images == 9 * 1000


def test_a_setting_wins_over_the_file_and_deepspeed_is_shown_beside():
    text = plan("content/d12.yaml", "optimizer.micro_batch=96", "deepspeed.zero_stage=2", "--device", "a100-40")
    assert re.search(
        r"optimizer.micro_batch=96 DOES NOT FIT: \d+ images do at most; set optimizer.micro_batch=\d+", text
    )
    steps = forecast(load_steps(["content/d16.yaml"]), find_device("h100"), 8)
    (line,) = estimators(steps, find_device("h100"))
    # By its formulas: 2 bytes of weights, and an eighth of 18 of gradients and optimizer; at ZeRO-3 the latter alone.
    two, three = (255_183_904 * number / 2**30 for number in (2 + 18 / 8, 18 / 8))
    assert re.search(r"DeepSpeed estimates ([\d.]+) GiB at ZeRO-2 and ([\d.]+) at ZeRO-3", line)
    found = [float(number) for number in re.findall(r"([\d.]+) GiB at ZeRO-2 and ([\d.]+)", line)[0]]
    assert found == pytest.approx([two, three], abs=0.006)
    assert "16 bit wide" in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["content/d16.yaml", "--device", "h10"], r"--device is 'h10'; expected one of h100, .* --device-file FILE"),
        (["content/d16.yaml", "--devices", "0"], r"--devices is 0; expected 1 or more"),
        (["content/d16.yaml", "--price", "-1"], r"--price is -1.0; expected above 0"),
        (["content/d16.yaml", "content/d12.yaml"], r"FILE is 'content/d12.yaml'; expected one file of content"),
        (["content/d16.yaml", "structure/d16.yaml", "seed=1"], r"seed=1 and 2 files; expected settings with one file"),
        (["sampling/paper.yaml"], r"FILE is 'sampling/paper.yaml'; expected an experiment .* keys content_guidance"),
        (["content/d16.yaml", "content.depht=3"], r"depht"),
        (["eval/imagenet256.yaml"], r"content is 'RUN/content'; expected a run that is there, or the content planned"),
        (
            ["tokenizer/f16.yaml", "precompute/imagenet.yaml"],
            r"precompute.source.path is 'data/imagenet/train'; .* --images 1281167",
        ),
        (
            ["content/d24.yaml", "content.depth=28", "--device", "rtx4090", "--devices", "1"],
            r"--devices is 1; expected \d+ or more for content",
        ),
    ],
)
def test_what_cannot_be_planned_names_what_to_change(words, says):
    with pytest.raises(UserError, match=says):
        plan(*words)


def test_a_file_without_a_step_is_refused(tmp_path: Path):
    file = tmp_path / "empty.yaml"
    file.write_text("generators: null\n")
    with pytest.raises(UserError, match="has no step; expected one of tokenizer"):
        plan(str(file))


def test_numbers_for_people():
    assert [size_text(number) for number in (0, 999, 26_420_000_000, 1.06e13)] == ["0 B", "999 B", "26.4 GB", "10.6 TB"]
    assert [hours_text(number) for number in (0.0361, 9.3, 1723.6)] == ["0.036", "9.3", "1,724"]
