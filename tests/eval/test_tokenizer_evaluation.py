"""`nvg eval tokenizer`: numbers against their definitions, one worker against two, and what it says when files lack."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import alexnet, vgg16

from eval.evaluation import EvaluationData
from eval.features.extractors import ExtractorSpec
from eval.pool.chunks import chunk_path, read_chunk
from eval.pool.jobs import ReconstructionJob
from eval.pool.pool import ChunkPoolConfig, ChunkWorker, chunk_identity
from eval.pool.samplers import GeneratorSpec
from eval.scores.metrics import frechet_distance
from eval.scores.reconstruction import check_lpips, load_lpips, pair_scores, reconstruct_with_ids
from eval.tokenizer_evaluation import reconstruction_scores
from nvg.checkpoints import load_network
from nvg.errors import UserError
from nvg.granularity import StageLayout
from nvg.tokenizer import Tokenizer
from pipelines.configuration import ConfigError, load_config
from pipelines.evaluate.images import SourceImages
from pipelines.evaluate.tokenizer import EvaluateTokenizerConfig, plan_evaluate_tokenizer, run_evaluate_tokenizer
from pipelines.sources import BadImage, SourceConfig, open_source

POOL = ChunkPoolConfig(num_actors=1, chunk_size=100, batch_size=50, cpus_per_actor=0.5)


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("lpips") / "vgg.pth"
    torch.save({f"features.{name}": value for name, value in vgg16().features.state_dict().items()}, path)
    return str(path)


@pytest.fixture(scope="module")
def job(generator_spec: GeneratorSpec, extractor_spec: ExtractorSpec) -> ReconstructionJob:
    images = SourceImages(open_source(SourceConfig(split="test")))
    return ReconstructionJob(images=images, tokenizer=generator_spec.tokenizer, extractor=extractor_spec)


def test_psnr_and_ssim_by_hand() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (3, 16, 16, 1), dtype=np.uint8)
    copies = images.copy()
    copies[1] += 10
    copies[2, :8] += 20
    found = pair_scores(images, copies, {})
    expected = [10 * np.log10(255**2 * 12), 10 * np.log10(255**2 / 100), 10 * np.log10(255**2 / 200)]
    np.testing.assert_allclose(found["psnr_B"], expected)
    assert found["ssim_B"][0] == 1
    assert found["ssim_B"][2] < found["ssim_B"][1] < 1


def test_ssim_of_flat_images_is_the_formulas_luminance_term() -> None:
    flat = [np.full((1, 16, 16, 3), level, np.uint8) for level in (100, 120)]
    constant = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + constant) / (100**2 + 120**2 + constant)
    assert pair_scores(flat[0], flat[1], {})["ssim_B"][0] == pytest.approx(expected, abs=1e-6)


def test_usage_perplexity_and_rfid_by_hand() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2, 5, 3)).astype(np.float32)
    ids = np.array(
        [[0, 1, 2, 0, 0, 0, 0], [0, 1, 2, 1, 1, 1, 1], [1, 1, 2, 2, 2, 2, 2], [1, 1, 2, 3, 3, 3, 3], [7] * 7]
    )
    arrays = {
        "readable_B": np.array([True, True, True, True, False]),
        "content_ids_BT": ids.astype(np.int32),
        "features_BF": features[0],
        "original_features_BF": features[1],
        "psnr_B": np.array([10.0, 20, 30, 40, 1000]),
        "ssim_B": np.array([0.1, 0.2, 0.3, 0.4, 1]),
    }
    found = reconstruction_scores(arrays, StageLayout(4), 8)
    assert (found["num_images"], found["psnr_db"], found["ssim"]) == (4, 25.0, pytest.approx(0.25))
    assert found["rfid"] == frechet_distance(features[0][:4], features[1][:4])
    assert "lpips_vgg" not in found
    stages = found["codebook"]["stages"]
    assert [stage["usage"] for stage in stages] == [2 / 8, 2 / 8, 4 / 8]
    assert [stage["perplexity"] for stage in stages] == pytest.approx([2, 2, 4])
    share = np.bincount(ids[:4].ravel(), minlength=4) / 28
    assert found["codebook"]["usage"] == 4 / 8
    assert found["codebook"]["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_a_chunk_holds_the_reconstructions_of_its_images(
    job: ReconstructionJob, digits: EvaluationData, tmp_path: Path
) -> None:
    config = ChunkPoolConfig(chunk_size=200, batch_size=100)
    worker = ChunkWorker(job, config, tmp_path, "key")
    worker.compute(1)
    chunk = read_chunk(tmp_path, 1, job.names, "key")
    assert chunk is not None
    rows = np.arange(200, 400) % len(digits.held_out.images)  # filled up from the front
    images = digits.held_out.images[rows]
    tokenizer = load_network(Tokenizer, job.tokenizer, name="ema")
    ids, copies = reconstruct_with_ids(tokenizer, images[:100], "release")
    assert (chunk["content_ids_BT"][:100] == ids).all()
    error = ((copies.astype(float) - images[:100]) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(chunk["psnr_B"][:100], 10 * np.log10(255**2 / error))
    assert chunk["readable_B"].all()


def test_images_written_since_are_other_images(tmp_path: Path) -> None:
    """Of the same size, too: chunks of what they were are not taken."""
    (tmp_path / "a").mkdir()
    config = SourceConfig(kind="folder", path=str(tmp_path), split="all")
    identities = []
    for colour in (10, 10, 20):
        if not identities or colour != 10:
            Image.new("L", (16, 16), colour).save(tmp_path / "a" / "0.bmp")
        identities.append(SourceImages(open_source(config)).identity())
    assert identities[0] == identities[1] != identities[2]


def test_an_image_that_cannot_be_read_is_black_and_marked(
    digits: EvaluationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(SourceConfig(split="test"))

    def read(index: int, view: int) -> np.ndarray:
        if index == 4:
            raise BadImage("cut off")
        return digits.held_out.images[index]

    monkeypatch.setattr(source, "read", read)
    images, readable = SourceImages(source).read(np.array([3, 4, 5]))
    assert readable.tolist() == [True, False, True]
    assert (images[[0, 2]] == digits.held_out.images[[3, 5]]).all()
    assert not images[1].any()


def test_the_key_follows_images_weights_and_rounding(job: ReconstructionJob, vgg_file: str) -> None:
    base = chunk_identity(job, POOL)
    assert chunk_identity(job, replace(POOL, num_actors=3)) == base
    others = [
        replace(job, rounding="round"),
        replace(job, lpips={"vgg": vgg_file}),
        replace(job, images=SourceImages(open_source(SourceConfig(split="judge")))),
    ]
    assert all(chunk_identity(other, POOL) != base for other in others)


@pytest.mark.slow
def test_lpips_on_the_real_graphs(vgg_file: str, tmp_path: Path) -> None:
    alex_file = str(tmp_path / "alex.pth")
    torch.save(alexnet().state_dict(), alex_file)
    networks = load_lpips({"vgg": vgg_file, "alex": alex_file})
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    copies = images.copy()
    copies[1] = 255 - copies[1]
    found = pair_scores(images, copies, networks)
    for trunk in ("vgg", "alex"):
        distances = found[f"lpips_{trunk}_B"]
        assert distances[0] == 0
        assert distances[1] > 0
    check_lpips({"vgg": vgg_file}, 16)
    with pytest.raises(UserError, match="alex_weights: found images of 16 pixels"):
        check_lpips({"alex": alex_file}, 16)
    with pytest.raises(UserError, match=r"alex\.pth"):
        check_lpips({"vgg": alex_file}, 32)
    with pytest.raises(UserError, match="vgg_weights: found no file"):
        check_lpips({"vgg": str(tmp_path / "none.pth")}, 32)


def test_settings_come_from_the_command_line() -> None:
    config = load_config(EvaluateTokenizerConfig, None, ["tokenizer=t", "output=o", "pool.num_actors=3"])
    assert config.source.split == "test"
    plan = "\n".join(plan_evaluate_tokenizer(config))
    assert "3 worker" in plan
    assert "LPIPS: left out" in plan
    with pytest.raises(ConfigError, match="tokenizer"):
        load_config(EvaluateTokenizerConfig, None, ["output=o"])
    with pytest.raises(ConfigError, match="rounding"):
        load_config(EvaluateTokenizerConfig, None, ["tokenizer=t", "output=o", "rounding=up"])


@pytest.mark.cluster
@pytest.mark.slow
def test_one_worker_equals_two_and_nothing_is_computed_twice(
    ray_session, job: ReconstructionJob, extractor_spec: ExtractorSpec, vgg_file: str, tmp_path: Path
) -> None:
    config = EvaluateTokenizerConfig(
        tokenizer=job.tokenizer,
        output=str(tmp_path / "one"),
        extractor_path=extractor_spec.path,
        vgg_weights=vgg_file,
        pool=POOL,
    )
    one = run_evaluate_tokenizer(config)
    two = run_evaluate_tokenizer(replace(config, output=str(tmp_path / "two"), pool=replace(POOL, num_actors=2)))
    assert one["scores"] == two["scores"]
    assert one["protocol"] == two["protocol"]
    (first,), (second,) = ((tmp_path / name / "pool").iterdir() for name in ("one", "two"))
    with_lpips = replace(job, lpips={"vgg": vgg_file})
    for number in range(3):
        chunks = [read_chunk(folder, number, with_lpips.names, _key(with_lpips)) for folder in (first, second)]
        assert chunks[0] is not None
        assert chunks[1] is not None
        assert all(np.array_equal(chunks[0][name], chunks[1][name]) for name in with_lpips.names)

    written = [chunk_path(first, number).stat().st_mtime_ns for number in range(3)]
    chunk_path(first, 1).unlink()
    assert run_evaluate_tokenizer(config)["scores"] == one["scores"]
    again = [chunk_path(first, number).stat().st_mtime_ns for number in range(3)]
    assert [before == after for before, after in zip(written, again, strict=True)] == [True, False, True]

    assert one["left_out"] == ["LPIPS (alex): alex_weights names no file"]
    assert one["protocol"]["reference"]["split"] == "test"
    assert one["protocol"]["reference"]["num_images"] == len(job.images) == one["scores"]["num_images"]
    assert set(one["protocol"]["lpips_sha256"]) == {"vgg"}
    assert json.loads((tmp_path / "one" / "results.json").read_text())["scores"] == one["scores"]
    assert (tmp_path / "one" / "reconstructions.png").read_bytes().startswith(b"\x89PNG")


def _key(job: ReconstructionJob) -> str:
    return hashlib.sha256(json.dumps(chunk_identity(job, POOL), sort_keys=True).encode()).hexdigest()
