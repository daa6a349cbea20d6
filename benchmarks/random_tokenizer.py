"""Tokenizers with random weights, for measuring what does not depend on training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from nvg.checkpoints import save_weights
from nvg.tokenizer import Tokenizer, TokenizerConfig

SMALL = TokenizerConfig(
    image_size=16,
    image_channels=1,
    base_width=32,
    width_multipliers=[1, 1, 1],
    num_res_blocks=1,
    latent_channels=8,
    codebook_size=64,
)


def write_tokenizer(folder: Path, config: TokenizerConfig) -> Path:
    """Saves a tokenizer whose codes are spread as wide as its latents."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(config)
    torch.nn.init.normal_(tokenizer.dequantizer.codebook, std=0.3)
    save_weights(folder, tokenizer.state_dict(), asdict(config), kind="tokenizer", name="ema")
    return folder
