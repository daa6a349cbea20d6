"""Scores against a reference file: what is refused, and that every way to the same images gives the same scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.features.extractors import INCEPTION, ExtractorSpec
from eval.features.inception import InceptionExtractor
from eval.image_files import NpzImages, open_images
from eval.pool.chunks import read_chunk
from eval.pool.jobs import FeatureJob
from eval.pool.pool import ChunkPoolConfig, ChunkWorker, PoolConfig, PoolResult, chunk_identity
from eval.pool.samplers import GeneratorSpec
from eval.reference import (
    Reference,
    ScoreConfig,
    complete_reference,
    not_comparable_because,
    read_reference,
    score_against,
    select_rows,
    write_reference,
)
from eval.scores.frechet import gather
from eval.scores.metrics import score_features
from nvg.errors import UserError
from pipelines.evaluate.against import plan_against, run_evaluate_images
from pipelines.evaluate.config import EvaluateConfig, EvaluateImagesConfig
from pipelines.evaluate.generator import plan_evaluate, run_evaluate
from pipelines.evaluate.reference import ReferenceRunConfig, plan_reference, run_reference
from pipelines.sources import SourceConfig

SMALL = ChunkPoolConfig(chunk_size=100, batch_size=50, cpus_per_actor=0.5)


def rows(count: int, seed: int, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def pool_of(arrays: dict[str, np.ndarray], tmp_path: Path) -> PoolResult:
    count = len(next(iter(arrays.values())))
    return PoolResult(
        arrays=arrays, folder=tmp_path, identity={}, key="", names=tuple(arrays), num_items=count, chunk_size=count,
        num_computed=0, num_reused=0, num_deaths=0, seconds=0.0,
    )  # fmt: skip


def reference_of(features: np.ndarray, spatial: np.ndarray | None = None) -> Reference:
    return Reference(
        path="reference.npz",
        sha256="0",
        pool=gather([features]).gaussian(),
        spatial=None if spatial is None else gather([spatial]).gaussian(),
        features_MF=features,
        images=None,
    )


def test_scores_against_statistics_are_those_against_the_features(tmp_path: Path) -> None:
    arrays = {"features_BF": rows(300, 0), "logits_BV": rows(300, 2, 10), "spatial_BG": rows(300, 3, 4)}
    reference = reference_of(rows(200, 1), rows(200, 4, 4))
    found = score_against(pool_of(arrays, tmp_path), reference, ScoreConfig(frechet_spread=True))
    expected = score_features(arrays["features_BF"], arrays["logits_BV"], rows(200, 1))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert found["sfid"] > 0
    assert found["num_images"] == 300
    assert min(found[f"{name}_std"] for name in ("fid", "sfid", "precision", "recall", "inception_score")) > 0


def test_what_keeps_scores_from_being_compared() -> None:
    inception, small = ExtractorSpec(kind=INCEPTION, path="x"), ExtractorSpec(kind="nvg-small-image", path="x")
    reference = reference_of(rows(10_000, 0, 2))
    equal = np.arange(50_000) % 1000
    assert not_comparable_because(50_000, inception, reference, equal) == []
    assert not_comparable_because(50_000, inception, reference, None) == []
    text = " ".join(not_comparable_because(1000, small, reference_of(rows(500, 0)), equal[:1500]))
    for part in ("nvg-small-image", "1,000 samples are fewer than the 2,048 features", "500 images", "equally often"):
        assert part in text
    assert "40,000 samples" in not_comparable_because(40_000, inception, reference, equal[:40_000])[0]


def test_a_reference_comes_back(tmp_path: Path, extractor_spec: ExtractorSpec) -> None:
    features, path = rows(50, 0), tmp_path / "reference.npz"
    facts = {"image_size": 16, "extractor": {"sha256": extractor_spec.weights_hash()}}
    write_reference(path, pool=gather([features]).gaussian(), spatial=None, features_MF=features, facts=facts)
    found = read_reference(str(path), extractor_spec)
    assert found.pool is not None
    assert np.array_equal(found.pool.covariance_FF, gather([features]).gaussian().covariance_FF)
    assert found.features_MF is not None
    assert np.array_equal(found.features_MF, features)
    assert found.facts == facts
    found.check_size(16, 16)
    assert found.read_as == (3, "stored")  # as ADM read its images, and everybody before there was a choice
    assert replace(found, facts={"images": {"image_channels": 1, "pixels": "shown"}}).read_as == (1, "shown")
    with pytest.raises(UserError, match="made from images of 16×16 pixels, the samples have 32×32"):
        found.check_size(32, 32)
    write_reference(
        path,
        pool=gather([features]).gaussian(),
        spatial=None,
        features_MF=features,
        facts={"extractor": {"sha256": "0" * 64}},
    )
    with pytest.raises(UserError, match="made with the extractor 000000000000"):
        read_reference(str(path), extractor_spec)


def test_selected_rows_are_fixed_and_at_most_ten_thousand() -> None:
    assert select_rows(5).tolist() == [0, 1, 2, 3, 4]
    many = select_rows(40_000)
    assert len(set(many.tolist())) == 10_000
    assert np.array_equal(many, select_rows(40_000))
    assert abs(many.mean() - 20_000) < 500


def test_bad_references_are_named(tmp_path: Path, inception_spec: ExtractorSpec) -> None:
    path = tmp_path / "reference.npz"
    with pytest.raises(UserError, match=r"found no file .*VIRTUAL_imagenet256_labeled\.npz"):
        read_reference(str(path), inception_spec)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(UserError, match=r"found other in .*expected mu and sigma, or arr_0"):
        read_reference(str(path), inception_spec)
    np.savez(path, mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(UserError, match=r"expected \(2048,\) and \(2048, 2048\)"):
        read_reference(str(path), inception_spec)
    np.savez(path, mu=np.full(2048, np.nan), sigma=np.eye(2048))
    with pytest.raises(UserError, match="not finite"):
        read_reference(str(path), inception_spec)
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    found = read_reference(str(path), inception_spec)
    with pytest.raises(UserError, match="neither arr_0 nor pool_3"):
        complete_reference(found, inception_spec, pool=SMALL, folder=tmp_path, console=None)
    with pytest.raises(UserError, match=r"found no file no\.pth.*set extractor_path"):
        run_evaluate_images(
            EvaluateImagesConfig(
                samples=str(path), reference=str(path), extractor_kind=INCEPTION, extractor_path="no.pth", output="o"
            )
        )


@pytest.fixture(scope="module")
def inception_spec(tmp_path_factory: pytest.TempPathFactory) -> ExtractorSpec:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(InceptionExtractor().state_dict(), path)
    return ExtractorSpec(kind=INCEPTION, path=str(path))


def test_inception_looks_at_the_images_of_a_file_in_the_layout_of_adm(
    inception_spec: ExtractorSpec, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    spatial = random.normal(size=(2023, 3))
    np.savez(
        tmp_path / "adm.npz",
        random.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8),
        mu=np.zeros(2048),
        sigma=np.eye(2048),
        mu_s=np.zeros(2023),
        sigma_s=spatial @ spatial.T,
    )
    reference = read_reference(str(tmp_path / "adm.npz"), inception_spec)
    assert reference.spatial is not None
    assert reference.image_size == (16, 16)
    assert isinstance(reference.images, NpzImages)
    job = FeatureJob(images=reference.images, extractor=inception_spec)
    config = ChunkPoolConfig(chunk_size=4, batch_size=2)
    assert chunk_identity(job, config)["images"]["shape"] == [6, 16, 16, 3]
    worker = ChunkWorker(job, config, tmp_path, "key")
    chunks = [read_chunk(tmp_path, worker.compute(number), job.names, "key") for number in (0, 1)]
    assert chunks[0] is not None
    assert chunks[1] is not None
    assert {name: array.shape for name, array in chunks[0].items()} == {
        "readable_B": (4,),
        "features_BF": (4, 2048),
        "logits_BV": (4, 1008),
        "spatial_BG": (4, 2023),
    }
    np.testing.assert_allclose(chunks[1]["features_BF"][2:], chunks[0]["features_BF"][:2], rtol=1e-5)


@pytest.mark.cluster
@pytest.mark.slow
def test_samples_score_the_same_drawn_here_and_read_from_their_export(
    ray_session, generator_spec: GeneratorSpec, extractor_spec: ExtractorSpec, tmp_path: Path
) -> None:
    path = run_reference(
        ReferenceRunConfig(
            source=SourceConfig(split="train"),
            extractor_path=extractor_spec.path,
            output=str(tmp_path / "reference"),
            keep_images=True,
            pool=replace(SMALL, num_actors=2),
        )
    )
    drawn = run_evaluate(
        EvaluateConfig(
            tokenizer=generator_spec.tokenizer,
            content=generator_spec.content,
            structure=generator_spec.structure,
            sampling=generator_spec.sampling,
            pool=PoolConfig(num_samples=120, chunk_size=50, batch_size=50, cpus_per_actor=0.5, seed=5),
            extractor_path=extractor_spec.path,
            output=str(tmp_path / "drawn"),
            reference=str(path),
            samples_file=str(tmp_path / "samples.npz"),
            samples_folder=str(tmp_path / "png"),
        )
    )
    assert json.loads((tmp_path / "drawn" / "results.json").read_text()) == drawn
    assert drawn["comparable"] is False
    assert drawn["protocol"]["model"]["evaluations"] == 5 + 3 * 3
    assert drawn["protocol"]["samples"]["num_samples"] == 120
    for name in ("samples.npz", "png"):
        found = run_evaluate_images(
            EvaluateImagesConfig(
                samples=str(tmp_path / name),
                reference=str(path),
                extractor_path=extractor_spec.path,
                output=str(tmp_path / f"{name}-scores"),
                pool=SMALL,
            )
        )
        assert found["scores"]["generated"] == pytest.approx(drawn["scores"]["generated"], rel=1e-3, abs=2e-2)
    assert len(open_images(str(tmp_path / "png"))) == 120


@pytest.mark.cluster
def test_a_reference_of_bare_images_gives_the_statistics_of_its_images(
    ray_session, extractor_spec: ExtractorSpec, digits, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bare.npz", digits.train.images[:130].repeat(3, axis=-1))
    bare = read_reference(str(tmp_path / "bare.npz"), extractor_spec)
    assert bare.pool is None
    complete = complete_reference(bare, extractor_spec, pool=SMALL, folder=tmp_path / "pool", console=None)
    again = complete_reference(bare, extractor_spec, pool=SMALL, folder=tmp_path / "pool", console=None)
    assert complete.features_MF is not None
    assert complete.pool is not None
    assert again.pool is not None
    assert complete.features_MF.shape[0] == 130
    assert np.array_equal(complete.pool.covariance_FF, again.pool.covariance_FF)
    np.testing.assert_allclose(complete.pool.covariance_FF, np.cov(complete.features_MF, rowvar=False), atol=1e-5)


def test_plans_say_what_is_read_and_written() -> None:
    images = EvaluateImagesConfig(samples="s.npz", reference="r.npz", extractor_path="x", output="o")
    assert "s.npz" in " ".join(plan_against(images))
    generator = EvaluateConfig(tokenizer="t", content="c", output="o", reference="r.npz", samples_file="s.npz")
    assert "write the samples to s.npz" in plan_evaluate(generator)
    assert "reference.npz in o" in plan_reference(ReferenceRunConfig(output="o"))[-1]
    with pytest.raises(ValueError, match="without a reference"):
        replace(generator, reference="")
