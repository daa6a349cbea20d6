"""The input of a step is made while the step before runs: the same, one ahead, in a thread that ends with the run."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import NUM_IMAGES, WIDTH, build_task, tiny_config
from torch import nn

from cluster.ranks import Ranks
from nvg.errors import UserError
from pipelines.batches import streaming
from pipelines.batches.config import DataConfig
from pipelines.batches.order import ArraySource, Batch, BatchSource
from pipelines.batches.streaming import StreamingSource
from pipelines.entry import TrainingStopped
from pipelines.run_folder import read_metrics
from pipelines.train import feed
from pipelines.train.feed import Feed, one_ahead
from pipelines.train.interrupt import ask_to_stop
from pipelines.train.launch import run_training
from pipelines.train.loop import train
from pipelines.train.step import Step

BATCH, STEPS = 8, 12
PATIENCE_S = 60.0


@dataclass
class Seen:
    """Batches of another source, counted; something may happen before one of them.

    Attributes:
        happens: called with the step, counted from 1, in front of its batch.
    """

    source: BatchSource
    happens: Callable[[int], None] = lambda step: None
    made: int = 0
    threads: set[str] = field(default_factory=set)
    closed: bool = False
    news: threading.Condition = field(default_factory=threading.Condition)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.source.fingerprint

    @property
    def num_images(self) -> int:
        return self.source.num_images

    def batches(self, **given: Any) -> Iterator[Batch]:
        try:
            for step, batch in enumerate(self.source.batches(**given), start=given["start_step"] + 1):
                self.happens(step)
                self.threads.add(threading.current_thread().name)
                with self.news:
                    self.made += 1
                    self.news.notify_all()
                yield batch
        finally:
            self.closed = True

    def wait_for(self, count: int) -> bool:
        with self.news:
            return self.news.wait_for(lambda: self.made >= count, PATIENCE_S)


def task_of(config: Any, happens: Callable[[int], None] = lambda step: None, before_step: Any = None) -> Any:
    """The tiny task with watched batches; `before_step` is called with the step, from 1, when its forward begins."""
    task = build_task(config)
    seen = Seen(task.batches, happens)
    steps = iter(range(1, 1000))

    def begins(module: Any, _: Any) -> None:
        if module.training and before_step is not None:
            before_step(next(steps), seen)

    task.objective.register_forward_pre_hook(begins)  # type: ignore[attr-defined]
    return replace(task, batches=seen), seen


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "feed"]


def test_the_next_input_is_made_during_a_step_and_no_further_one(tmp_path):
    """The device of this test is done only once the next batch is there: one after the other would wait forever."""
    ahead = []

    def busy(step: int, seen: Seen) -> None:
        assert seen.wait_for(min(step + 1, STEPS))
        ahead.append(seen.made - step)

    config = tiny_config(tmp_path, validate_every_steps=5)
    task, seen = task_of(config, before_step=busy)
    train(task, config, Ranks())
    assert ahead == [1] * (STEPS - 1) + [0]
    assert (seen.made, seen.threads, seen.closed) == (STEPS, {"feed"}, True)
    assert feed_threads() == []


@pytest.mark.slow
def test_data_s_is_what_was_waited_for(tmp_path):
    """The least and the most of some steps, so that a busy machine moves nothing."""

    def waits(name: str, before_step: Any) -> list[float]:
        config = tiny_config(tmp_path / name, stop_after_steps=5)
        task, _ = task_of(config, lambda step: time.sleep(0.5), before_step)
        train(task, config, Ranks())
        return [row["data_s"] for row in read_metrics(tmp_path / name)]

    behind_device = waits("device", lambda step, seen: seen.wait_for(min(step + 1, 5)))
    assert behind_device[0] >= 0.5  # nothing is ahead of the first
    assert min(behind_device[1:]) < 0.25
    assert max(waits("host", None)[1:]) > 0.25


@pytest.mark.parametrize("where", ["source", "noise"])
def test_what_goes_wrong_with_an_input_is_raised_at_its_step(tmp_path, where):
    def fail(step: int) -> None:
        if step == 6:
            raise UserError("a file is gone; bring it back")

    made = []

    def build(config: Any) -> Any:
        task, seen = task_of(config, fail if where == "source" else lambda step: None)
        made.append(seen)
        if where == "noise":
            draw = task.objective.draw_noise
            task.objective.draw_noise = lambda **given: fail(given["step"] + 1) or draw(**given)
        return task

    config = tiny_config(tmp_path)
    with pytest.raises(UserError, match="a file is gone; bring it back"):
        run_training(config, build)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    assert made[0].closed
    assert feed_threads() == []
    straight = run_training(tiny_config(tmp_path / "straight"), build_task)
    resumed = run_training(config, build_task)
    for name in ("model", "ema"):
        file = f"{name}.safetensors"
        assert (resumed / file).read_bytes() == (straight / file).read_bytes()


@pytest.mark.parametrize("end", ["error", "Ctrl-C", "stop", "stop_after_steps"])
def test_the_thread_ends_with_the_run(tmp_path, end, monkeypatch):
    monkeypatch.setattr("pipelines.train.interrupt.POLL_S", 0.0)
    config = tiny_config(tmp_path, stop_after_steps=5 if end == "stop_after_steps" else None)

    def at(step: int, seen: Seen) -> None:
        if step == 5 and end == "error":
            raise RuntimeError("of the device")
        if step == 5 and end == "Ctrl-C":
            raise KeyboardInterrupt
        if step == 5 and end == "stop":
            ask_to_stop(tmp_path)

    task, seen = task_of(config, before_step=at)
    expected: Any = {"error": RuntimeError, "Ctrl-C": KeyboardInterrupt, "stop": TrainingStopped}.get(end, ())
    with contextlib.suppress(expected):
        train(task, config, Ranks())
    assert seen.closed
    assert seen.made <= 6
    assert feed_threads() == []


def test_ctrl_c_ends_the_wait_for_a_source_that_hangs(monkeypatch, caplog):
    monkeypatch.setattr(feed, "_PATIENCE_S", 0.1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    release, hangs = threading.Event(), threading.Event()

    def items() -> Generator[int]:
        yield 1
        hangs.set()
        release.wait(PATIENCE_S)
        yield 2

    def press() -> None:
        hangs.wait(PATIENCE_S)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    try:
        with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt), one_ahead(items()) as given:
            list(given)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "still being read" in caplog.text
    [thread] = feed_threads()
    assert thread.daemon
    release.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


class OneThread(Ranks):
    """A rank that notes from which thread others are spoken to."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("any", "agree", "mean", "gather", "from_main", "barrier"):
            threads.add(threading.current_thread().name)
        return super().__getattribute__(name)


