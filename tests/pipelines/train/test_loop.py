"""The loop in one process: resuming, engines, data order, bad numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import NUM_IMAGES, build_task, tiny_config

from cluster.ranks import Ranks
from nvg.errors import NotFiniteError, UserError
from nvg.precision import round_to_tf32
from pipelines.batches.order import ArraySource
from pipelines.run_folder import read_metrics
from pipelines.train.config import DeepSpeedConfig
from pipelines.train.launch import run_training


def losses(folder):
    return [row["loss"] for row in read_metrics(folder)]


def weights(checkpoint):
    return [(checkpoint / f"{name}.safetensors").read_bytes() for name in ("model", "ema")]


@pytest.mark.parametrize("stop", [3, 6])
@pytest.mark.parametrize("engine", ["plain", "deepspeed"])
def test_resumed_run_equals_straight_run_bitwise(tmp_path, engine, stop):
    straight = run_training(tiny_config(tmp_path / "straight", engine=engine), build_task)
    config = tiny_config(tmp_path / "stopped", engine=engine)
    run_training(replace(config, loop=replace(config.loop, stop_after_steps=stop)), build_task)
    assert len(losses(tmp_path / "stopped")) == stop
    resumed = run_training(config, build_task)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    assert weights(resumed) == weights(straight)
    assert run_training(config, build_task) == resumed  # a finished run has nothing to do


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_plain_engine_equals_deepspeed(tmp_path, zero_stage):
    run_training(tiny_config(tmp_path / "plain"), build_task)
    config = tiny_config(tmp_path / "zero", engine="deepspeed")
    run_training(replace(config, deepspeed=DeepSpeedConfig(zero_stage=zero_stage)), build_task)
    for plain, zero in zip(read_metrics(tmp_path / "plain"), read_metrics(tmp_path / "zero"), strict=True):
        assert zero["loss"] == pytest.approx(plain["loss"], rel=1e-6)
        assert zero["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-5)
        assert zero["lr"] == plain["lr"]


@pytest.mark.parametrize("engine", ["plain", "deepspeed"])
def test_accumulation_changes_only_rounding(tmp_path, engine):
    run_training(tiny_config(tmp_path / "whole"), build_task)
    config = tiny_config(tmp_path / "parts", engine=engine)
    run_training(replace(config, optimizer=replace(config.optimizer, micro_batch=2)), build_task)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.parametrize(("precision", "rounded"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_products_are_rounded_to_tf32_where_asked_and_nowhere_else(tmp_path, precision, rounded):
    round_to_tf32(not rounded)
    run_training(tiny_config(tmp_path, precision=precision, stop_after_steps=1), build_task)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (rounded, rounded)


def test_bf16_products_train_fp32_weights(tmp_path):
    checkpoint = run_training(tiny_config(tmp_path, precision="bf16"), build_task)
    from nvg.checkpoints import load_weights

    tensors, config = load_weights(checkpoint, "tiny", "ema")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert config == {"depth": 2}


@pytest.mark.parametrize("engine", ["plain", "deepspeed"])
def test_loss_that_is_not_finite_names_step_and_samples(tmp_path, engine):
    config = replace(tiny_config(tmp_path, engine=engine, checkpoint_every_steps=1), bad_image=7)
    with pytest.raises(NotFiniteError, match=r"loss of step (\d+) is nan; sample ids .*\b7\b") as error:
        run_training(config, build_task)
    step = int(str(error.value).split("step ")[1].split()[0])
    newest = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))[-1:]
    assert newest == ([f"step-{step - 1:08d}"] if step > 1 else [])


def test_metrics_rows_hold_the_promised_numbers(tmp_path):
    run_training(tiny_config(tmp_path, log_every_steps=5, validate_every_steps=6), build_task)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [5, 6, 10, 12]
    assert [row["step"] for row in rows if "validation_loss" in row] == [6, 12]
    wanted = {"step", "images", "loss", "absolute", "lr", "grad_norm", "images_per_s", "step_s", "data_s", "time"}
    wanted |= {"memory_gib", "skipped_steps", "failed_checkpoints"}
    assert all(wanted <= row.keys() for row in rows)
    assert all(0 <= row["data_s"] <= row["step_s"] for row in rows)
    assert ["checkpoint_s" in row for row in rows] == [True, False, True, False]  # saved after steps 4, 8 and 12
    assert ["validation_s" in row for row in rows] == [False, True, False, True]
    assert rows[0]["lr"] == pytest.approx(0.01)
    assert rows[-1]["lr"] < 0.01
    assert (tmp_path / "config.yaml").is_file()
    assert (tmp_path / "provenance.json").is_file()


def test_tensorboard_holds_the_rows_and_forgets_what_came_after_the_checkpoint(tmp_path):
    config = tiny_config(tmp_path, tensorboard=True, checkpoint_every_steps=4, stop_after_steps=4)
    run_training(config, build_task)
    run_training(replace(config, loop=replace(config.loop, stop_after_steps=None)), build_task)
    files = sorted((tmp_path / "tensorboard").glob("events.*"))
    assert len(files) == 2
    assert all(b"grad_norm" in path.read_bytes() for path in files)


def test_device_out_of_memory_names_what_can_be_changed(tmp_path, monkeypatch):
    def too_large(config):
        def forward(batch, noise):
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")

        task = build_task(config)
        monkeypatch.setattr(task.objective, "forward", forward)
        return task

    with pytest.raises(UserError, match=r"tiny: the device is out of memory(?s:.*)optimizer.micro_batch") as error:
        run_training(tiny_config(tmp_path), too_large)
    for knob in ("stages_per_image", "recompute_activations", "zero_stage", "offload_optimizer", "precision"):
        assert knob in str(error.value)


def test_plain_engine_among_ranks_is_refused_before_it_waits_for_them(tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)  # left over from a launcher
    with pytest.raises(UserError, match=r"loop.engine=plain runs one rank, found 2 in WORLD_SIZE; set loop.engine"):
        run_training(tiny_config(tmp_path / "run"), build_task)
    assert not (tmp_path / "run").exists()


def test_offloaded_optimizer_gives_the_same_losses(tmp_path):
    run_training(tiny_config(tmp_path / "plain"), build_task)
    config = tiny_config(tmp_path / "offload", engine="deepspeed")
    config = replace(config, deepspeed=DeepSpeedConfig(zero_stage=2, offload_optimizer=True))
    run_training(config, build_task)
    assert losses(tmp_path / "offload") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)


def take(source, num_steps, **options):
    stream = source.batches(**{"start_step": 0, "global_batch": 8, "seed": 3, "ranks": Ranks(), **options})
    return [next(stream).sample_ids for _ in range(num_steps)]


def test_batches_do_not_depend_on_ranks_or_interruption():
    source = ArraySource(list(np.arange(NUM_IMAGES).reshape(-1, 1)), lambda rows: {}, {})
    whole = take(source, 25)
    parts = [take(source, 25, ranks=Ranks(rank=rank, world_size=4)) for rank in range(4)]
    np.testing.assert_array_equal(np.stack(whole), np.concatenate(parts, axis=1))
    np.testing.assert_array_equal(np.stack(whole[11:]), take(source, 14, start_step=11))
    epochs = np.concatenate(whole).reshape(-1, NUM_IMAGES)
    assert all(sorted(epoch) == list(range(NUM_IMAGES)) for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()
    assert (np.stack(take(source, 5, seed=4)) != np.stack(whole[:5])).any()


def test_one_view_of_each_image_per_epoch_and_all_of_them_in_time():
    views = np.arange(30).reshape(10, 3)
    source = ArraySource(list(views), lambda rows: {}, {})
    rows = np.concatenate(take(source, 50)).reshape(-1, 10)
    assert all(sorted(epoch // 3) == list(range(10)) for epoch in rows)
    assert set(rows.flatten()) == set(range(30))


def test_views_in_turn_give_epoch_e_the_view_e_mod_their_number():
    source = ArraySource(np.arange(30).reshape(10, 3), lambda rows: {}, {}, "in_turn")
    epochs = np.concatenate(take(source, 50)).reshape(-1, 10)
    for number, epoch in enumerate(epochs):
        assert sorted(epoch // 3) == list(range(10))
        assert set(epoch % 3) == {number % 3}
    np.testing.assert_array_equal(np.stack(take(source, 50)[7:]), take(source, 43, start_step=7))
