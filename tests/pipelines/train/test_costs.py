"""Costs counted without storage, and what --dry-run says about them."""

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cluster.ranks import Ranks
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.sampling import SamplingConfig, sample
from nvg.tokenizer import Dequantizer, DequantizerConfig, TokenizerConfig
from nvg.training import Ema
from pipelines.configuration import load_config
from pipelines.train.costs import (
    Speed,
    StateBytes,
    count_tokenizer,
    count_work,
    flops_per_image,
    sampling_flops,
    state_bytes,
)
from pipelines.train.devices import find_device, peak_flops
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
    found = count_work(model, **{**OPTIONS, "precision": "fp32"}, device_type="cpu").activation_bytes
    assert found == pytest.approx(sum(kept.values()), rel=0.1)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    "model", [ContentGeneratorConfig(depth=3), ContentGeneratorConfig(depth=8), StructureGeneratorConfig(depth=6)]
)
def test_activations_are_those_of_torchs_memory_tracker(model, precision):
    """Of two images on fake tensors; the tracker takes no module that runs twice, so the token head is left out."""
    is_content = isinstance(model, ContentGeneratorConfig)
    with FakeTensorMode():
        network = ContentGenerator(model) if is_content else StructureGenerator(model)
        stages = torch.arange(9 if is_content else 7).repeat(2)
        number = len(stages)
        maps, canvas = torch.zeros(number, 256, dtype=torch.int64), torch.zeros(number, 256, 32)
        tracker = MemTracker()
        tracker.track_external(network)
        with tracker, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            if is_content:
                result = network(canvas, maps, stages, stages)
            else:
                result = network(torch.zeros(number, 256, 8), canvas, maps, stages, torch.zeros(number), stages)
            (found,) = tracker.get_tracker_snapshot("current").values()
        assert result.requires_grad
    work = count_work(model, **{**OPTIONS, "precision": precision}, device_type="cpu")
    tracked = next(size for kind, size in found.items() if "ACT" in str(kind))
    head = 2 * 511 * 4096 * 4 if is_content else 0
    assert 2 * work.activation_bytes + work.pass_bytes == pytest.approx(tracked + head, rel=0.1)


def test_a_gpus_kernel_keeps_what_it_says(monkeypatch):
    """What stands in for Triton's kernel where there is no Triton, beside the kernel itself."""
    heads = pytest.importorskip("nvg.layers.triton_heads")
    model = ContentGeneratorConfig(depth=4)
    stood_in = count_work(model, **OPTIONS)
    monkeypatch.setattr("pipelines.train.costs._turned_by_kernel", heads.turn_heads)
    assert count_work(model, **OPTIONS) == stood_in
    assert count_work(model, **OPTIONS, device_type="cpu").activation_bytes > 1.3 * stood_in.activation_bytes


@pytest.mark.parametrize(
    ("name", "kind"),
    [(row.row, row.what) for row in find_device("h100").measured if row.what in ("content", "structure")],
)
def test_memory_is_what_was_measured_on_an_h100(name, kind):
    """Peak of a step of one device without ZeRO: weights, moments and average while everything is kept."""
    (row,) = (row for row in find_device("h100").measured if row.row == name)
    make = ContentGeneratorConfig if kind == "content" else StructureGeneratorConfig
    work = count_work(make(depth=int(name.split()[1][1:3])), **OPTIONS, compiled=row.compiled)
    assert row.micro_batch is not None
    bytes_held = 16 * work.num_parameters + work.activation_bytes * row.micro_batch + work.pass_bytes
    assert bytes_held / 2**30 == pytest.approx(row.peak_gib, rel=0.03)


def test_a_tokenizers_step_is_what_was_measured_on_an_h100():
    (row,) = (row for row in find_device("h100").measured if row.what == "tokenizer")
    work = count_tokenizer(TokenizerConfig())
    assert row.micro_batch is not None
    bytes_held = 8 * work.num_parameters + work.activation_bytes * row.micro_batch  # no optimizer, no average
    assert bytes_held / 2**30 == pytest.approx(row.peak_gib, rel=0.04)
    assert work.step_flops == pytest.approx(row.flops_per_image, rel=0.01)


@pytest.mark.parametrize(
    ("stage", "by_hand"),
    [
        # of 1,000 parameters on 8 devices: weights, gradients, those that are updated, moments, average
        (0, (4000, 4000, 0, 8000, 4000)),
        (1, (4000, 4000 + 500, 500, 1000, 4000)),
        (2, (4000, 500, 500, 1000, 4000)),
        (3, (500, 500, 500, 1000, 4000)),
    ],
)
def test_states_of_every_stage_are_those_counted_by_hand(stage, by_hand):
    found = state_bytes(1000, zero_stage=stage, world_size=8, offload=False)
    names = ("weights", "gradients", "master", "moments", "average")
    assert found == StateBytes(**dict(zip(names, by_hand, strict=True)))
    assert found.total == sum(by_hand)
    offloaded = state_bytes(1000, zero_stage=stage, world_size=8, offload=True)
    assert (offloaded.master, offloaded.moments) == (0, 0)


def test_states_without_zero_are_the_tensors_of_a_training():
    """Weights, gradients, moments and average of a real step, byte for byte."""
    network = ContentGenerator(ContentGeneratorConfig(depth=2, width=64, num_positions=16, num_classes=10))
    optimizer, average = torch.optim.AdamW(network.parameters()), Ema(network, half_life_images=100.0)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    average.update(network, num_images=1)
    moments = sum(state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    number = sum(parameter.numel() for parameter in network.parameters())
    found = state_bytes(number, zero_stage=0, world_size=1, offload=False)
    assert found.weights == sum(parameter.nbytes for parameter in network.parameters())
    assert found.gradients == sum(
        parameter.grad.nbytes for parameter in network.parameters() if parameter.grad is not None
    )
    assert found.moments == moments
    names = dict(network.named_parameters())
    assert found.average == sum(value.nbytes for name, value in average.weights(network).items() if name in names)


def test_operations_of_sampling_are_those_that_torch_counts():
    sizes: dict[str, Any] = {"num_positions": 64, "latent_channels": 8, "num_classes": 10}
    content = ContentGeneratorConfig(depth=6, width=128, codebook_size=32, **sizes)
    structure = StructureGeneratorConfig(depth=6, width=128, **sizes)
    dequantizer = Dequantizer(DequantizerConfig(num_positions=64, latent_channels=8, codebook_size=32))
    for config in (SamplingConfig(num_flow_steps=3), SamplingConfig(constant_guidance=True, structure_guidance=1.0)):
        # In bf16, since a CPU's fused product and GELU of fp32 is none that torch counts.
        bf16, plain = torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH)
        with FlopCounterMode(display=False) as counter, plain, bf16:
            sample(
                content=ContentGenerator(content).eval(),
                structure=StructureGenerator(structure).eval(),
                dequantizer=dequantizer,
                labels_B=torch.tensor([1]),
                sample_indices_B=torch.tensor([0]),
                seed=0,
                config=config,
            )
        assert sampling_flops(content, structure, config) == pytest.approx(counter.get_total_flops(), rel=0.02)


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
