"""Sampling in bf16 against vectors of an independent implementation in fp32: how far it is off, and what stays fp32.

The bounds are twice what one CPU measured; below the lower one nothing would have been rounded.
"""

import pytest
import torch
from reference_vectors import reference_generators, vectors
from torch import Tensor

from nvg.granularity import balanced_split, stage_map
from nvg.sampling import integrate_flow

LEAST, MOST = 2e-4, 6e-3  # of the whole tensor, relative


@pytest.fixture(scope="module")
def generators():
    """Both reference generators with their blocks' products in bf16."""
    networks = reference_generators()
    for network in networks:
        network.trunk.matmul_dtype = torch.bfloat16
    yield networks
    for network in networks:
        network.trunk.matmul_dtype = None


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.dtype == torch.float32
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
@pytest.mark.parametrize("stage", [0, 1, 4, 8])
def test_contents(generators, stage):
    content, _ = generators
    data = vectors("generator_d2_io")
    structure, canvas = data[f"content.{stage}.structure"] << (8 - stage), data[f"content.{stage}.canvas"]
    final = content(canvas, structure, torch.full((4,), stage), data["in.class"])
    assert LEAST < relative_error(final, data[f"content.{stage}.final"]) < MOST
    logits, expected = content.token_logits(final, canvas, structure, stage), data[f"content.{stage}.logits"]
    assert LEAST < relative_error(logits, expected) < MOST
    assert (logits.argmax(-1) == expected.argmax(-1)).float().mean() >= 0.99


@torch.no_grad()
@pytest.mark.parametrize("stage", [0, 3, 6])
def test_structures_of_a_whole_flow(generators, stage):
    """Rounding of the velocities does not pile up over the steps, since the state of the flow is fp32."""
    _, network = generators
    data = vectors("generator_d2_io")
    structure, canvas = data[f"structure.{stage}.structure"] << (8 - stage), data[f"structure.{stage}.canvas"]
    denoised = integrate_flow(
        network, data["in.noise"], canvas, structure, data["in.class"], stage=stage, guidance_scale=1.7, num_steps=5
    )
    assert LEAST < relative_error(denoised, data[f"structure.{stage}.denoised_5_steps_guidance_1.7"]) < MOST
    split = stage_map(balanced_split(structure, denoised[..., stage], stage, 8), stage + 1, 8)
    assert (split == data[f"structure.{stage}.next_structure"]).float().mean() >= 0.99
