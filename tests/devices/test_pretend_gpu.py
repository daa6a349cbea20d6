"""Training, sampling and precomputation on a pretend GPU: results of the CPU, no mix of devices, known waits."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_training import GoldenRunConfig
from golden_training import build_task as build_golden
from pretend_device import GPU, Log, OnGpu, pretend_gpu
from reference_vectors import tiny_generators
from tiny_networks import save_generators, save_tokenizer

from eval.pictures import paintings
from eval.pool.samplers import GeneratorSampler, GeneratorSpec
from nvg.checkpoints import load_network
from nvg.checkpoints.runs import find_damage
from nvg.errors import UserError
from nvg.sampling import SamplingConfig, graphs, sample
from nvg.tokenizer import Tokenizer, TokenizerConfig
from nvg.training import TokenizerLossConfig
from pipelines.entry import TrainingStopped
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.plan import DatasetFolder
from pipelines.precompute.unit import encode_unit
from pipelines.run_folder import read_metrics
from pipelines.sample import SampleConfig, sample_images
from pipelines.sources import SourceConfig, open_source
from pipelines.train.config import LoopConfig, OptimizerConfig
from pipelines.train.launch import run_training
from pipelines.train.tokenizer import TokenizerRunConfig, train_tokenizer


@pytest.fixture(autouse=True)
def _finds_gpus(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR")


def inside_the_step(log: Log) -> set[str]:
    """Files of the method whose lines waited."""
    return {place for place in log.places() if place.startswith("nvg/")}


def test_the_device_is_as_strict_as_a_real_one():
    with pretend_gpu() as log:
        on_gpu = torch.ones(3, 4).pin_memory().to("cuda", non_blocking=True)
        assert (on_gpu.device, on_gpu.is_cuda, log.sent_bytes) == (GPU, True, 48)
        assert isinstance(torch.zeros(2, device="cuda"), OnGpu)
        assert not isinstance(torch.zeros(2), OnGpu)
        assert isinstance(torch.zeros_like(on_gpu)[:, 0] + 1.0, OnGpu)
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            torch.add(on_gpu, torch.ones(3, 4))
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
            on_gpu.numpy()
        assert not log.waits
        assert float(on_gpu.sum()) == 12.0
        on_gpu[on_gpu > 2]
        on_gpu[torch.tensor([0, 1])]
        torch.as_tensor(3, device="cuda")
        on_gpu.cpu()
        torch.ones(3).to("cuda")
        waits = [wait.what for wait in log.waits]
    expected = ["item", "index by a mask", "index on the host", *2 * ["copy"]]
    assert [what.removesuffix(" to the device").removesuffix(" to the host") for what in waits] == [*expected, "copy"]
    assert not torch.cuda.is_available()


def golden(kind: str, folder: Path, **loop: Any) -> GoldenRunConfig:
    config = GoldenRunConfig(kind=kind, run_folder=str(folder), depth=1)
    loop = {"checkpoint_every_steps": 2, **loop}
    return replace(
        config, loop=replace(config.loop, **loop), optimizer=replace(config.optimizer, total_images=32, warmup_images=8)
    )


def numbers(folder: Path) -> list[tuple[float, ...]]:
    return [(row["loss"], row["accuracy"], row["grad_norm"]) for row in read_metrics(folder)]


def train_golden(kind: str, folder: Path, **loop: Any) -> None:
    """Four steps, the middle in another start."""
    os.environ.pop("DS_ACCELERATOR", None)  # what an earlier training has told DeepSpeed
    for last in (2, 4):
        try:
            run_training(golden(kind, folder, stop_after_steps=last, **loop), build_golden)
        except TrainingStopped:
            assert last == 2


# Which stages are computed is the host's to say; a step ends with one look at the gradient; checkpoints are read.
MAY_WAIT = {
    f"nvg/{name}.py" for name in ("training/generator_noise", "training/engine", "training/ema", "checkpoints/files")
}


@pytest.mark.parametrize("kind", ["content", "structure"])
def test_a_generators_training_stays_on_the_device_and_waits_where_it_may(kind, tmp_path):
    train_golden(kind, tmp_path / "cpu")
    with pretend_gpu() as log:
        train_golden(kind, tmp_path / "gpu", device="cuda")
    found, expected = (np.array(numbers(tmp_path / name)) for name in ("gpu", "cpu"))
    assert found[0, 0] == expected[0, 0]  # the first loss
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert inside_the_step(log) <= MAY_WAIT
    assert find_damage(tmp_path / "gpu" / "checkpoints" / "step-00000004") is None


def test_bf16_on_a_gpu_too_old_for_it_is_refused_before_a_step(tmp_path):
    with (
        pretend_gpu(capability=(7, 0)),
        pytest.raises(ValueError, match=r"loop.precision is 'bf16'; expected fp32: Pretend GPU has .*7.0"),
    ):
        run_training(golden("content", tmp_path / "run", precision="bf16"), build_golden)
    assert not (tmp_path / "run").exists()


def tokenizer_run(folder: Path, **loop: Any) -> TokenizerRunConfig:
    model = {"image_size": 16, "image_channels": 1, "base_width": 8, "width_multipliers": [1, 1, 2]}
    return TokenizerRunConfig(
        run_folder=str(folder),
        source=SourceConfig(kind="digits", image_size=16, image_channels=1, split="test"),
        model=TokenizerConfig(**model, num_res_blocks=1, norm_groups=4, latent_channels=4, codebook_size=16),  # type: ignore[arg-type]
        loss=TokenizerLossConfig(soft_assignment_images=16),
        optimizer=OptimizerConfig(lr=1e-3, total_images=24, global_batch=8, ema_half_life_images=8),
        loop=LoopConfig(engine="plain", log_every_steps=1, threads_per_rank=1, **loop),
    )


def test_a_tokenizers_training_gives_the_cpus_numbers(tmp_path):
    train_tokenizer(tokenizer_run(tmp_path / "cpu"))
    os.environ.pop("DS_ACCELERATOR")
    with pretend_gpu():
        train_tokenizer(tokenizer_run(tmp_path / "gpu", device="cuda"))
    losses = [[row["loss"] for row in read_metrics(tmp_path / name)] for name in ("cpu", "gpu")]
    # Clusters on a GPU come from rounds of merges, on the CPU from numba: the same labels.
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_samples_are_the_cpus(tmp_path):
    def drawn(device: str) -> Any:
        torch.manual_seed(0)
        content, structure, dequantizer = tiny_generators()
        indices = torch.arange(3)
        return sample(
            content=content.to(device), structure=structure.to(device), dequantizer=dequantizer.to(device),
            labels_B=(indices % 3).to(device),
            sample_indices_B=indices, seed=0, config=SamplingConfig(num_flow_steps=2),
        )  # fmt: skip

    with torch.inference_mode():
        expected = drawn("cpu")
    with torch.no_grad(), pretend_gpu():
        found = drawn("cuda")
        maps, ids = found.structure_BL.cpu(), found.content_ids_BT.cpu()
    assert torch.equal(maps, expected.structure_BL)
    assert torch.equal(ids, expected.content_ids_BT)


def test_images_drawn_from_weights_on_disk_are_the_cpus(tmp_path, monkeypatch):
    content, structure = save_generators(tmp_path)
    spec = GeneratorSpec(
        tokenizer=str(save_tokenizer(tmp_path / "tokenizer")), content=str(content), structure=str(structure),
        num_classes=10, sampling=SamplingConfig(num_flow_steps=1),
    )  # fmt: skip
    labels, indices = torch.arange(4), torch.arange(4)
    expected = spec.build("cpu").draw(labels, indices)
    for name in ("draw", "draw_sequences"):  # without their inference mode, which tensors of Python do not know
        monkeypatch.setattr(GeneratorSampler, name, getattr(GeneratorSampler, name).__wrapped__)
    with torch.no_grad(), pretend_gpu():
        found = spec.build("cuda").draw(labels, indices)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_sample_replays_passes_as_graphs_where_asked(tmp_path, monkeypatch):
    """The command alone; what a replay gives is told by tests/sampling/test_graphs.py."""
    save_generators(tmp_path / "run")
    save_tokenizer(tmp_path / "run" / "tokenizer")
    config = SampleConfig(
        run=str(tmp_path / "run"), output=str(tmp_path / "cpu"), classes=[1, 3], num_per_class=2, device="cpu",
        sampling=SamplingConfig(num_flow_steps=2),
    )  # fmt: skip
    sample_images(config)
    with pytest.raises(UserError, match="cuda_graphs: found true on a CPU"):
        sample_images(replace(config, cuda_graphs=True))
    recordings = []

    def record(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        output = run()
        recordings.append(output.shape)
        return lambda: output.copy_(run()), output

    monkeypatch.setattr(graphs, "_record", record)
    monkeypatch.setattr(paintings, "_painting", paintings._painting.__wrapped__)
    for name in ("draw", "draw_sequences"):
        monkeypatch.setattr(GeneratorSampler, name, getattr(GeneratorSampler, name).__wrapped__)
    with torch.no_grad(), pretend_gpu():
        sample_images(replace(config, output=str(tmp_path / "gpu"), device="cuda", precision="fp32", cuda_graphs=True))
    assert recordings
    for file in (tmp_path / "cpu").glob("*.png"):
        assert (tmp_path / "gpu" / file.name).read_bytes() == file.read_bytes()


def test_precomputed_records_are_the_cpus(tmp_path):
    tokenizer = load_network(Tokenizer, save_tokenizer(tmp_path / "tokenizer"), name="ema")
    config = PrecomputeConfig(
        tokenizer="none", output="none", batch_size=16, source=SourceConfig(kind="digits", split="test", num_views=1)
    )
    source, indices = open_source(config.source), np.arange(24)

    def encoded(name: str, config: PrecomputeConfig) -> dict[str, Any]:
        folder = DatasetFolder(tmp_path / name)
        folder.parts.mkdir(parents=True)
        device = tokenizer.to(config.device)
        given = {"source": source, "tokenizer": device, "config": config, "folder": folder, "plan_fingerprint": "0"}
        return encode_unit(0, indices, **given)  # type: ignore[arg-type]

    expected = encoded("cpu", config)
    with pretend_gpu():
        found = encoded("gpu", replace(config, gpus_per_actor=1.0))
    assert found["shards"] == expected["shards"]
    assert found["canvas_total"] == pytest.approx(expected["canvas_total"])


def test_without_a_gpu_the_key_is_refused(tmp_path):
    with pytest.raises((UserError, ValueError), match=r"loop\.device is 'cuda'"):
        run_training(golden("content", tmp_path, device="cuda"), build_golden)
