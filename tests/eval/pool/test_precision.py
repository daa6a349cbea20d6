"""Precision and compilation of samples and reconstructions: recorded, refused by name, and apart from features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.features.extractors import ExtractorSpec, build_extractor, extract
from eval.pool.jobs import FeatureJob, ReconstructionJob, SamplingJob
from eval.pool.pool import ChunkPoolConfig, PoolConfig, chunk_identity
from eval.pool.samplers import GeneratorSampler, GeneratorSpec
from nvg.errors import UserError
from nvg.precision import round_to_tf32
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.tokenizer import EvaluateTokenizerConfig
from pipelines.sample import SampleConfig, sample_images

ON_CPU, ON_GPU = PoolConfig(), PoolConfig(gpus_per_actor=1)


@pytest.fixture(autouse=True)
def process_is_left_as_found():
    """The rounding of the process, as the test found it."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def make_gpu(monkeypatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


def test_samples_of_a_cpu_stay_known(generator_spec: GeneratorSpec, extractor_spec: ExtractorSpec) -> None:
    """Exactly the keys from before there was a choice; whatever changes numbers is among them."""
    job = SamplingJob(spec=generator_spec, extractor=extractor_spec)
    found = chunk_identity(job, ON_CPU)
    assert set(found) == {
        "schema_version", "chunk_size", "batch_size", "threads_per_actor", "device", "torch", "sampler", "extractor",
        "labels",
    }  # fmt: skip
    assert set(found["sampler"]) == {
        "tokenizer_sha256", "content_sha256", "structure_sha256", "weights", "tokenizer_weights", "num_classes",
        "sampling", "seed", "rounding",
    }  # fmt: skip
    assert not {"structure_guidance_at", "edit_guidance", "shared_noise"} & found["sampler"]["sampling"].keys()
    edits = replace(generator_spec, sampling=replace(generator_spec.sampling, edit_guidance=5.0))
    assert edits.identity()["sampling"] == {**found["sampler"]["sampling"], "edit_guidance": 5.0}
    assert replace(generator_spec, precision="bf16").identity() == {**found["sampler"], "precision": "bf16"}
    assert replace(generator_spec, compile=True).identity() == {**found["sampler"], "compile": True}
    assert chunk_identity(job, ON_GPU) == {**found, "device": "cuda", "tf32": "where precision is tf32"}


def test_null_is_settled_by_the_pool_and_both_are_in_the_protocol() -> None:
    def spec(**settings) -> GeneratorSpec:
        config = EvaluateConfig(tokenizer="t", content="c", structure="s", output="o", **settings)
        return config.generator_spec(10)

    assert spec().computed == {"precision": "fp32", "compile": False}
    assert spec(pool=ON_GPU).computed == {"precision": "bf16", "compile": False}
    assert spec(pool=ON_GPU, precision="tf32", compile=True).computed == {"precision": "tf32", "compile": True}
    with pytest.raises(UserError, match=r"precision is 'tf32'; expected fp32 or bf16 on a CPU"):
        spec(precision="tf32")
    with pytest.raises(UserError, match=r"precision is 'tf32'; expected fp32 or bf16 on a CPU"):
        EvaluateTokenizerConfig(tokenizer="t", output="o", precision="tf32")


def test_nothing_is_drawn_in_what_the_device_has_not(generator_spec: GeneratorSpec, monkeypatch, tmp_path) -> None:
    make_gpu(monkeypatch, (7, 5))
    for precision in ("bf16", "tf32"):
        with pytest.raises(UserError, match=rf"precision is '{precision}'; expected fp32: Tesla T4"):
            replace(generator_spec, precision=precision).build("cuda")
    with pytest.raises(UserError, match="precision is 'tf32'; expected fp32 or bf16 on a CPU"):
        replace(generator_spec, precision="tf32").build("cpu")
    run = generator_spec.tokenizer.removesuffix("/tokenizer")
    with pytest.raises(UserError, match="precision is 'tf32'; expected fp32 or bf16 on a CPU"):
        sample_images(SampleConfig(run=run, output=str(tmp_path / "samples"), device="cpu", precision="tf32"))
    assert not (tmp_path / "samples").exists()


def test_reconstructions_say_their_precision(
    generator_spec: GeneratorSpec, extractor_spec: ExtractorSpec, monkeypatch
) -> None:
    class Images:
        def identity(self) -> dict:
            return {"images": 1}

        def __len__(self) -> int:
            return 1

        def read(self, indices_B):
            raise AssertionError

    exact = ReconstructionJob(images=Images(), tokenizer=generator_spec.tokenizer, extractor=extractor_spec)
    rounded = replace(exact, precision="tf32")
    assert "precision" not in exact.identity()
    assert rounded.identity() == {**exact.identity(), "precision": "tf32"}
    features = FeatureJob(images=Images(), extractor=extractor_spec)
    assert set(chunk_identity(features, ChunkPoolConfig())) == {
        "schema_version", "chunk_size", "batch_size", "threads_per_actor", "device", "torch", "images", "extractor",
    }  # fmt: skip
    make_gpu(monkeypatch, (7, 5))
    with pytest.raises(UserError, match="precision is 'tf32'; expected fp32: Tesla T4"):
        rounded.build("cuda", 1)


def test_features_are_never_rounded(extractor_spec: ExtractorSpec, noise_images: np.ndarray, monkeypatch) -> None:
    extractor = build_extractor(extractor_spec)
    seen: list[bool] = []

    def note(module, given) -> None:
        seen.extend((bool(torch.backends.cuda.matmul.allow_tf32), torch.backends.cudnn.allow_tf32))

    extractor.register_forward_pre_hook(note)
    round_to_tf32(True)
    extract(extractor, noise_images)
    assert seen == [False, False]
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.slow
def test_where_nothing_can_be_compiled_the_key_is_named(generator_spec: GeneratorSpec) -> None:
    from torch._inductor import config

    torch.compiler.reset()
    sampler = replace(generator_spec, compile=True).build("cpu")
    message = r"the blocks cannot be compiled: .*set compile=false"
    with config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        for _ in range(2):  # no attempt after the first goes on without a word
            with pytest.raises(UserError, match=message):
                sampler.draw(torch.arange(2), torch.arange(2))
    torch.compiler.reset()


def test_canvases_of_bf16_samples_are_painted_in_fp32(generator_spec: GeneratorSpec) -> None:
    sampler = replace(generator_spec, precision="bf16").build("cpu")
    assert isinstance(sampler, GeneratorSampler)
    indices = torch.arange(10)
    drawn = sampler.draw_sequences(indices, indices)
    assert sampler.content.trunk.matmul_dtype == torch.bfloat16
    with torch.inference_mode():
        painted_BSLC = sampler.tokenizer.dequantizer.canvases(drawn.content_ids_BT, drawn.structure_BL)
    torch.testing.assert_close(drawn.canvases_BSLC, painted_BSLC, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_compiled_generators_draw_what_eager_ones_draw(generator_spec: GeneratorSpec) -> None:
    """But for ids that rounding turns over; a compilation serves all blocks of a generator, for each size of batch."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    indices = torch.arange(20)
    samplers = [replace(generator_spec, compile=compiled).build("cpu") for compiled in (False, True)]
    ids = []
    for sampler in samplers:
        assert isinstance(sampler, GeneratorSampler)
        ids.append(sampler.draw_sequences(indices % 10, indices).content_ids_BT)
    assert (ids[0] == ids[1]).float().mean() > 0.95
    assert counters["stats"]["unique_graphs"] <= 4  # guidance makes one batch of both passes
