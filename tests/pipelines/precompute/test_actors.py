"""Precompute on Ray: the same bytes for one actor and three, after kills and restarts."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cluster.actors import PoolEvent
from cluster.session import ClusterError
from nvg.errors import UserError
from pipelines.precompute.job import precompute
from pipelines.sources import SourceConfig

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def reference(case, tmp_path_factory) -> dict[str, str]:
    """Files of the same job run in this process, unit after unit."""
    return case.file_hashes(case.Prepared(case.job(tmp_path_factory.mktemp("reference"))).run())


class Recorder:
    """Notes events and kills the actor of chosen units as soon as they start."""

    def __init__(self, *, kill_at: Counter[int] | None = None, stop_after: int | None = None) -> None:
        self.events: list[PoolEvent] = []
        self._kills_left = kill_at or Counter()
        self._stop_after = stop_after

    def __call__(self, event: PoolEvent) -> None:
        self.events.append(event)
        if event.kind == "started" and self._kills_left[event.unit] > 0:
            self._kills_left[event.unit] -= 1
            os.kill(event.pid, signal.SIGKILL)
        if self._stop_after is not None and self.count("committed") == self._stop_after:
            raise KeyboardInterrupt

    def count(self, kind: str) -> int:
        return sum(event.kind == kind for event in self.events)


def test_three_actors_one_killed_give_the_reference_bytes(case, tmp_path, reference):
    recorder = Recorder(kill_at=Counter({1: 1}))
    folder = precompute(case.job(tmp_path, num_actors=3), on_event=recorder)
    assert case.file_hashes(folder) == reference
    assert recorder.count("committed") == case.NUM_UNITS
    assert [event.unit for event in recorder.events if event.kind == "retried"] == [1]

    again = Recorder()
    precompute(case.job(tmp_path, num_actors=3), on_event=again)
    assert again.events == []


def test_one_actor_stopped_and_poisoned_finishes_with_the_reference_bytes(case, tmp_path, reference):
    first = Recorder(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        precompute(case.job(tmp_path), on_event=first)

    poisoned = Recorder(kill_at=Counter({3: 3}))
    with pytest.raises(UserError, match=r"1 of 6 units failed 3 times each:\n  unit 3: the actor died"):
        precompute(case.job(tmp_path), on_event=poisoned)
    assert poisoned.count("committed") == case.NUM_UNITS - 2 - 1
    assert not (Path(case.job(tmp_path).output) / "index.json").exists()

    last = Recorder()
    folder = precompute(case.job(tmp_path), on_event=last)
    assert [event.unit for event in last.events if event.kind == "committed"] == [3]
    assert case.file_hashes(folder) == reference


def test_too_many_bad_images_stop_the_job_and_leave_finished_units(case, tmp_path):
    root = tmp_path / "images" / "a"
    root.mkdir(parents=True)
    for number in range(60):
        (root / f"{number:03d}.png").write_bytes(b"damaged")
    source = SourceConfig(kind="folder", path=str(root.parent), split="all", max_bad_fraction=0.4)
    config = case.job(tmp_path, source=source, images_per_unit=10)
    with pytest.raises(UserError, match=r"found 30 bad of 60 inputs(?s:.*): not an image in a known format"):
        precompute(config)
    assert len(list((Path(config.output) / "parts").glob("part-*"))) >= 3


def test_corrected_images_are_told_then_encoded_again(case, tmp_path):
    """Uncompressed, of the same size: what an index of names and sizes cannot see."""
    root = tmp_path / "images" / "a"
    root.mkdir(parents=True)
    for number in range(20):
        Image.new("L", (16, 16), 10 * number).save(root / f"{number:02d}.bmp")
    source = SourceConfig(kind="folder", path=str(root.parent), split="all")
    config = case.job(tmp_path, source=source, images_per_unit=10, num_actors=2)
    first = case.file_hashes(precompute(config))
    Image.new("L", (16, 16), 255).save(root / "03.bmp")
    with pytest.raises(UserError, match=r"1 of 20 images .*\(a/03\.bmp\) since these records were made.*output"):
        precompute(config)
    assert case.file_hashes(Path(config.output)) == first
    recorder = Recorder()
    again = case.file_hashes(precompute(replace(config, encode_changed=True), on_event=recorder))
    assert recorder.count("committed") == 1
    fresh = case.Prepared(replace(config, output=str(tmp_path / "fresh")))
    assert again == case.file_hashes(fresh.run()) != first


@pytest.mark.parametrize("key", ["cpus_per_actor", "gpus_per_actor"])
def test_an_actor_larger_than_every_node_is_refused(case, tmp_path, key):
    with pytest.raises(ClusterError, match=rf"{key} is 99; expected at most \d+, the \w+s of the largest node"):
        precompute(case.job(tmp_path, **{key: 99.0}))


def exported_metrics() -> str:
    """What Prometheus would read from the nodes of the session."""
    import ray

    addresses = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
    texts = []
    for address in addresses:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            texts.append(answer.read().decode())
    return "\n".join(texts)


@pytest.mark.slow
def test_dashboard_metrics_show_images_and_units_left(case, tmp_path):
    precompute(case.job(tmp_path, output=str(tmp_path / "watched")))
    deadline = time.monotonic() + 60
    found: dict[str, float] = {}
    while found.get("units_left") != 0.0 or "images" not in found:
        assert time.monotonic() < deadline, found
        lines = [line for line in exported_metrics().splitlines() if 'dataset="watched"' in line]
        found = {
            line.split("{")[0].removeprefix("ray_nvg_precompute_").removesuffix("_total"): float(line.split()[-1])
            for line in lines
        }
        time.sleep(0.5)
    assert found["images"] == 297
    assert found["skipped"] == 0
    assert found["images_per_s"] > 0
