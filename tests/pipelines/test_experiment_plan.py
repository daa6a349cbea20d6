"""`nvg run`: the order of steps, what is refused before anything starts, and a status that is alive."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from chain_here import ChainHere, configured

from nvg.errors import UserError
from pipelines.configuration import dump_config, load_config
from pipelines.experiment import status as live
from pipelines.experiment.plan import make_plan
from pipelines.experiment.run import plan_experiment, run_experiment
from pipelines.experiment.status import LiveStatus, read_status
from pipelines.experiment.steps import STEPS, ExperimentConfig, Progress, Standing, Step


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> ChainHere:
    return ChainHere(monkeypatch)


# --- what the steps share


def test_a_step_takes_what_its_own_source_does_not_say(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "extends: demo/digits.yaml\nseed: 3\nsource: {seed: '${seed}', judge_fraction: 0.3}\n"
        "precompute: {source: {num_views: 4}}\ntokenizer: null\n"
    )
    config = load_config(ExperimentConfig, file, ["source.test_fraction=0.25", "evaluation.source.num_views=2"])
    assert config.tokenizer is None
    assert config.precompute is not None
    assert config.evaluation is not None
    assert config.precompute.source == replace(config.source, num_views=4)
    assert config.evaluation.source == replace(config.source, num_views=2)
    assert (config.source.seed, config.source.judge_fraction, config.source.test_fraction) == (3, 0.3, 0.25)


def test_a_source_that_is_no_section_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("extends: demo/digits.yaml\nsource: ${tokenizer.source}\n")
    with pytest.raises(UserError, match="expected its settings"):
        load_config(ExperimentConfig, tmp_path / "x.yaml", [])


def test_a_step_may_name_the_whole_source_or_none(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for own in ("'${source}'", "{}"):
        file.write_text(f"extends: demo/digits.yaml\ntokenizer: {{source: {own}}}\n")
        config = load_config(ExperimentConfig, file, ["source.num_views=4"])
        assert config.tokenizer is not None
        assert config.tokenizer.source == config.source


# --- the order, and what is refused before anything starts


@pytest.mark.parametrize(
    ("file", "ways"),
    [
        ("demo/fashion.yaml", ["tools.datasets.fashion_mnist", "apt-get install", "dpkg-deb -x", "the four files"]),
        ("demo/avatars.yaml", ["tools.datasets.avatars"]),
    ],
)
def test_images_that_are_not_there_are_told_with_all_ways_to_come_by_them(tmp_path: Path, file, ways) -> None:
    config = load_config(ExperimentConfig, file, [f"source.path={tmp_path / 'nothing'}", f"folder={tmp_path / 'run'}"])
    with pytest.raises(UserError, match=r"source\.path is .*nothing.*, and there is nothing") as error:
        plan_experiment(config)
    assert all(way in str(error.value) for way in ways)
    assert not (tmp_path / "run").exists()


def test_the_order_follows_from_paths(tmp_path: Path) -> None:
    plan = make_plan(configured(tmp_path / "run"))
    assert list(plan.steps) == list(STEPS)
    assert plan.needs == {
        "tokenizer": set(),
        "precompute": {"tokenizer"},
        "generators": {"precompute"},
        "evaluation": {"tokenizer", "precompute", "generators"},
    }
    (tmp_path / "other").mkdir()
    plan = make_plan(configured(tmp_path / "run", f"precompute.tokenizer={tmp_path / 'other'}"))
    assert plan.needs["precompute"] == set()  # made elsewhere, and there


def test_links_and_relative_names_are_the_places_they_lead_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    plan = make_plan(configured(tmp_path / "run", "precompute.tokenizer=link/tokenizer"))
    assert plan.needs["precompute"] == {"tokenizer"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["precompute.tokenizer={folder}/content"],
            r"in a circle:\n  generators waits for precompute: .*data.path is .*\n  precompute waits for generators: ",
        ),
        (["generators.content.init_from={folder}/content"], r"generators waits for generators: .*init_from is"),
        (["evaluation.records={folder}/elsewhere"], r"evaluation.records is '.*elsewhere'; expected what is there"),
        (["precompute=null"], r"generators.content.data.path is .*, or add the step that makes it \(precompute\)"),
        (["generators.structure.run_folder={folder}/tokenizer"], r"apart from .*; give each step its own"),
        (["evaluation.output={folder}/records/scores"], r"evaluation.output is .*apart from .*precompute.output"),
        (["tokenizer.run_folder={folder}"], "below or beside the experiment's folder"),
        ([f"{name}=null" for name in STEPS], "no step; expected one of tokenizer, precompute"),
    ],
    ids=lambda value: value[0].split("=")[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_put_in_order_is_refused_and_leaves_nothing(
    settings: list[str], message: str, tmp_path: Path, chain: ChainHere
) -> None:
    folder = tmp_path / "run"
    config = configured(folder, *(text.format(folder=folder) for text in settings))
    for call in (make_plan, plan_experiment, run_experiment):
        with pytest.raises(UserError, match=message):
            call(config)
    assert not folder.exists()
    assert not chain.begun


def test_a_file_says_only_what_it_wants(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("folder: here\ntokenizer: {run_folder: '${folder}/tok'}\n")
    config = load_config(ExperimentConfig, file)
    assert (config.precompute, config.generators, config.evaluation) == (None, None, None)
    assert config.tokenizer is not None
    assert config.tokenizer.run_folder == "here/tok"
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(ExperimentConfig, tmp_path / "again.yaml") == config
    assert load_config(ExperimentConfig, "demo/digits.yaml", ["evaluation=null"]).evaluation is None


def test_spatial_records_need_no_structure_generator(tmp_path: Path) -> None:
    config = configured(tmp_path / "run", "generators.structure=null", "evaluation.structure=''")
    assert config.generators is not None
    assert [run.kind for run in config.generators.runs] == ["content"]
    assert "the content generator" in make_plan(config).steps["generators"].description


# --- a status that is alive


def faked(name: str, folder: Path, progress: list[Progress]) -> Step:
    return Step(
        name=name,
        inputs={},
        outputs={name: str(folder / name)},
        shown=[folder / name / "a & b.html"],
        description="",
        look=lambda _: Standing("to do"),
        progress=lambda _: progress,
        run=lambda *_: None,
    )


def test_the_status_follows_a_step_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_EVERY_S", 0.02)
    plan = make_plan(configured(tmp_path))
    progress = [Progress("content", 5, 10, "steps", "loss 0.5000  <b>")]
    steps = {name: faked(name, tmp_path, progress) for name in plan.steps}
    standings = {name: Standing("to do") for name in steps} | {"tokenizer": Standing("finished")}
    seen: list[str] = []
    with LiveStatus(replace(plan, steps=steps), standings, {"tokenizer": 61.0}) as status:
        status.ends("tokenizer", "finished earlier")
        (tmp_path / "precompute").mkdir()
        (tmp_path / "precompute" / "a & b.html").write_text("")
        status.begins("precompute")
        for done in (6, 7):
            progress[0] = replace(progress[0], done=done)
            deadline = time.monotonic() + 10
            while f"{done} of 10" not in "".join(seen := read_status(tmp_path)):
                assert time.monotonic() < deadline, seen
                time.sleep(0.01)
        page = (tmp_path / "status.html").read_text()
        assert '<meta http-equiv="refresh"' in page
        assert "&lt;b&gt;" in page
        assert '<a href="precompute/a%20%26%20b.html">precompute/a &amp; b.html</a>' in page
        assert seen[1] == "tokenizer   finished earlier  1 min 01 s"
        assert re.fullmatch(r"precompute  runs +[\d.]+ s +content 7 of 10 steps \(loss 0.5000  <b>\)", seen[2])
        status.ends("precompute", "finished")
    assert "refresh" not in (tmp_path / "status.html").read_text()
    assert read_status(tmp_path)[0].startswith(f"{tmp_path}: stopped, as of ")  # not all is done
    assert not [thread for thread in threading.enumerate() if thread.name == "status"]


def test_an_experiment_that_was_killed_is_not_said_to_run(tmp_path: Path) -> None:
    plan = make_plan(configured(tmp_path))
    with LiveStatus(plan, {name: Standing("to do") for name in plan.steps}, {}):
        file = tmp_path / "status.json"
        said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "time": time.time() - 1000}))
    assert "it may have been killed" in read_status(tmp_path)[-1]
    file.write_text(json.dumps({**said, "rows": [{"name": "tokenizer"}]}))
    with pytest.raises(UserError, match=r"status.json: key rows\[0\].state is missing"):
        read_status(tmp_path)


def test_a_disk_that_takes_no_status_ends_no_experiment(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = make_plan(configured(tmp_path / "run"))
    (tmp_path / "run" / "status.json").mkdir(parents=True)
    with LiveStatus(plan, {name: Standing("to do") for name in plan.steps}, {}) as status:
        status.begins("tokenizer")
    assert caplog.text.count("cannot be kept up to date") == 1
