"""Both generators on records that precompute wrote, under every launcher, with real ranks and a real kill."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from record_training import NUM_STEPS, build_task_killed_once, launch, losses, record_config
from tiny_networks import CODEBOOK_SIZE, save_tokenizer

from nvg.checkpoints import load_network
from nvg.checkpoints.runs import find_damage, tokenizer_of
from nvg.errors import UserError
from nvg.models import ContentGenerator, StructureGenerator
from nvg.records import read_manifest
from pipelines.batches.config import DataConfig
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.job import precompute
from pipelines.run_folder import read_metrics
from pipelines.sources import SourceConfig
from pipelines.train.config import LaunchConfig
from pipelines.train.drivers import PairRunConfig, train_generators
from pipelines.train.generator import train_generator
from pipelines.train.launch import run_training

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

KINDS = ("content", "structure")
END_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def records(ray_session, tmp_path_factory) -> Path:
    """297 digits as records of a tokenizer with random weights."""
    root = tmp_path_factory.mktemp("records")
    save_tokenizer(root / "tokenizer")
    config = PrecomputeConfig(
        source=SourceConfig(split="test"), tokenizer=str(root / "tokenizer"), output=str(root / "records")
    )
    return precompute(config)


@pytest.fixture(scope="module")
def expected(records, tmp_path_factory) -> dict[str, list[float]]:
    """Losses of one process without DeepSpeed, by kind."""
    root = tmp_path_factory.mktemp("plain")
    found: dict[str, list[float]] = {}
    for kind in KINDS:
        config = record_config(records, root / kind, kind)
        train_generator(replace(config, loop=replace(config.loop, engine="plain")))
        found[kind] = losses(root / kind)
        assert len(set(found[kind])) == NUM_STEPS
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_stopped_and_resumed_give_the_losses_of_one_process(
    repository, records, expected, two_ranks, tmp_path, kind
):
    """Content under launchers of its own, structure on ranks that are there already."""
    config = record_config(records, tmp_path / kind, kind)
    if kind == "content":
        launch(repository, config, "loop.stop_after_steps=3", num_ranks=2)
    else:
        two_ranks.run(train_generator, replace(config, loop=replace(config.loop, stop_after_steps=3)))
    assert losses(tmp_path / kind) == pytest.approx(expected[kind][:3], rel=1e-5)
    if kind == "content":
        launch(repository, config, num_ranks=2)
    else:
        two_ranks.run(train_generator, config)
    assert losses(tmp_path / kind) == pytest.approx(expected[kind], rel=1e-5)
    sessions = json.loads((tmp_path / kind / "provenance.json").read_text())["sessions"]
    assert len(sessions) == 2


def shared_segments() -> set[str]:
    """Shared-memory segments of StreamingDataset on this machine."""
    return {name for name in os.listdir("/dev/shm") if re.match(r"\d{6}_", name)}


def test_streaming_loader_copies_the_records_and_gives_one_rank_and_two_the_same_losses(repository, records, tmp_path):
    before = shared_segments()
    shards = sorted(path.name for path in records.glob("*.mds"))
    for num_ranks in (1, 2):
        copies = tmp_path / f"copied-{num_ranks}"
        data = DataConfig(path=str(copies), remote=str(records), loader="streaming", views_per_epoch="all")
        launch(repository, record_config(records, tmp_path / f"ranks-{num_ranks}", data=data), num_ranks=num_ranks)
        assert sorted(path.name for path in copies.glob("*.mds")) == shards
    one = losses(tmp_path / "ranks-1")
    assert len(one) == NUM_STEPS
    assert losses(tmp_path / "ranks-2") == pytest.approx(one, rel=1e-5)
    assert shared_segments() <= before


def on_ray(config, num_workers, max_failures=0):
    launcher = LaunchConfig(launcher="ray", num_workers=num_workers, cpus_per_worker=0.5, max_failures=max_failures)
    return replace(config, launch=launcher)


def wait_until(condition, what):
    deadline = time.monotonic() + END_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} after {END_TIMEOUT_S} s"
        time.sleep(0.2)


def assert_nothing_runs(folder):
    """No driver of a run below the folder, and every CPU of the cluster free again."""
    import ray

    def drivers():
        lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        return [line for line in lines if any(str(folder) in word for word in line)]

    wait_until(lambda: not drivers(), "a driver still runs")
    wait_until(
        lambda: ray.available_resources().get("CPU", 0) == ray.cluster_resources()["CPU"], "workers hold CPUs still"
    )


def test_pair_that_does_not_fit_the_records_fails_whole_then_both_train_at_once(
    ray_session, records, expected, tmp_path
):
    content, structure = (on_ray(record_config(records, tmp_path / kind, kind), num_workers=1) for kind in KINDS)
    wrong = replace(content, content=replace(content.content, codebook_size=999))
    with pytest.raises(
        UserError, match=rf"content generator failed(?s:.*)codebook_size is 999 .* and {CODEBOOK_SIZE} in"
    ):
        train_generators(PairRunConfig(content=wrong, structure=structure))
    assert_nothing_runs(tmp_path)
    assert not (tmp_path / "content" / "checkpoints").exists()

    checkpoints = train_generators(PairRunConfig(content=content, structure=structure))
    made_with = read_manifest(records)["tokenizer_hash"]
    for kind, checkpoint, network_type in zip(KINDS, checkpoints, (ContentGenerator, StructureGenerator), strict=True):
        assert tokenizer_of(checkpoint) == made_with
        assert checkpoint == tmp_path / kind / "checkpoints" / f"step-{NUM_STEPS:08d}"
        assert find_damage(checkpoint) is None
        assert load_network(network_type, checkpoint).config.num_classes == 10
        assert losses(tmp_path / kind) == pytest.approx(expected[kind], rel=1e-5)
    assert_nothing_runs(tmp_path)


def test_killed_ray_worker_is_replaced_and_the_losses_are_those_of_a_straight_run(
    ray_session, records, expected, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "support"))
    config = on_ray(record_config(records, tmp_path / "run"), num_workers=2, max_failures=1)
    checkpoint = run_training(config, build_task_killed_once)
    killed = int((tmp_path / "run.killed").read_text())
    assert not psutil.pid_exists(killed)
    assert checkpoint.name == f"step-{NUM_STEPS:08d}"
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    np.testing.assert_allclose(losses(tmp_path / "run"), expected["content"], rtol=1e-5)
    sessions = json.loads((tmp_path / "run" / "provenance.json").read_text())["sessions"]
    assert len(sessions) == 2  # the group started twice
