"""The whole evaluation on tiny networks: what it writes, and that it can be repeated."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.evaluation import EvaluationData, evaluate, prepare_extractor, reconstruct
from eval.features.extractors import INCEPTION, ExtractorConfig, ExtractorSpec
from eval.features.small_network import FeatureTrainingConfig
from eval.image_sets import ImageSet
from eval.pool.pool import PoolConfig
from eval.pool.samplers import GeneratorSpec
from eval.scores.judge import JudgeConfig
from nvg.checkpoints.runs import weights_folder
from nvg.errors import UserError
from pipelines.configuration import ConfigError, load_config
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.generator import codebook_usage, plan_evaluate, run_evaluate
from pipelines.sources import SourceConfig

POOL = PoolConfig(num_samples=60, num_actors=2, chunk_size=20, batch_size=20, cpus_per_actor=0.5, seed=5)


@pytest.fixture(scope="module")
def config(
    generator_spec: GeneratorSpec, extractor_spec: ExtractorSpec, tmp_path_factory: pytest.TempPathFactory
) -> EvaluateConfig:
    return EvaluateConfig(
        tokenizer=generator_spec.tokenizer,
        content=generator_spec.content,
        structure=generator_spec.structure,
        output=str(tmp_path_factory.mktemp("evaluation")),
        sampling=generator_spec.sampling,
        pool=POOL,
        extractor_path=extractor_spec.path,
        source=SourceConfig(),
        times={"tokenizer": 3.0},
    )


@pytest.mark.cluster
@pytest.mark.slow
def test_results_and_report(ray_session, config: EvaluateConfig, digits: EvaluationData) -> None:
    results = run_evaluate(config)
    output = Path(config.output)
    assert json.loads((output / "results.json").read_text()) == results
    assert (output / "report.html").stat().st_size > 100_000
    scores = results["scores"]
    assert set(scores) == {"generated", "generated_guidance_1", "held_out", "reconstructions"}
    for row in scores.values():
        assert {"fid", "inception_score", "precision", "recall", "class_accuracy"} <= set(row)
    assert scores["held_out"]["class_accuracy"] >= 0.97
    assert scores["held_out"]["fid"] < scores["generated"]["fid"]
    assert scores["held_out"]["num_images"] == len(digits.held_out.images)
    protocol = results["protocol"]
    assert protocol["pools"]["generated"]["num_samples"] == 60
    assert protocol["pools"]["generated_guidance_1"]["sampler"]["sampling"]["content_guidance"] == 1.0
    assert len(protocol["extractor"]["sha256"]) == 64

    spec = config.generator_spec(10)
    again = evaluate(spec, digits, config, pool=config.pool, judge=config.judge).results
    assert again["scores"] == scores
    hashes = [value["protocol"]["pools"]["generated"]["images_sha256"] for value in (again, results)]
    assert hashes[0] == hashes[1]

    # 60 samples of random networks: what so few cannot carry is marked, and without a judge there is no accuracy
    marked = {(score, name) for found in results["caveats"] for score in found["scores"] for name in found["sets"]}
    few = {"generated", "generated_guidance_1"}
    assert marked == {(score, name) for score in ("fid", "precision", "recall", "inception_score") for name in few}
    assert "FID (generated; generated, guidance 1): 60 images are fewer" in (output / "report.html").read_text()
    unjudged = evaluate(spec, replace(digits, judge=None), config, pool=config.pool, judge=config.judge).results
    assert all("class_accuracy" not in row for row in unjudged["scores"].values())
    assert unjudged["caveats"][0]["scores"] == ["class_accuracy"]
    assert unjudged["caveats"][0]["reason"].startswith("left out: the judge's part has no image of 10 of 10 classes")


@pytest.mark.cluster
@pytest.mark.slow
def test_features_and_judge_of_a_network_trained_elsewhere(
    ray_session,
    config: EvaluateConfig,
    efficientnet_spec: ExtractorSpec,
    digits: EvaluationData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert digits.judge is not None
    sets = {"train": (digits.train, 300), "held_out": (digits.held_out, 100), "judge": (digits.judge, 150)}
    first = {name: ImageSet(of.images[:count], of.labels[:count]) for name, (of, count) in sets.items()}
    small = replace(digits, train_views=None, **first)
    monkeypatch.setattr("pipelines.evaluate.generator.load_data", lambda *_: small)
    one = replace(
        config,
        output=str(tmp_path),
        extractor_kind=efficientnet_spec.kind,
        extractor_path=efficientnet_spec.path,
        judge=JudgeConfig(kind="linear-probe", feature_weights=efficientnet_spec.path),
        manifold_images=50,
        guidance_one=False,
    )
    results = run_evaluate(one)
    scores, protocol = results["scores"], results["protocol"]
    for row in scores.values():
        assert {"fd", "precision", "recall", "class_accuracy"} <= set(row)
        assert not {"fid", "inception_score"} & set(row)
    assert scores["held_out"]["fd"] < scores["generated"]["fd"]
    assert results["comparable"] is False
    assert "features of efficientnet-lite0" in results["not_comparable_because"][0]
    assert protocol["extractor"] == efficientnet_spec.description()
    assert protocol["judge"]["features"] == efficientnet_spec.identity()
    assert protocol["precision_recall"]["images_of_a_side"] == 50
    near = scores["generated"]["distance_to_training"]["in_features"]
    assert near["of"] == "efficientnet-lite0"
    assert 0 <= near["share_nearer_than_95_percent_of_held_out"] <= 1
    marked = {(score, name) for found in results["caveats"] for score in found["scores"] for name in found["sets"]}
    assert ("fd", "generated") in marked
    assert ("precision", "held_out") in marked  # 50 of a side are few
    page = re.sub(r'"data:image[^"]*"', "", (tmp_path / "report.html").read_text())
    assert "FD (EfficientNet-Lite0)" in page
    assert "In the features of efficientnet-lite0" in page
    assert "FID" not in page

    computed = []
    monkeypatch.setattr("eval.pool.jobs.feature_arrays", lambda *given, **_: computed.append(given))
    assert run_evaluate(one)["scores"] == scores
    assert computed == []  # features of real images are kept
    with pytest.raises(UserError, match=r"absent\.pth.*judge\.feature_weights"):
        run_evaluate(replace(one, judge=replace(one.judge, feature_weights="absent.pth")))


def test_the_feature_network_is_trained_once(config: EvaluateConfig, digits: EvaluationData, tmp_path: Path) -> None:
    fresh = replace(
        config, output=str(tmp_path), extractor_path="", feature_training=FeatureTrainingConfig(num_steps=2)
    )
    first = prepare_extractor(fresh, digits)
    written = first.weights_file.stat().st_mtime_ns
    assert prepare_extractor(fresh, digits) == first
    assert first.weights_file.stat().st_mtime_ns == written
    other = replace(fresh, feature_training=FeatureTrainingConfig(num_steps=3))
    assert prepare_extractor(other, digits).path != first.path


def test_reconstructions_are_images(config: EvaluateConfig, digits: EvaluationData) -> None:
    images = reconstruct(config.tokenizer, digits.held_out.images[:5], batch_size=2)
    assert images.shape == (5, 16, 16, 1)
    assert images.dtype == np.uint8


def test_settings_come_from_the_command_line() -> None:
    config = load_config(
        EvaluateConfig,
        None,
        ["tokenizer=t", "content=c", "structure=s", "output=o", "pool.num_actors=3", "sampling.top_p_last=1"],
    )
    assert config.pool.num_actors == 3
    assert config.sampling.top_p_last == 1
    assert any("3 worker" in line for line in plan_evaluate(config))
    with pytest.raises(ConfigError, match="num_actor"):
        load_config(EvaluateConfig, None, ["pool.num_actor=3"])
    with pytest.raises(ConfigError, match="content"):
        load_config(EvaluateConfig, None, ["tokenizer=t", "structure=s", "output=o"])


def test_missing_things_are_named(config: EvaluateConfig, digits: EvaluationData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="content: found no folder"):
        weights_folder("content", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="extractor_path"):
        ExtractorConfig(extractor_kind=INCEPTION)
    with pytest.raises(ValueError, match="vgg16"):
        ExtractorConfig(extractor_kind="vgg16")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="the training images are"):
        replace(digits, held_out=replace(digits.held_out, images=np.zeros((297, 8, 8, 1), np.uint8)))
    with pytest.raises(UserError, match="held-out images: found 3, expected at least 4"):
        replace(digits, held_out=ImageSet(digits.held_out.images[:3], digits.held_out.labels[:3]))
    assert digits.judge is not None
    without_sevens = np.where(digits.judge.labels == 7, 1, digits.judge.labels)
    without = replace(digits, judge=replace(digits.judge, labels=without_sevens))
    assert without.no_judge == "the judge's part has no image of 1 of 10 classes (7)"
    with pytest.raises(ValueError, match="held-out labels"):
        replace(digits, held_out=replace(digits.held_out, labels=digits.held_out.labels[:-1]))
    with pytest.raises(ValueError, match=r"manifest\.json"):
        codebook_usage(replace(config, records=str(tmp_path)))
