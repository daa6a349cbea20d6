"""`nvg run`: what is done again and what is not, on trainings of two steps; killed processes are in `test_demo.py`."""

from __future__ import annotations

import json
import os
import re
import time
from functools import partial
from pathlib import Path

import pytest
from chain_here import SETTINGS, ChainHere, configured
from tiny_networks import save_tokenizer

from nvg.errors import Changed, UserError
from pipelines.cli.main import app
from pipelines.entry import EXIT_USER_ERROR, TrainingStopped, guard
from pipelines.experiment.plan import make_plan
from pipelines.experiment.run import plan_experiment, run_experiment
from pipelines.experiment.status import read_status
from pipelines.experiment.steps import STEPS, Progress, made_of
from pipelines.precompute.plan import DatasetFolder
from pipelines.run_folder import folder_lock

pytestmark = pytest.mark.slow


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> ChainHere:
    return ChainHere(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment; tests copy it."""
    folder = tmp_path_factory.mktemp("experiment") / "run"
    with pytest.MonkeyPatch.context() as patch:
        chain = ChainHere(patch)
        run_experiment(configured(folder))
        assert chain.take() == list(STEPS)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    import shutil

    return shutil.copytree(finished, tmp_path / "run")


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, what only tells of the last start and its place left out."""
    told = (".lock", ".precompute.lock", "status.json", "status.html", "provenance.json", "times.json")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in told]
    files = [path for path in files if path.parent.name != "configs"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- done once


def test_a_finished_experiment_is_passed_over_without_a_cluster(copied: Path, chain: ChainHere) -> None:
    before = snapshot(copied)
    report = run_experiment(configured(copied))
    assert chain.begun == []
    assert report == copied / "report.html"
    assert snapshot(copied) == before
    plan = plan_experiment(configured(copied))
    assert [line.partition(":")[0] for line in plan if line.startswith(STEPS)] == [
        f"{name} (finished)" for name in STEPS
    ]


def test_a_moved_experiment_is_finished_still_and_so_is_one_told_otherwise(
    copied: Path, chain: ChainHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = copied.rename(copied.with_name("moved"))
    monkeypatch.chdir(moved.parent)
    changes_nothing = ["evaluation.pool.num_actors=1", "session.num_cpus=2", "tokenizer.loop.log_every_steps=9"]
    run_experiment(configured(Path("moved"), *changes_nothing))
    assert chain.take() == []


def test_an_experiment_of_before_is_finished_where_its_steps_say_so(copied: Path, chain: ChainHere) -> None:
    for name in ("status.json", "status.html", ".lock", "evaluation/made_of.json"):
        (copied / name).unlink()
    run_experiment(configured(copied))
    assert chain.take() == ["evaluation"]  # of which nothing there says what made it
    assert json.loads((copied / "times.json").read_text()).keys() == {"tokenizer", "precompute", "generators"}
    run_experiment(configured(copied))
    assert chain.take() == []


@pytest.mark.parametrize(
    ("stop", "error"),
    [
        ("tokenizer", TrainingStopped("as asked")),
        ("precompute", KeyboardInterrupt()),
        ("generators", TrainingStopped("as asked")),
        ("evaluation", UserError("a disk is full")),
    ],
    ids=STEPS,
)
def test_stopped_in_a_step_the_same_command_goes_on(
    stop: str, error: BaseException, finished: Path, tmp_path: Path, chain: ChainHere
) -> None:
    config = configured(tmp_path / "run")
    chain.stop_in[stop] = error
    with pytest.raises(type(error)):
        run_experiment(config)
    begun = STEPS[: STEPS.index(stop) + 1]
    assert chain.take() == list(begun)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    told = "failed" if isinstance(error, UserError) else "stopped"
    assert status["state"] == told
    assert [row["state"] for row in status["rows"]] == [
        *["finished"] * (len(begun) - 1), told, *["to do"] * (4 - len(begun))
    ]  # fmt: skip
    plan = [line for line in plan_experiment(config) if line.startswith(STEPS)]
    word = "to do" if stop == "evaluation" else "goes on at"
    assert plan[len(begun) - 1].startswith(f"{stop} ({word}")
    run_experiment(config)
    assert chain.take() == list(STEPS[STEPS.index(stop) :])
    weights = [name for name in snapshot(finished) if name.endswith(("ema.safetensors", ".mds"))]
    assert len(weights) >= 5
    assert {name: snapshot(tmp_path / "run")[name] for name in weights} == {
        name: snapshot(finished)[name] for name in weights
    }


# --- what has changed


@pytest.mark.parametrize(
    ("setting", "change", "first"),
    [
        ("tokenizer.model.base_width=16", r"tokenizer: model.base_width: 8 → 16", "tokenizer"),
        ("precompute.batch_size=50", r"precompute: batch_size: 100 → 50", "precompute"),
        ("generators.structure.optimizer.lr=0.5", r"generators: structure.optimizer.lr: 0.006 → 0.5", "generators"),
        ("evaluation.title=Other", r"evaluation: title: Digits, painted from coarse to fine → Other", "evaluation"),
        ("evaluation.pool.num_samples=300", r"evaluation: pool.num_samples: 2000 → 300", "evaluation"),
    ],
)
def test_another_setting_is_refused_with_what_must_be_done_anew(
    setting: str, change: str, first: str, copied: Path, chain: ChainHere
) -> None:
    before, anew = snapshot(copied), ", ".join(STEPS[STEPS.index(first) :])
    with pytest.raises(Changed, match=rf"{change}\nto be done anew: {anew}; .* --from {first}, which"):
        run_experiment(configured(copied, setting))
    assert chain.begun == []
    assert snapshot(copied) == before
    plan = plan_experiment(configured(copied, setting))
    assert re.search(change.partition(": ")[2], next(line for line in plan if line.startswith(first)))


def test_other_inputs_are_named(copied: Path, chain: ChainHere) -> None:
    (copied / "records" / "manifest.json").write_text(
        (copied / "records" / "manifest.json").read_text().replace('"num_views": 1', '"num_views":  1')
    )
    with pytest.raises(Changed, match=r"evaluation: records: [0-9a-f]{12}… → [0-9a-f]{12}…"):
        run_experiment(configured(copied))


@pytest.mark.parametrize("first", STEPS)
def test_from_does_a_step_and_all_after_it_anew_and_keeps_what_is_there(
    first: str, copied: Path, chain: ChainHere, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(copied)
    run_experiment(configured(copied, "evaluation.sampling.num_flow_steps=3"), anew=first)
    assert chain.take() == list(STEPS[STEPS.index(first) :])
    after = snapshot(copied)
    aside = {re.sub(r"\.before-1(?=/|$)", "", name): data for name, data in after.items() if ".before-1" in name}
    assert aside
    assert {name: before[name] for name in aside} == aside
    kept = {"results.json", "report.html", "made_of.json"}
    if first == "evaluation":  # its samples stay where they are
        assert {Path(name).name for name in aside} == kept
    assert json.loads((copied / "evaluation" / "results.json").read_text())["num_flow_steps"] == 3
    assert "leave --from out" in capsys.readouterr().out.replace("\n", " ")
    run_experiment(configured(copied, "evaluation.sampling.num_flow_steps=3"), anew="evaluation")
    assert (copied / "evaluation" / "results.json.before-1").exists()


def test_from_does_not_begin_after_a_step_that_has_changed(copied: Path, chain: ChainHere) -> None:
    before = snapshot(copied)
    with pytest.raises(Changed, match="--from tokenizer"):
        run_experiment(configured(copied, "tokenizer.model.base_width=16"), anew="evaluation")
    assert snapshot(copied) == before
    assert not chain.begun


def test_stopped_after_from_one_goes_on_without_it(copied: Path, chain: ChainHere) -> None:
    chain.stop_in["generators"] = TrainingStopped("stopped. Start the same command again to go on")
    with pytest.raises(TrainingStopped, match="to go on, without --from"):
        run_experiment(configured(copied), anew="precompute")
    run_experiment(configured(copied))
    assert chain.take() == ["precompute", "generators", "generators", "evaluation"]


def test_only_one_step(tmp_path: Path, chain: ChainHere) -> None:
    config = configured(tmp_path / "run")
    with pytest.raises(UserError, match=r"--only precompute: tokenizer is not finished \(to do\); .*--only tokenizer"):
        run_experiment(config, only="precompute")
    assert not (tmp_path / "run").exists()
    run_experiment(config, only="tokenizer")
    assert read_status(tmp_path / "run")[0].startswith(f"{tmp_path / 'run'}: stopped, ")
    run_experiment(config, only="precompute")
    assert chain.take() == ["tokenizer", "precompute"]
    lines = plan_experiment(config, only="precompute")
    assert any(line.startswith("tokenizer (left out): ") for line in lines)
    with pytest.raises(UserError, match="--only and --from are both given"):
        run_experiment(config, only="precompute", anew="precompute")
    with pytest.raises(UserError, match="the step is 'scores'; expected one of tokenizer"):
        run_experiment(config, anew="scores")


def test_a_tokenizer_trained_again_alike_leaves_the_rest_finished(copied: Path, chain: ChainHere) -> None:
    (copied / "tokenizer").rename(copied / "lost")
    run_experiment(configured(copied))
    assert chain.take() == ["tokenizer"]


def test_a_tokenizer_that_comes_out_otherwise_stops_before_the_records(copied: Path, chain: ChainHere) -> None:
    (copied / "tokenizer").rename(copied / "lost")
    with pytest.raises(Changed, match=r"precompute: tokenizer_hash: .*\n(?s:.)*--from precompute"):
        run_experiment(configured(copied, "tokenizer.loop.seed=7"))
    assert chain.take() == ["tokenizer"]
    assert (copied / "content" / "checkpoints").is_dir()


def test_a_second_start_beside_a_running_one_is_refused(copied: Path, chain: ChainHere) -> None:
    with folder_lock(copied, "experiment", "folder"), pytest.raises(UserError, match="another experiment is writing"):
        run_experiment(configured(copied), anew="evaluation")
    assert not list(copied.rglob("*.before-1"))


@pytest.mark.parametrize(("name", "left"), [("report.html", None), ("results.json", b'{"scores": {"gen')])
def test_a_lost_report_or_damaged_scores_are_made_again(
    name: str, left: bytes | None, copied: Path, chain: ChainHere
) -> None:
    file = copied / "evaluation" / name
    whole = file.read_bytes()
    file.unlink() if left is None else file.write_bytes(left)
    assert any(line.startswith("evaluation (to do)") for line in plan_experiment(configured(copied)))
    run_experiment(configured(copied))
    assert chain.take() == ["evaluation"]
    assert file.stat().st_size >= len(whole) // 2


@pytest.mark.parametrize("held", ["content", "records"])
def test_what_another_process_writes_is_not_moved_aside(held: str, copied: Path, chain: ChainHere) -> None:
    folder = copied / held
    lock = DatasetFolder(folder).locked() if held == "records" else folder_lock(folder, "training", "run_folder")
    with lock, pytest.raises(UserError, match=r"another .* is writing|is being written"):
        run_experiment(configured(copied), anew="precompute" if held == "records" else "generators")
    assert folder.is_dir()
    assert not list(copied.rglob("*.before-*"))  # nor what comes after it


def test_one_step_alone_leaves_what_the_others_were_done_with(copied: Path, chain: ChainHere) -> None:
    kept = copied / "configs" / "evaluation.yaml"
    before = kept.read_bytes()
    run_experiment(configured(copied, "evaluation.sampling.content_guidance=9"), only="tokenizer")
    assert kept.read_bytes() == before
    kept.unlink()
    run_experiment(configured(copied, "evaluation.sampling.content_guidance=9"), only="tokenizer")
    assert "content_guidance: 9.0" in kept.read_text()


def test_what_follows_a_changed_step_is_told_too(copied: Path) -> None:
    plan = plan_experiment(configured(copied, "tokenizer.loop.seed=7"))
    lines = [line for line in plan if line.startswith(STEPS)]
    assert lines[0].startswith("tokenizer (must be done anew, because loop.seed")
    assert all(" (must be done anew with tokenizer): " in line for line in lines[1:])


def test_records_of_another_tokenizer_are_refused_before_a_training(
    copied: Path, tmp_path: Path, chain: ChainHere
) -> None:
    other = save_tokenizer(tmp_path / "other")
    settings = ["tokenizer=null", "precompute=null", f"evaluation.tokenizer={other}"]
    settings += [f"generators.{kind}.data.path={copied / 'records'}" for kind in ("content", "structure")]
    with pytest.raises(UserError, match="expected the tokenizer with which these were made"):
        plan_experiment(configured(tmp_path / "new", *settings, f"evaluation.records={copied / 'records'}"))
    settings[2] = f"evaluation.tokenizer={copied / 'tokenizer'}"
    plan_experiment(configured(tmp_path / "new", *settings, f"evaluation.records={copied / 'records'}"))


def test_an_experiment_needs_a_folder() -> None:
    with pytest.raises(UserError, match="folder is ''"):
        plan_experiment(configured(Path("run"), "folder="))


def test_what_an_evaluation_was_made_of_is_read_strictly(copied: Path, chain: ChainHere) -> None:
    (copied / "evaluation" / "made_of.json").write_text('{"settings": []}')
    with pytest.raises(UserError, match=r"made_of.json: settings is \[\].*remove it"):
        run_experiment(configured(copied))


def test_a_setting_that_there_was_not_yet_had_its_default(copied: Path, chain: ChainHere) -> None:
    file = copied / "evaluation" / "made_of.json"
    made = json.loads(file.read_text())
    assert made["settings"].pop("rounding") == "release"
    made["settings"]["forgotten"] = 3  # one that there is no more
    file.write_text(json.dumps(made))
    run_experiment(configured(copied))
    assert chain.take() == []
    with pytest.raises(Changed, match="evaluation: rounding: release → round"):
        run_experiment(configured(copied, "evaluation.rounding=round"))


def test_settings_that_decide_nothing_are_few(copied: Path) -> None:
    config = configured(copied).evaluation
    assert config is not None
    names = made_of(config)["settings"].keys()
    assert {"sampling.num_flow_steps", "pool.seed", "pool.batch_size", "weights"} <= names
    assert not [name for name in names if name.startswith(("session", "times")) or name.endswith("num_actors")]


# --- the command line


def nvg(*arguments: str) -> int:
    return guard(partial(app, list(arguments)))


def test_run_is_demo_and_tells_how_far_it_is(
    finished: Path, tmp_path: Path, chain: ChainHere, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"folder={tmp_path / 'run'}", *SETTINGS]
    assert nvg("run", "demo/digits.yaml", "--status", *arguments) == EXIT_USER_ERROR
    assert "found no such file, expected the status" in capsys.readouterr().err
    assert nvg("run", "demo/digits.yaml", *arguments) == 0
    assert chain.take() == list(STEPS)
    assert nvg("demo", *arguments) == 0
    assert chain.take() == []
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert nvg("run", "demo/digits.yaml", "--status", *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'run'}: finished, as of ")
    assert [line.split("  ")[0] for line in lines[1:]] == list(STEPS)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    assert nvg("run", "demo/digits.yaml", "--from", "evaluation", *arguments) == 0
    assert chain.take() == ["evaluation"]
    for name, data in snapshot(finished).items():
        if name.endswith(("ema.safetensors", ".mds")):
            assert snapshot(tmp_path / "run")[name] == data


def test_progress_is_that_of_the_files(copied: Path) -> None:
    steps = make_plan(configured(copied, "evaluation.pool.chunk_size=500", "evaluation.pool.batch_size=250")).steps
    (told,) = steps["tokenizer"].progress(0.0)
    assert (told.done, told.total, told.unit) == (2, 2, "steps")
    assert told.note.startswith("loss ")
    assert [(part.part, part.done, part.total) for part in steps["generators"].progress(0.0)] == [
        ("content", 2, 2), ("structure", 2, 2),
    ]  # fmt: skip
    assert steps["precompute"].progress(0.0) == [Progress("", 297, 297, "images")]
    (copied / "records" / "manifest.json").unlink()
    (copied / "records" / "parts" / "part-00001").rename(copied / "gone")
    assert steps["precompute"].progress(0.0) == [Progress("", 150, 297, "images")]
    for pool, number in (("old", 4), ("new", 3)):
        (copied / "evaluation" / "pool" / pool).mkdir()
        (copied / "evaluation" / "pool" / pool / "pool.json").write_text("{}")
        for chunk in range(number):
            (copied / "evaluation" / "pool" / pool / f"chunk-{chunk:06d}.safetensors").write_text("")
    os.utime(copied / "evaluation" / "pool" / "old" / "pool.json", (1, 1))
    assert steps["evaluation"].progress(time.time() - 60) == [Progress("", 1500, 4000, "samples")]
