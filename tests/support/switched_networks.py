"""Small generators with the switches of the ablations, beside the same token space as `tiny_generators`."""

from __future__ import annotations

from typing import Any

import torch
from reference_vectors import tiny_generators

from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.tokenizer import Dequantizer

CONTENT_SWITCHES: list[dict[str, Any]] = [
    {},
    {"content_input": "noised_canvas"},
    {"content_input": "mixed_canvas"},
    {"prediction": "next_content"},
    {"structure_rope": False},
]
STRUCTURE_SWITCHES: list[dict[str, Any]] = [{}, {"structure_input": "noise"}, {"structure_rope": False}]


def switched(
    content: dict[str, Any] | None = None, structure: dict[str, Any] | None = None
) -> tuple[ContentGenerator, StructureGenerator, Dequantizer]:
    """The networks of `tiny_generators`, weights and all, with some switches set."""
    plain_content, plain_structure, dequantizer = tiny_generators()
    space: dict[str, Any] = {"num_positions": 16, "latent_channels": 4}
    sizes: dict[str, Any] = {"depth": 2, "width": 64, "drop_path_rate": 0.0, "num_classes": 3, **space}
    own_content = ContentGenerator(ContentGeneratorConfig(codebook_size=11, **sizes, **(content or {})))
    own_structure = StructureGenerator(StructureGeneratorConfig(**sizes, **(structure or {})))
    own_content.load_state_dict(plain_content.state_dict())
    own_structure.load_state_dict(plain_structure.state_dict())
    return own_content.eval(), own_structure.eval(), dequantizer


def records(num: int = 6) -> dict[str, torch.Tensor]:
    """Random records of that token space."""
    generator = torch.Generator().manual_seed(0)
    return {
        "label": torch.arange(num) % 3,
        "content_ids": torch.randint(0, 11, (num, 31), generator=generator),
        "structure": torch.stack([torch.randperm(16, generator=generator) for _ in range(num)]),
    }
