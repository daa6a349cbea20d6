"""What a start compares before it writes, and a dry run with it: real commands on records that are made up."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_records import write_records
from safetensors.torch import load_file
from tiny_training import build_task, tiny_config
from typer.testing import CliRunner

from nvg.checkpoints.runs import checkpoints_in
from nvg.errors import UserError
from pipelines.cli.main import app
from pipelines.run_folder import read_metrics
from pipelines.train import drivers
from pipelines.train.generator import train_generator
from pipelines.train.interrupt import STOP_FILE, ask_to_stop
from pipelines.train.launch import run_training
from pipelines.train.state import TrainerState

LEFT_OVERS = ("step-00000002.tmp", "step-00000002.universal.tmp", "step-00000002.damaged", "step-abc")


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    return write_records(tmp_path_factory.mktemp("records") / "records")


@pytest.fixture
def arguments(records) -> list[str]:
    return [
        f"data.path={records}", "content.depth=1", "content.width=64", "optimizer.global_batch=8",
        "optimizer.total_images=32", "optimizer.ema_half_life_images=16", "loop.engine=plain", "loop.log_every_steps=1",
        "loop.checkpoint_every_steps=2", "loop.threads_per_rank=1",
    ]  # fmt: skip


def nvg(arguments, *more, kind="content"):
    return CliRunner().invoke(app, ["train", kind, *arguments, *map(str, more)])


def refusal(result) -> str:
    assert isinstance(result.exception, UserError), (result.output, result.exception)
    return str(result.exception)


def everything_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def finished(arguments, tmp_path) -> Path:
    folder = tmp_path / "finished"
    done = nvg(arguments, f"run_folder={folder}")
    assert done.exit_code == 0, done.exception
    return folder


@pytest.mark.parametrize("left_over", LEFT_OVERS)
def test_run_that_begins_with_weights_does_so_whatever_a_kill_has_left(left_over, arguments, finished, tmp_path):
    folder = tmp_path / "tuned"
    (folder / "checkpoints" / left_over).mkdir(parents=True)
    done = nvg(arguments, f"run_folder={folder}", f"init_from={finished}", "optimizer.lr=1e-9")
    assert done.exit_code == 0, done.exception
    ours, theirs = (
        load_file(checkpoints_in(of / "checkpoints")[0] / f"{name}.safetensors")
        for of, name in ((folder, "model"), (finished, "ema"))
    )
    assert all(torch.allclose(ours[name], value, atol=1e-6) for name, value in theirs.items())
    begun = TrainerState.read(checkpoints_in(folder / "checkpoints")[0]).init_from
    assert begun is not None
    assert begun["init_from"] == str(finished)
    assert begun["weights"] == str(finished / "checkpoints" / "step-00000004")
    assert re.fullmatch("[0-9a-f]{64}", begun["sha256"])


def test_what_a_run_began_with_is_kept_and_another_origin_is_refused(arguments, finished, tmp_path):
    folder = tmp_path / "tuned"
    begin = [f"run_folder={folder}", "optimizer.lr=1e-9"]
    assert nvg(arguments, *begin, f"init_from={finished}", "loop.stop_after_steps=2").exit_code == 0
    kept = everything_in(folder)
    message = refusal(nvg(arguments, *begin, f"init_from={tmp_path / 'other'}"))
    assert f"init_from: checkpoint '{finished}', this run '{tmp_path / 'other'}'" in message
    assert everything_in(folder) == kept
    assert nvg(arguments, *begin).exit_code == 0  # whoever goes on need not say it again
    begun = TrainerState.read(checkpoints_in(folder / "checkpoints")[0]).init_from
    assert begun is not None
    assert begun["init_from"] == str(finished)
    # The weights of the finished run were drawn: it cannot begin with others any more.
    message = refusal(nvg(arguments, f"run_folder={finished}", f"init_from={folder}"))
    assert f"init_from: checkpoint '(absent)', this run '{folder}'" in message


def test_checkpoints_from_before_origins_were_kept_are_taken_up(arguments, tmp_path):
    folder = tmp_path / "old"
    assert nvg(arguments, f"run_folder={folder}", "loop.stop_after_steps=2").exit_code == 0
    newest = checkpoints_in(folder / "checkpoints")[0]
    state = json.loads((newest / "trainer.json").read_text())
    del state["init_from"]
    (newest / "trainer.json").write_text(json.dumps(state))
    marker = json.loads((newest / "COMPLETE").read_text())
    del marker["files"]["trainer.json"]
    (newest / "COMPLETE").write_text(json.dumps(marker))
    assert nvg(arguments, f"run_folder={folder}", f"init_from={tmp_path / 'gone'}").exit_code == 0
    assert TrainerState.read(checkpoints_in(folder / "checkpoints")[0]).init_from is None


CHANGES = {
    "settings": (["optimizer.lr=0.5", "content.depth=3"], r"model.depth: checkpoint 1, this run 3\n  optimizer.lr"),
    "length": (["optimizer.total_images=64"], "optimizer.total_images: checkpoint 32, this run 64"),
    "engine": (["loop.engine=deepspeed"], r"was written by 1 rank\(s\) of plain"),
    "seed": (["loop.seed=3"], "loop.seed: checkpoint 0, this run 3"),
    "views": (["data.views_per_epoch=all"], "views_per_epoch: checkpoint 'one', this run 'all'"),
    "repa": (["loss.repa_weight=0.5", "loss.repa_block=1"], "has neither features nor images beside its records"),
    "size fixed by records": (["content.codebook_size=99"], "codebook_size is 99 in the configuration and 16 in"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_refused_start_writes_nothing_and_a_dry_run_says_the_same(change, arguments, finished):
    settings, message = CHANGES[change]
    ask_to_stop(finished)  # meant for a training that runs
    kept = everything_in(finished)
    assert STOP_FILE in kept
    dry = refusal(nvg(arguments, f"run_folder={finished}", *settings, "--dry-run"))
    assert refusal(nvg(arguments, f"run_folder={finished}", *settings)) == dry
    assert re.search(message, dry), dry
    assert everything_in(finished) == kept


def test_dry_run_of_what_will_be_accepted_shows_the_plan_and_writes_nothing(arguments, finished):
    kept = everything_in(finished)
    shown = nvg(arguments, f"run_folder={finished}", "--dry-run")
    assert shown.exit_code == 0, shown.exception
    assert f"continue in {finished}" in shown.output
    changed = ["optimizer.lr=0.5", "loop.accept_changed=[optimizer.lr]"]
    assert nvg(arguments, f"run_folder={finished}", *changed, "--dry-run").exit_code == 0
    # Without records what they would fix is unknown; the rest is compared.
    nowhere = [f"run_folder={finished}", f"data.path={finished / 'none'}", "--dry-run"]
    assert nvg(arguments, *nowhere).exit_code == 0
    assert "model.depth: checkpoint 1, this run 2" in refusal(nvg(arguments, *nowhere, "content.depth=2"))
    assert everything_in(finished) == kept


def test_dry_run_compares_the_weights_to_begin_with_and_those_of_the_teacher(finished, arguments, tmp_path):
    new = [f"run_folder={tmp_path / 'new'}", f"init_from={finished}", "content.width=128"]
    dry = refusal(nvg(arguments, *new, "--dry-run"))
    assert refusal(nvg(arguments, *new)) == dry
    assert "another architecture:\n  width: 64 there, 128 here" in dry
    repa = {"repa": {"store": "jpeg", "width": 1, "num_tokens": 1}}
    aligned = [f"data.path={write_records(tmp_path / 'jpeg', **repa)}", "loss.repa_weight=0.5", "loss.repa_block=1"]
    message = refusal(nvg(arguments, f"run_folder={tmp_path / 'new'}", *aligned, "--dry-run"))
    assert "DINOv2 ViT-B/14: found no file ''" in message
    features = {"repa": {"store": "features", "width": 6, "num_tokens": 16}}
    aligned = [f"data.path={write_records(tmp_path / 'features', **features)}", "loss.repa_weight=0.5"]
    message = refusal(nvg(arguments, f"run_folder={tmp_path / 'new'}", *aligned, "loss.repa_block=9", "--dry-run"))
    assert "loss.repa_block is 9; the network has blocks 1 to 1" in message
    assert not (tmp_path / "new").exists()


def test_dry_run_of_the_tokenizer_compares_it_with_its_checkpoints(tmp_path):
    model = {"image_size": 16, "image_channels": 1, "base_width": 8, "norm_groups": 4, "num_res_blocks": 1}
    arguments = [f"model.{name}={value}" for name, value in model.items()]
    arguments += ["model.width_multipliers=[1,1,2]", "optimizer.global_batch=4", "optimizer.total_images=8"]
    arguments += [f"run_folder={tmp_path}", "loop.engine=plain", "loop.stop_after_steps=1", "loop.threads_per_rank=1"]
    assert nvg(arguments, kind="tokenizer").exit_code == 0
    assert nvg(arguments, "--dry-run", kind="tokenizer").exit_code == 0
    for change, message in (
        ("model.codebook_size=16", "model.codebook_size: checkpoint 4096, this run 16"),
        ("loss.codebook_weight=2", "loss.codebook_weight: checkpoint 1.0, this run 2.0"),
        ("loss.perceptual_weight=1", "LPIPS trunk vgg: found no file ''"),
    ):
        dry = refusal(nvg(arguments, change, "--dry-run", kind="tokenizer"))
        assert message in dry
        assert refusal(nvg(arguments, change, kind="tokenizer")) == dry


def test_refused_start_leaves_a_damaged_checkpoint_where_it_is(tmp_path):
    config = tiny_config(tmp_path)
    run_training(config, build_task)
    newest = tmp_path / "checkpoints" / "step-00000012"
    (newest / "model.safetensors").write_bytes(b"")
    kept = everything_in(tmp_path)
    with pytest.raises(UserError, match=r"model\.depth"):
        run_training(replace(config, depth=3), build_task)
    assert everything_in(tmp_path) == kept
    run_training(config, build_task)
    assert newest.with_name("step-00000012.damaged").is_dir()


def test_start_that_a_supervisor_was_refused_does_not_pass_for_finished_the_next_time(records, tmp_path):
    from record_training import record_config

    run = record_config(records, tmp_path / "content")
    run = replace(run, loop=replace(run.loop, engine="plain"))
    train_generator(run)
    assert drivers.is_finished(run)
    other = replace(run, optimizer=replace(run.optimizer, lr=0.5))
    kept = (tmp_path / "content" / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"optimizer.lr: checkpoint 0.001, this run 0.5"):
        drivers.train_queue({"content": other}, num_parallel=1, console=drivers.Console(stderr=True))
    assert (tmp_path / "content" / "config.yaml").read_bytes() == kept
    assert not drivers.is_finished(other)
    assert drivers.is_finished(run)


DAMAGE = {
    "zeros of a power loss": b"\0\0\0\0\n",
    "half a line between whole ones": b'{"step": 4, "lo\n{"step": 4, "loss": 1.0}\n',
    "half a line at the end": b'{"step": 4, "lo',
    "no UTF-8": b'\xff\xfe{"step": 4}\n',
    "no row": b'[1]\n"a"\nnull\n{"loss": 1.0}\n{"step": "4"}\n',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_line_of_the_metrics_is_set_aside_and_training_goes_on(damage, tmp_path, caplog):
    config = tiny_config(tmp_path)
    run_training(replace(config, loop=replace(config.loop, stop_after_steps=4)), build_task)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + DAMAGE[damage] + (b"" if damage.endswith("end") else b"".join(lines[2:])))
    run_training(config, build_task)
    steps = [row["step"] for row in read_metrics(tmp_path)]
    assert steps[-8:] == list(range(5, 13))
    assert json.loads(file.read_text().splitlines()[-1])["step"] == 12
    assert "line(s) 3" in caplog.text
    aside = (tmp_path / "metrics.jsonl.damaged").read_bytes()
    assert DAMAGE[damage].split(b"\n")[0] in aside


def test_provenance_that_cannot_be_read_is_set_aside(tmp_path, caplog):
    config = tiny_config(tmp_path, stop_after_steps=4)
    run_training(config, build_task)
    (tmp_path / "provenance.json").write_bytes(b"\0\0\0")
    run_training(config, build_task)
    assert "provenance.json cannot be read" in caplog.text
    assert (tmp_path / "provenance.json.damaged").read_bytes() == b"\0\0\0"
    assert len(json.loads((tmp_path / "provenance.json").read_text())["sessions"]) == 1
    assert torch.isfinite(torch.tensor(read_metrics(tmp_path)[-1]["loss"]))
