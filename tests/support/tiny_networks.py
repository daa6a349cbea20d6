"""Tokenizer and generators of a 4x4 grid with random weights, saved as a training would save them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch

from nvg.checkpoints import save_weights
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.sampling import Given, SampledSequence, SamplingConfig, Watch, sample
from nvg.tokenizer import Dequantizer, Tokenizer, TokenizerConfig

CODEBOOK_SIZE = 16
FEW_STEPS = SamplingConfig(num_flow_steps=3)


# Settings that train the tokenizer of `tokenizer_config` on digits.
ON_DIGITS = (
    "source.kind=digits",
    "source.image_size=16",
    "source.image_channels=1",
    "model.image_size=16",
    "model.image_channels=1",
    "model.base_width=8",
    "model.norm_groups=4",
    "model.width_multipliers=[1, 1, 1]",
    "model.num_res_blocks=1",
    "model.latent_channels=4",
    "model.codebook_size=16",
    "optimizer.global_batch=16",
)


def tokenizer_config(image_channels: int = 1, structure: str = "granularity") -> TokenizerConfig:
    """16x16 images to 4x4 latents of 4 channels."""
    return TokenizerConfig(
        image_size=16,
        image_channels=image_channels,
        base_width=8,
        width_multipliers=[1, 1, 1],
        num_res_blocks=1,
        norm_groups=4,
        latent_channels=4,
        codebook_size=CODEBOOK_SIZE,
        structure=structure,
    )


def save_tokenizer(folder: Path, structure: str = "granularity") -> Path:
    """Of grey images; codes spread as wide as the latents are."""
    torch.manual_seed(0)
    config = tokenizer_config(structure=structure)
    tokenizer = Tokenizer(config)
    torch.nn.init.normal_(tokenizer.dequantizer.codebook, std=0.3)
    save_weights(folder, tokenizer.state_dict(), asdict(config), "tokenizer", name="ema")
    return folder


def draw(
    networks: tuple[ContentGenerator, StructureGenerator, Dequantizer],
    indices: Iterable[int],
    *,
    seed: int = 0,
    config: SamplingConfig = FEW_STEPS,
    given: Given | None = None,
    watch: Watch | None = None,
) -> SampledSequence:
    """Samples of those indices, of three classes in turn."""
    content, structure, dequantizer = networks
    indices_B = torch.tensor(list(indices))
    return sample(
        content=content,
        structure=structure,
        dequantizer=dequantizer,
        labels_B=indices_B % 3,
        sample_indices_B=indices_B,
        seed=seed,
        config=config,
        given=given,
        watch=watch,
    )


def save_generators(root: Path) -> tuple[Path, Path]:
    """Content and structure generator of that grid for ten classes."""
    torch.manual_seed(1)
    content = ContentGeneratorConfig(
        depth=2, width=64, codebook_size=CODEBOOK_SIZE, num_positions=16, latent_channels=4, num_classes=10
    )
    structure = StructureGeneratorConfig(depth=2, width=64, num_positions=16, latent_channels=4, num_classes=10)
    for kind, network in (("content", ContentGenerator(content)), ("structure", StructureGenerator(structure))):
        save_weights(root / kind, network.state_dict(), asdict(network.config), kind, name="ema")
    return root / "content", root / "structure"
