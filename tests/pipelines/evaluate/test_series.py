"""Sweeps and followers: one pool, nothing drawn twice, trainings left alone."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tiny_networks import save_generators, save_tokenizer

from eval.features.extractors import SMALL_IMAGE, ExtractorSpec
from eval.features.small_network import FeatureNetwork, FeatureNetworkConfig, save_feature_network
from eval.pool.pool import PoolConfig
from eval.reference import write_reference
from eval.scores.frechet import gather
from nvg.errors import UserError
from nvg.sampling import SamplingConfig
from pipelines.checkpoints import begin, commit
from pipelines.evaluate.series import (
    FollowConfig,
    SweepConfig,
    describe,
    images_seen,
    plan_follow,
    plan_sweep,
    read_scores,
    run_follow,
    run_sweep,
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Random networks, an untrained feature network and a reference of random features."""
    root = tmp_path_factory.mktemp("networks")
    save_tokenizer(root / "tokenizer")
    save_generators(root)
    config = FeatureNetworkConfig(image_size=16, image_channels=1, num_classes=10, width=4)
    save_feature_network(FeatureNetwork(config), root / "features")
    extractor = ExtractorSpec(kind=SMALL_IMAGE, path=str(root / "features"))
    features = np.random.default_rng(0).normal(size=(100, config.num_features)).astype(np.float32)
    write_reference(
        root / "reference.npz",
        pool=gather([features]).gaussian(),
        spatial=None,
        features_MF=features,
        facts={"image_size": 16, "extractor": {"sha256": extractor.weights_hash()}},
    )
    return {
        "tokenizer": str(root / "tokenizer"),
        "content": str(root / "content"),
        "structure": str(root / "structure"),
        "reference": str(root / "reference.npz"),
        "extractor_path": extractor.path,
        "sampling": SamplingConfig(num_flow_steps=2),
        "pool": PoolConfig(num_samples=20, chunk_size=10, batch_size=10, cpus_per_actor=0.5, seed=1),
    }


def test_combinations_are_the_product_of_the_lists() -> None:
    config = SweepConfig(
        tokenizer="t", content="c", output="o", reference="r", content_guidance=[1.0, 2.0], num_flow_steps=[5, 10]
    )
    assert [describe(changed) for changed in config.combinations()] == [
        "content_guidance 1, num_flow_steps 5",
        "content_guidance 1, num_flow_steps 10",
        "content_guidance 2, num_flow_steps 5",
        "content_guidance 2, num_flow_steps 10",
    ]
    assert len(plan_sweep(config)) == 6
    assert replace(config, content_guidance=[], num_flow_steps=[]).combinations() == [{}]
    with pytest.raises(ValueError, match="reference"):
        replace(config, reference="")
    with pytest.raises(ValueError, match="keeps no images"):
        replace(config, samples_file="s.npz")


@pytest.mark.cluster
def test_a_sweep_scores_every_setting_once(ray_session, settings: dict, tmp_path: Path) -> None:
    config = SweepConfig(**settings, output=str(tmp_path), content_guidance=[1.0, 4.0], top_p_last=[0.5, 1.0])
    page = run_sweep(config)
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["changed"] for row in rows] == config.combinations()
    assert len({row["protocol"]["samples"]["features_sha256"] for row in rows}) == 4
    assert rows[0]["protocol"]["samples"]["sampler"]["sampling"]["content_guidance"] == 1.0
    text = page.read_text()
    assert text.count("content_guidance 4, top_p_last 1") >= 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pool").rglob("chunk-*")}
    run_sweep(config, console=Console(file=(said := io.StringIO())))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pool").rglob("chunk-*")} == before
    # Twenty samples carry no score: each is marked, and the reasons are said once.
    assert len(re.findall(r"FID ↓ [\d.]+ †", said.getvalue())) == 4
    notes = said.getvalue().splitlines()[-3:]
    assert [note.split(":")[0] for note in notes] == ["† FID", "† precision, recall", "† IS"]
    assert all(note in text for note in notes)


def checkpoint(run: Path, weights: str, step: int, images: int) -> None:
    """A checkpoint as a training leaves it."""
    temporary = begin(run / "checkpoints", step)
    for file in Path(weights).iterdir():
        shutil.copy2(file, temporary / file.name)
    (temporary / "trainer.json").write_text(json.dumps({"images": images}))
    commit(temporary)


@pytest.mark.cluster
def test_a_follower_scores_checkpoints_as_they_come(ray_session, settings: dict, tmp_path: Path) -> None:
    runs = {name: tmp_path / name for name in ("content", "structure")}
    waits: list[int] = []

    def train(_: float) -> None:
        """What the trainings do while the follower waits."""
        waits.append(len(waits))
        for name, run in runs.items():
            checkpoint(run, settings[name], len(waits), 400 * len(waits))

    config = FollowConfig(
        **{**settings, **{name: str(run) for name, run in runs.items()}},
        output=str(tmp_path / "follow"),
        eval_every_images=700,
        until_images=1500,
    )
    path = run_follow(config, wait=train)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["content_images"] for row in rows] == [400, 1200, 2000]
    assert all(row["structure_images"] == row["content_images"] for row in rows)
    assert {"fid", "inception_score", "precision", "recall"} <= set(rows[0]["scores"])
    assert not (tmp_path / "follow" / "weights").exists()
    assert len(list((runs["content"] / "checkpoints").glob("step-*"))) == len(waits)
    assert run_follow(config, wait=train) == path  # at its end: nothing more is waited for or scored
    assert read_scores(tmp_path / "follow") == rows


def test_what_a_follower_cannot_use_is_named(tmp_path: Path) -> None:
    config = FollowConfig(tokenizer="t", content="c", output="o", reference="r")
    assert "every 5,000,000 images" in plan_follow(config)[1].replace("after ", "")
    with pytest.raises(ValueError, match="eval_every_images"):
        replace(config, eval_every_images=0)
    with pytest.raises(ValueError, match="reference"):
        replace(config, reference="")
    with pytest.raises(UserError, match=r"trainer\.json: found no such file"):
        images_seen(tmp_path)
