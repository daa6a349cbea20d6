"""Costs counted without storage, and what --dry-run says about them."""

import re

import pytest
import torch
from torch import nn

from cluster.ranks import Ranks
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGeneratorConfig
from pipelines.configuration import load_config
from pipelines.train.costs import Speed, count_work, flops_per_image, peak_flops, state_bytes
from pipelines.train.generator import GeneratorRunConfig
from pipelines.train.plan import plan_costs

OPTIONS = {"stages_per_image": None, "precision": "bf16", "recompute_activations": False}


@pytest.mark.parametrize(
    ("model", "tokens", "matrix_parameters"),
    [
        (ContentGeneratorConfig(depth=4), 9 * 257, 4 * 12 * 256**2),
        (StructureGeneratorConfig(depth=4), 7 * 513, 4 * 12 * 128**2),
    ],
)
def test_counts_agree_with_the_formula(model, tokens, matrix_parameters):
    work = count_work(model, **OPTIONS)
    assert work.tokens_per_image == tokens
    width = model.depth * (64 if isinstance(model, ContentGeneratorConfig) else 32)
    length = 257 if isinstance(model, ContentGeneratorConfig) else 513
    blocks = 6 * matrix_parameters * tokens + 12 * length * width * tokens * model.depth
    assert work.flops_per_image == pytest.approx(blocks, rel=0.03)  # the rest is modulation, input and head
    half = count_work(model, **{**OPTIONS, "stages_per_image": 1})
    stages = 9 if length == 257 else 7
    assert half.flops_per_image == pytest.approx(work.flops_per_image / stages)
    assert half.num_parameters == work.num_parameters


def test_recomputed_blocks_keep_a_fraction():
    model = ContentGeneratorConfig(depth=12)
    kept = count_work(model, **OPTIONS).activation_bytes
    assert count_work(model, **{**OPTIONS, "recompute_activations": True}).activation_bytes < 0.25 * kept
    assert count_work(model, **{**OPTIONS, "precision": "fp32"}).activation_bytes > 1.1 * kept


def test_activations_are_those_that_autograd_keeps():
    model = ContentGeneratorConfig(depth=2, width=64, num_positions=16, num_classes=10, codebook_size=16)
    network, kept = ContentGenerator(model), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stages = torch.arange(5)
        result = network(torch.zeros(5, 16, 32), torch.zeros(5, 16, dtype=torch.int64), stages, stages)
    for parameter in network.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    assert result.requires_grad
    found = count_work(model, **{**OPTIONS, "precision": "fp32"}).activation_bytes
    assert found == pytest.approx(sum(kept.values()), rel=0.1)


def test_states_shrink_with_the_stage():
    def of(stage, **changes):
        return state_bytes(1000, **{"zero_stage": stage, "world_size": 8, "offload": False, **changes})

    assert of(0) == 20_000
    assert of(0) > of(1) > of(2) > of(3)
    assert of(2, offload=True) == of(2) - 12_000 / 8


def test_mfu_is_the_stated_formula_and_only_where_the_peak_is_known():
    speed = Speed(nn.Module(), Ranks())  # type: ignore[arg-type]
    speed._task = type("Task", (), {"tokens_per_image": 10, "count_flops": lambda: 4e12})  # type: ignore[assignment]
    assert speed.numbers(2.0) == {"images_per_s": 2.0, "tokens_per_s": 20.0}
    speed._peak = 16e12
    assert speed.numbers(2.0)["mfu"] == 0.5
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("some other device") is None


@pytest.mark.parametrize(
    ("name", "parameters", "gpu_hours"),
    [("content/d16.yaml", "255,183,904", 520), ("structure/d24.yaml", "215,176,712", 1300)],
)
def test_dry_run_states_parameters_hours_and_memory(name, parameters, gpu_hours):
    lines = plan_costs(load_config(GeneratorRunConfig, name), 8)
    assert lines[0].startswith(f"{parameters} parameters")
    found = re.fullmatch(r"\S+ FLOP in all: (\d+) hours on 8 device\(s\) at 40% of 989 TFLOP/s each .*", lines[1])
    assert found is not None
    assert 8 * int(found[1]) == pytest.approx(gpu_hours, rel=0.05)  # as the preset says
    assert "ZeRO-1" in lines[2]
    assert "(this run)" in lines[2]


def test_flops_do_not_need_the_networks_storage():
    assert flops_per_image(ContentGeneratorConfig(depth=24), None) == pytest.approx(9.8e12, rel=0.05)
