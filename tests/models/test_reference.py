"""Both generators against vectors of an independent implementation, and the paper's parameter counts."""

import json

import pytest
import torch
from reference_vectors import FOLDER, reference_generators, vectors

from nvg.checkpoints.release_names import generator_from_release
from nvg.granularity import balanced_split, stage_map, structure_embedding
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.sampling import integrate_flow


@torch.no_grad()
@pytest.mark.parametrize("stage", [0, 1, 4, 8])
def test_content_generator(stage):
    content, _ = reference_generators()
    data = vectors("generator_d2_io")
    structure = data[f"content.{stage}.structure"] << (8 - stage)
    canvas = data[f"content.{stage}.canvas"]
    final = content(canvas, structure, torch.full((4,), stage), data["in.class"])
    torch.testing.assert_close(final, data[f"content.{stage}.final"], rtol=0, atol=1e-4)
    logits = content.token_logits(final, canvas, structure, stage)
    torch.testing.assert_close(logits, data[f"content.{stage}.logits"], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("stage", [0, 3, 6])
def test_structure_generator_and_its_flow(stage):
    _, network = reference_generators()
    data = vectors("generator_d2_io")
    structure = data[f"structure.{stage}.structure"] << (8 - stage)
    canvas, labels = data[f"structure.{stage}.canvas"], data["in.class"]
    clean = (structure_embedding(structure, stage, 8) - 1).float()
    noisy = torch.where(torch.arange(8) < stage, clean, data["in.noise"])
    velocity = network(noisy, canvas, structure, torch.full((4,), stage), data[f"structure.{stage}.t"], labels)
    torch.testing.assert_close(velocity, data[f"structure.{stage}.velocity"], rtol=0, atol=1e-4)
    denoised = integrate_flow(
        network, data["in.noise"], canvas, structure, labels, stage=stage, guidance_scale=1.7, num_steps=5
    )
    expected = data[f"structure.{stage}.denoised_5_steps_guidance_1.7"]
    torch.testing.assert_close(denoised, expected, rtol=0, atol=1e-4)
    split = balanced_split(structure, denoised[..., stage], stage, 8)
    assert torch.equal(stage_map(split, stage + 1, 8), data[f"structure.{stage}.next_structure"])


@pytest.mark.parametrize(
    ("depth", "content", "structure"),
    [
        (12, 108_421_408, 27_469_064),
        (16, 255_183_904, 64_369_672),
        (20, 496_602_912, 124_972_808),
        (24, 856_271_392, 215_176_712),
    ],
)
def test_parameter_counts_of_the_paper(depth, content, structure):
    with torch.device("meta"):
        networks = (
            ContentGenerator(ContentGeneratorConfig(depth=depth)),
            StructureGenerator(StructureGeneratorConfig(depth=depth)),
        )
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == [content, structure]


def test_d16_has_the_release_names_and_shapes():
    shapes = json.loads((FOLDER / "release_checkpoint_keys.json").read_text())["generator_d16"]
    with torch.device("meta"):
        released = generator_from_release({key: torch.empty(shape) for key, shape in shapes.items()})
        own = {
            "content": ContentGenerator(ContentGeneratorConfig()).state_dict(),
            "structure": StructureGenerator(StructureGeneratorConfig()).state_dict(),
        }
    for name, state in own.items():
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in released[name].items()}


def test_unknown_release_name_is_refused():
    with pytest.raises(ValueError, match=r"content_blocks.0.linear9"):
        generator_from_release({"content_blocks.0.linear9.weight": torch.zeros(1)})
