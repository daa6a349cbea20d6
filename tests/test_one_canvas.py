"""decode(ids, maps) is the quantised canvas, and one function makes it wherever it is needed.

Precompute's records have the same law in tests/pipelines/precompute/test_units.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from reference_vectors import tiny_generators
from torch import Tensor

from nvg.granularity import cluster_latents
from nvg.sampling import Given, SamplingConfig, sample
from nvg.tokenizer import Dequantizer, quantize_for_training, quantize_ids
from nvg.training import ContentObjective, GeneratorLossConfig, StructureObjective

ALL_STAGES = GeneratorLossConfig(class_dropout_prob=0.0)


@pytest.fixture
def painted(monkeypatch) -> list[Tensor]:
    """Everything that any dequantizer painted since the list was last cleared, in order."""
    outputs: list[Tensor] = []
    contribution: Callable[..., Tensor] = Dequantizer.contribution

    def watched(self: Dequantizer, codes_BUC: Tensor, structure_BL: Tensor, stage: int) -> Tensor:
        outputs.append(contribution(self, codes_BUC, structure_BL, stage))
        return outputs[-1]

    monkeypatch.setattr(Dequantizer, "contribution", watched)
    return outputs


class Case:
    """Six quantised latents: ids, maps and the canvases they decode to."""

    def __init__(self, num_positions: int) -> None:
        self.content, self.structure, self.dequantizer = tiny_generators(num_positions=num_positions)
        for network in (self.content, self.structure, self.dequantizer):
            network.requires_grad_(False)
        self.latent = torch.randn(6, num_positions, 4, generator=torch.Generator().manual_seed(0))
        self.maps = cluster_latents(self.latent)
        self.ids = quantize_ids(self.latent, self.maps, self.dequantizer)
        self.canvases = self.dequantizer.canvases(self.ids, self.maps)
        self.batch = {"label": torch.arange(6) % 3, "content_ids": self.ids, "structure": self.maps}


@pytest.fixture(params=[16, 64, 256])
def case(request) -> Case:
    return Case(request.param)


def running_sums(painted: list[Tensor]) -> Tensor:
    sums = [painted[0]]
    for added in painted[1:]:
        sums.append(sums[-1] + added)
    return torch.stack(sums, dim=1)


def test_the_quantiser_paints_what_is_decoded(case, painted):
    quantize_ids(case.latent, case.maps, case.dequantizer)
    assert torch.equal(running_sums(painted), case.canvases)


@pytest.mark.parametrize("soft_assignment", [False, True])
def test_the_training_quantiser_paints_what_is_decoded(case, painted, soft_assignment):
    quantized = quantize_for_training(
        case.latent, case.maps, case.dequantizer, commitment_weight=0.25, soft_assignment=soft_assignment
    )
    assert torch.equal(quantized.content_ids_BT, case.ids)
    # Soft assignment multiplies with a one-hot row, the straight-through estimate adds the latent and takes it off.
    if not soft_assignment:
        assert torch.equal(running_sums(painted), case.canvases)
    torch.testing.assert_close(running_sums(painted), case.canvases, rtol=0, atol=1e-5)
    torch.testing.assert_close(quantized.canvas_BLC, case.canvases[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["content", "structure"])
def test_the_objectives_train_on_what_is_decoded(case, kind, precision):
    """Whatever the precision of the step: sampling paints in fp32."""
    network = case.content if kind == "content" else case.structure
    objective_type = ContentObjective if kind == "content" else StructureObjective
    objective = objective_type(network, case.dequantizer, ALL_STAGES)
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0 if kind == "content" else 1]))
    noise = objective.draw_noise(seed=0, step=0, global_batch=6)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        objective(case.batch, noise)
    stage_BM = noise["stages"]
    shown = seen[0].unflatten(0, stage_BM.shape)
    for image in range(6):
        for column, stage in enumerate(stage_BM[image].tolist()):
            before = stage - 1 if kind == "content" else stage  # content sees x_{i-1}, structure x_i
            expected = case.canvases[image, before] if before >= 0 else torch.zeros_like(shown[0, 0])
            assert torch.equal(shown[image, column], expected)


def test_sampling_paints_what_is_decoded(case):
    num_stages = case.dequantizer.layout.num_stages
    given = Given(structure_BL=case.maps, num_splits=num_stages - 1, content_ids_BT=case.ids, num_contents=num_stages)
    config = SamplingConfig(num_flow_steps=1)
    for prefix in (given, None):
        drawn = sample(
            content=case.content,
            structure=case.structure,
            dequantizer=case.dequantizer,
            labels_B=case.batch["label"],
            sample_indices_B=torch.arange(6),
            seed=0,
            config=config,
            given=prefix,
        )
        decoded = case.dequantizer.canvases(drawn.content_ids_BT, drawn.structure_BL)
        assert torch.equal(drawn.canvases_BSLC, decoded)
        assert torch.equal(drawn.canvases_BSLC, case.canvases) == (prefix is given)


def test_another_batch_shape_agrees_to_1e_5(case):
    alone = torch.cat([case.dequantizer.canvases(case.ids[i : i + 1], case.maps[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, case.canvases, rtol=0, atol=1e-5)
