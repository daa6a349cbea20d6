"""The reference vectors, loaded once, and the networks built from their weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from nvg.checkpoints.release_names import autoencoder_from_release, generator_from_release
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.tokenizer import Dequantizer, DequantizerConfig

FOLDER = Path(__file__).parents[1] / "data"


@cache
def vectors(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


@cache
def reference_dequantizer() -> Dequantizer:
    tensors = {key: value for key, value in vectors("quantizer").items() if key.startswith("quantize.")}
    renamed = autoencoder_from_release(tensors, num_levels=5)
    dequantizer = Dequantizer(DequantizerConfig())
    dequantizer.load_state_dict({key.removeprefix("dequantizer."): value for key, value in renamed.items()})
    return dequantizer.eval().requires_grad_(False)


@cache
def reference_generators() -> tuple[ContentGenerator, StructureGenerator]:
    networks = generator_from_release(vectors("generator_d2"))
    content = ContentGenerator(ContentGeneratorConfig(depth=2, num_classes=10, codebook_size=512))
    structure = StructureGenerator(StructureGeneratorConfig(depth=2, num_classes=10))
    content.load_state_dict(networks["content"])
    structure.load_state_dict(networks["structure"])
    return content.eval().requires_grad_(False), structure.eval().requires_grad_(False)


def tiny_generators(
    *,
    num_positions: int = 16,
    num_classes: int = 3,
    codebook_size: int = 11,
    latent_channels: int = 4,
    seed: int = 0,
) -> tuple[ContentGenerator, StructureGenerator, Dequantizer]:
    """Random small networks of one token space."""
    torch.manual_seed(seed)
    space = {"num_positions": num_positions, "latent_channels": latent_channels}
    sizes = {"depth": 2, "width": 64, "drop_path_rate": 0.0, "num_classes": num_classes, **space}
    content = ContentGenerator(ContentGeneratorConfig(codebook_size=codebook_size, **sizes))
    structure = StructureGenerator(StructureGeneratorConfig(**sizes))
    dequantizer = Dequantizer(DequantizerConfig(codebook_size=codebook_size, **space))
    torch.nn.init.normal_(dequantizer.codebook)
    return content.eval(), structure.eval(), dequantizer.eval()
