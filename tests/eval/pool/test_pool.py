"""The pool: the same images however it is run, and nothing computed twice."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.session import ClusterError
from eval.features.extractors import ExtractorSpec
from eval.pool.chunks import Arrays, arrays_digest, chunk_path, read_chunk, write_chunk
from eval.pool.jobs import SamplePool, SamplingJob, run_pool
from eval.pool.pool import PoolConfig, PoolError, chunk_identity
from eval.pool.samplers import GeneratorSampler, GeneratorSpec, Sampler, SamplerSpec
from nvg.errors import UserError
from nvg.sampling import SamplingConfig
from pipelines.entry import EXIT_USER_ERROR, guard

CONFIG = PoolConfig(num_samples=50, num_actors=1, chunk_size=10, batch_size=5, cpus_per_actor=0.5, seed=5)


NAMES = ("images_BHWC", "labels_B", "features_BF")


def some_chunk(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "images_BHWC": rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8),
        "labels_B": np.arange(4),
        "features_BF": rng.normal(size=(4, 3)).astype(np.float32),
    }


def test_a_chunk_comes_back(tmp_path: Path) -> None:
    write_chunk(tmp_path, 3, some_chunk(), NAMES, "key")
    found = read_chunk(tmp_path, 3, NAMES, "key")
    assert found is not None
    assert arrays_digest(found, NAMES) == arrays_digest(some_chunk(), NAMES)
    assert [path.name for path in tmp_path.iterdir()] == [chunk_path(tmp_path, 3).name]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other key", "other number"])
def test_a_damaged_chunk_counts_as_missing(tmp_path: Path, damage: str) -> None:
    write_chunk(tmp_path, 0, some_chunk(), NAMES, "other" if damage == "other key" else "key")
    path = chunk_path(tmp_path, 0)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-10])
    elif damage == "flip":
        content[-5] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other number":
        path.rename(chunk_path(tmp_path, 1))
    assert read_chunk(tmp_path, 1 if damage == "other number" else 0, NAMES, "key") is None


def test_a_chunk_of_other_arrays_counts_as_missing(tmp_path: Path) -> None:
    write_chunk(tmp_path, 0, some_chunk(), NAMES, "key")
    assert read_chunk(tmp_path, 0, (*NAMES, "logits_BV"), "key") is None
    assert read_chunk(tmp_path, 0, NAMES[:2], "key") is None


def test_the_key_follows_what_decides_the_bytes(generator_spec: GeneratorSpec, extractor_spec: ExtractorSpec) -> None:
    def identity(spec: GeneratorSpec, config: PoolConfig) -> dict[str, Any]:
        return chunk_identity(SamplingJob(spec=spec, extractor=extractor_spec), config)

    base = identity(generator_spec, CONFIG)
    assert identity(generator_spec, replace(CONFIG, num_samples=9, num_actors=3)) == base
    others = [
        identity(replace(generator_spec, seed=6), CONFIG),
        identity(replace(generator_spec, rounding="round"), CONFIG),
        identity(replace(generator_spec, precision="bf16"), CONFIG),
        identity(replace(generator_spec, sampling=SamplingConfig()), CONFIG),
        identity(generator_spec, replace(CONFIG, batch_size=10)),
        identity(generator_spec, replace(CONFIG, threads_per_actor=2)),
    ]
    assert all(other != base for other in others)


def test_bad_configs_are_named(generator_spec: GeneratorSpec, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of batch_size"):
        PoolConfig(chunk_size=10, batch_size=4)
    with pytest.raises(ValueError, match="num_actors"):
        PoolConfig(num_actors=0)
    with pytest.raises(UserError, match=r"content: found no file .*ema\.safetensors"):
        replace(generator_spec, content=str(tmp_path)).identity()
    with pytest.raises(UserError, match="num_classes"):
        replace(generator_spec, num_classes=7).build("cpu")


def test_batches_hold_the_same_samples(generator_spec: GeneratorSpec) -> None:
    sampler = generator_spec.build("cpu")
    indices = torch.arange(20)
    together = sampler.draw(indices % 10, indices)
    apart = np.concatenate([sampler.draw(rows % 10, rows) for rows in indices.split(5)])
    same = (np.abs(together.astype(int) - apart).reshape(20, -1).max(axis=1) <= 1).mean()
    assert same >= 0.95


def test_samples_that_are_not_finite_are_named(generator_spec: GeneratorSpec) -> None:
    sampler = generator_spec.build("cpu")
    assert isinstance(sampler, GeneratorSampler)
    next(sampler.tokenizer.decoder.parameters()).data.fill_(float("nan"))
    indices = torch.arange(40, 44)
    with pytest.raises(UserError, match=r"samples \[40, 41, 42, 43\]: found values that are not finite"):
        sampler.draw(indices % 10, indices)


def test_bfloat16_draws_nearly_the_same_images(generator_spec: GeneratorSpec) -> None:
    indices = torch.arange(20)
    exact, rounded = (
        replace(generator_spec, precision=precision).build("cpu").draw(indices % 10, indices)
        for precision in ("fp32", "bf16")
    )
    same = (np.abs(exact.astype(int) - rounded).reshape(20, -1).max(axis=1) <= 8).mean()
    assert same > 0.3
    states = []
    for precision in ("fp32", "bf16"):
        sampler = replace(generator_spec, precision=precision).build("cpu")
        assert isinstance(sampler, GeneratorSampler)
        canvas, maps = torch.ones(2, 16, 4), torch.arange(16).repeat(2, 1)
        with torch.no_grad():
            states.append(sampler.content(canvas, maps, torch.tensor([1, 2]), torch.tensor([3, 4])))
    assert not torch.equal(*states)
    torch.testing.assert_close(*states, rtol=0.1, atol=0.1)
    with pytest.raises(ValueError, match="fp16"):
        replace(generator_spec, precision="fp16")


@pytest.fixture(scope="module")
def straight(
    ray_session,
    generator_spec: GeneratorSpec,
    extractor_spec: ExtractorSpec,
    tmp_path_factory: pytest.TempPathFactory,
) -> SamplePool:
    folder = tmp_path_factory.mktemp("straight")
    return run_pool(generator_spec, config=CONFIG, extractor=extractor_spec, folder=folder)


@pytest.mark.cluster
def test_samples_are_balanced_and_not_all_the_same(straight: SamplePool) -> None:
    assert straight.samples.images_BHWC.shape == (50, 16, 16, 1)
    assert np.bincount(straight.samples.labels_B).tolist() == [5] * 10
    assert (straight.samples.sample_indices_B == np.arange(50)).all()
    assert len(np.unique(straight.samples.images_BHWC.reshape(50, -1), axis=0)) > 25
    assert (straight.num_computed, straight.num_reused, straight.num_deaths) == (5, 0, 0)


@pytest.mark.cluster
def test_three_actors_of_which_one_is_killed_give_the_same_bytes(
    straight: SamplePool, generator_spec: GeneratorSpec, extractor_spec: ExtractorSpec, tmp_path: Path
) -> None:
    import ray
    from ray.util.state import list_actors

    mine = ray.get_runtime_context().gcs_address  # other tests start clusters of their own
    killed: list[int] = []

    def kill_one(number: int) -> None:
        if not killed:
            alive = list_actors(mine, filters=[("class_name", "=", "ChunkWorker"), ("state", "=", "ALIVE")])
            killed.append(getattr(alive[0], "pid"))  # noqa: B009 (the state API is untyped)
            os.kill(killed[0], signal.SIGKILL)

    result = run_pool(
        generator_spec,
        config=replace(CONFIG, num_actors=3),
        extractor=extractor_spec,
        folder=tmp_path,
        on_chunk=kill_one,
    )
    assert killed
    assert result.num_deaths == 1
    assert result.images_sha256() == straight.images_sha256()
    assert result.samples.digest() == straight.samples.digest()


@pytest.mark.cluster
def test_a_finished_pool_computes_nothing(
    straight: SamplePool, generator_spec: GeneratorSpec, extractor_spec: ExtractorSpec
) -> None:
    computed: list[int] = []
    again = run_pool(
        generator_spec,
        config=replace(CONFIG, num_actors=2),
        extractor=extractor_spec,
        folder=straight.folder.parent,
        on_chunk=computed.append,
    )
    assert computed == []
    assert again.num_reused == 5
    assert again.samples.digest() == straight.samples.digest()


@pytest.mark.cluster
def test_only_missing_and_damaged_chunks_are_computed_again(
    straight: SamplePool, generator_spec: GeneratorSpec, extractor_spec: ExtractorSpec, tmp_path: Path
) -> None:
    copy = tmp_path / straight.folder.name
    copy.mkdir()
    for number in (0, 2, 3):
        chunk_path(copy, number).write_bytes(chunk_path(straight.folder, number).read_bytes())
    chunk_path(copy, 3).write_bytes(chunk_path(copy, 3).read_bytes()[:-1])
    computed: list[int] = []
    result = run_pool(
        generator_spec, config=CONFIG, extractor=extractor_spec, folder=tmp_path, on_chunk=computed.append
    )
    assert sorted(computed) == [1, 3, 4]
    assert result.samples.digest() == straight.samples.digest()


@pytest.mark.cluster
def test_more_samples_keep_the_first_ones(
    straight: SamplePool, generator_spec: GeneratorSpec, extractor_spec: ExtractorSpec
) -> None:
    more = run_pool(
        generator_spec,
        config=replace(CONFIG, num_samples=55),
        extractor=extractor_spec,
        folder=straight.folder.parent,
    )
    assert more.num_computed == 1
    assert (more.samples.images_BHWC[:50] == straight.samples.images_BHWC).all()
    assert len(more.samples.labels_B) == 55


@pytest.mark.cluster
def test_a_chunk_that_kills_every_worker_ends_the_run(
    ray_session, generator_spec: GeneratorSpec, extractor_spec: ExtractorSpec, tmp_path: Path
) -> None:
    poison = poison_spec(generator_spec.num_classes)
    with pytest.raises(
        PoolError, match=r"chunk 0: 2 workers died .*\(last: the actor died \(The actor died unexpectedly"
    ):
        run_pool(poison, config=replace(CONFIG, max_tries=2), extractor=extractor_spec, folder=tmp_path)


@pytest.mark.cluster
def test_too_many_actors_are_refused(
    ray_session, generator_spec: GeneratorSpec, extractor_spec: ExtractorSpec, tmp_path: Path
) -> None:
    config = replace(CONFIG, num_actors=1000)
    with pytest.raises(
        ClusterError, match=r"pool\.num_actors is 1000, which takes 500 CPUs at pool\.cpus_per_actor 0\.5"
    ):
        run_pool(generator_spec, config=config, extractor=extractor_spec, folder=tmp_path)


def poison_spec(num_classes: int) -> SamplerSpec:
    """A spec whose workers die; its class is made here, since workers cannot import a test's module."""

    class PoisonSpec:
        def __init__(self) -> None:
            self.num_classes = num_classes

        def identity(self) -> dict:
            return {"poison": True}

        def build(self, device: str) -> Sampler:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("unreachable")

    return PoisonSpec()


def test_a_pool_that_gave_up_is_the_users_to_mend(capsys) -> None:
    def give_up() -> None:
        raise PoolError("chunk 0: 3 workers died while computing it; make batch_size smaller")

    assert guard(give_up) == EXIT_USER_ERROR
    assert "make batch_size smaller" in capsys.readouterr().err
