"""The precision of records: recorded where it was a choice, and bytes and names of earlier records as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nvg.errors import UserError
from nvg.pixels import to_model_range
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.job import EncodingActor
from pipelines.precompute.plan import DatasetFolder, make_plan
from pipelines.precompute.unit import _Sender
from pipelines.sources import SourceConfig

ON_CPU = PrecomputeConfig(
    source=SourceConfig(split="test", view_policy="shift", num_views=2),
    tokenizer="tokenizer",
    output="records",
    batch_size=32,
    images_per_unit=50,
)
ON_GPU = replace(ON_CPU, gpus_per_actor=1)
# Of ON_CPU and seven images of two classes, before there was a choice.
FINGERPRINT = "b4a3ae22242730f0fdce2d6dc45c30f0c8c3f02c65b3b7b5bf15f193027dc9a6"


class SevenImages:
    fingerprint = "f" * 64
    groups = None

    def __init__(self) -> None:
        self.class_names = ["0", "1"]

    def __len__(self) -> int:
        return 7


def plan_of(config: PrecomputeConfig):
    source: object = SevenImages()
    return make_plan(config, source, "a" * 64)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def rounding():
    """The rounding of the process, given back as it was found."""
    flags: Any = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    yield flags
    for flag, value in zip(flags, before, strict=True):
        flag.allow_tf32 = value


def test_records_of_a_cpu_stay_known_and_those_of_a_gpu_say_their_precision():
    assert plan_of(ON_CPU).fingerprint == FINGERPRINT
    on_gpu = {precision: plan_of(replace(ON_GPU, precision=precision)) for precision in ("fp32", "tf32")}
    assert {plan.description["precision"] for plan in on_gpu.values()} == {"fp32", "tf32"}
    assert len({plan.fingerprint for plan in on_gpu.values()}) == 2


def test_records_of_a_gpu_that_do_not_say_are_refused_by_name(tmp_path):
    plan = plan_of(ON_GPU)
    folder = DatasetFolder(tmp_path)
    folder.adopt(plan)
    earlier = {name: value for name, value in plan.description.items() if name != "precision"}
    (folder.parts / "plan.json").write_text(json.dumps(earlier))
    with pytest.raises(UserError, match=r"precision: 'not recorded' against 'fp32'\nchoose another output"):
        folder.adopt(plan)
    other = DatasetFolder(tmp_path / "other")
    other.adopt(plan)
    with pytest.raises(UserError, match=r"precision: 'fp32' against 'tf32'"):
        other.adopt(plan_of(replace(ON_GPU, precision="tf32")))


def test_tf32_needs_a_gpu():
    with pytest.raises(UserError, match=r"precision is 'tf32'; expected fp32 or bf16 on a CPU"):
        replace(ON_CPU, precision="tf32")
    with pytest.raises(UserError, match=r"precision is 'bf16'; expected one of fp32, tf32"):
        replace(ON_CPU, precision="bf16")


def actor(case, folder, config: PrecomputeConfig) -> EncodingActor:
    case.write_tokenizer(folder / "tokenizer")
    return EncodingActor(
        tokenizer_folder=str(folder / "tokenizer"),
        source=SimpleNamespace(),  # pyright: ignore[reportArgumentType]
        config=config,
        folder=DatasetFolder(folder),
        plan_fingerprint="",
        stamps=np.zeros(0, np.uint64),
    )


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_an_actor_rounds_as_the_job_says(case, rounding, monkeypatch, tmp_path, precision):
    for flag in rounding:
        flag.allow_tf32 = precision == "fp32"
    config = replace(ON_GPU, precision=precision)
    monkeypatch.setattr(PrecomputeConfig, "device", "cpu")  # the only one here
    actor(case, tmp_path, config)
    assert [flag.allow_tf32 for flag in rounding] == [precision == "tf32"] * 2


def test_an_actor_on_a_gpu_without_tf32_names_the_key(case, rounding, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "V100")
    with pytest.raises(UserError, match=r"precision is 'tf32'; expected fp32: V100 .*set precision=fp32"):
        actor(case, tmp_path, replace(ON_GPU, precision="tf32"))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_are_scaled_on_the_device_are_those_scaled_before(channels):
    """The same numbers in the same layout, on which the order of sums depends."""
    levels_BHWC = np.random.default_rng(0).integers(0, 256, (4, 16, 16, channels), dtype=np.uint8)
    levels_BHWC.ravel()[:256] = np.arange(256)
    sent, expected = _Sender("cpu")(levels_BHWC), to_model_range(levels_BHWC, planes=True)
    assert sent.stride() == expected.stride()
    assert torch.equal(sent, expected)
    alone = levels_BHWC.astype(np.float32) / np.float32(127.5) - np.float32(1)
    assert np.array_equal(sent.permute(0, 2, 3, 1).numpy(), alone)


@pytest.mark.gpu
def test_a_gpu_receives_the_numbers_of_the_cpu():
    send = _Sender("cuda")
    for seed in range(4):
        levels_BHWC = np.random.default_rng(seed).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
        assert torch.equal(send(levels_BHWC).cpu(), _Sender("cpu")(levels_BHWC))