threads: set[str] = set()


def test_no_rank_is_spoken_to_from_the_thread(tmp_path, monkeypatch):
    threads.clear()
    config = tiny_config(tmp_path, validate_every_steps=4)
    train(build_task(config), config, OneThread())
    assert threads == {"MainThread"}
    opened = []
    monkeypatch.setattr(
        streaming,
        "_open_streaming",
        lambda *given: opened.append(threading.current_thread().name) or type("Store", (), {"size": 64}),
    )
    config = DataConfig(path="here", remote="there", loader="streaming", views_per_epoch="all")
    StreamingSource(config, 64, {}).batches(start_step=0, global_batch=BATCH, seed=0, ranks=Ranks())
    assert opened == ["MainThread"]  # before anything is asked of the iterator


class Noise(nn.Module):
    """Noise that says where it is from."""

    host_noise = frozenset({"place"})

    def draw_noise(self, *, seed: int, step: int, global_batch: int, rows: slice) -> dict[str, torch.Tensor]:
        place = torch.arange(global_batch)[rows]
        return {"place": place, "value": 1000 * step + place}


@pytest.mark.parametrize("in_turns", [False, True])
@pytest.mark.parametrize(("world_size", "num_micro"), [(1, 1), (1, 3), (2, 2), (4, 3)])
def test_ranks_and_micro_batches_together_have_the_step_of_one(world_size, num_micro, in_turns):
    source = ArraySource(np.arange(NUM_IMAGES).reshape(-1, 1), lambda rows: {"x": torch.from_numpy(rows)}, {})
    whole = next(source.batches(start_step=3, global_batch=24, seed=1, ranks=Ranks()))
    found = torch.full((24, 2), -1)
    for rank in range(world_size):
        ranks = Ranks(rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size)
        maker = Feed(Noise(), global_batch=24, num_micro=num_micro, ranks=ranks)  # type: ignore[arg-type]
        share = 24 // world_size
        rows = slice(rank, None, world_size) if in_turns else slice(rank * share, (rank + 1) * share)
        batch = Batch(tensors={"x": whole.tensors["x"][rows]}, sample_ids=whole.sample_ids[rows], global_rows=rows)
        parts = list(maker.on_device(maker.prepared(batch, seed=1, step=3)))
        assert len(parts) == num_micro
        assert {len(noise["value"]) for _, noise in parts} == {share // num_micro}
        for data, noise in parts:
            found[noise["place"]] = torch.stack([data["x"], noise["value"]], 1)
    assert found[:, 0].tolist() == whole.sample_ids.tolist()
    assert found[:, 1].tolist() == list(range(3000, 3024))


def test_levels_of_pixels_are_scaled_where_they_are_used():
    levels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    batch = Batch(tensors={"image": levels, "x": torch.arange(4)}, sample_ids=np.arange(4), global_rows=slice(0, 4))
    maker = Feed(Noise(), global_batch=4, num_micro=2, ranks=Ranks())  # type: ignore[arg-type]
    given = maker.prepared(batch, seed=0, step=0)
    assert all(data["image"].dtype == torch.uint8 for data, _ in given.micro_batches)  # a quarter of the bytes travels
    data = [data for data, _ in maker.on_device(given)]
    assert torch.equal(torch.cat([part["image"] for part in data]), levels.float() / 127.5 - 1)
    assert torch.cat([part["x"] for part in data]).tolist() == [0, 1, 2, 3]


def test_the_average_is_held_by_the_main_rank_alone(tmp_path):
    config = tiny_config(tmp_path)
    held = [
        Step(build_task(config), config, Ranks(rank=rank, world_size=2, local_world_size=2), universal=False).ema
        for rank in (0, 1)
    ]
    assert sum(tensor.numel() for tensor in held[0].tensors.values()) == 2 * (WIDTH + 1) * WIDTH + WIDTH + 1
    assert held[1].tensors == {}
