"""Files in the layout of the authors' Lightning checkpoints, filled with reference vectors or random numbers."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from reference_vectors import FOLDER, vectors
from torch import Tensor


def save_lightning(path: Path, tensors: Mapping[str, Tensor], **rest: Any) -> Path:
    """A checkpoint as Lightning writes it: the state dict among optimizer states and other things."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    checkpoint = {
        "epoch": 199,
        "global_step": 10,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(tensors),
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": {"path": Path("somewhere"), "dtype": torch.bfloat16},
    }
    torch.save(checkpoint | rest, path)
    return path


def projector(width: int) -> dict[str, Tensor]:
    """REPA head of the published size with random weights, the same in every call."""
    generator = torch.Generator().manual_seed(2)
    sizes = {0: (2048, width), 2: (2048, 2048), 4: (768, 2048)}
    shapes = {f"projector.{number}.weight": shape for number, shape in sizes.items()}
    shapes |= {f"projector.{number}.bias": shape[:1] for number, shape in sizes.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def reference_generator() -> dict[str, Tensor]:
    """The reference generators as EMA weights; the bare ones are others, as in a real file."""
    tensors = vectors("generator_d2") | projector(128)
    bare = {name: tensor if name == "rope_ids" else tensor + 1 for name, tensor in tensors.items()}
    return {
        **{f"nvgformer.{name}": tensor for name, tensor in bare.items()},
        **{f"ema_model.nvgformer.{name}": tensor for name, tensor in tensors.items()},
        "first_stage_model.encoder.conv_in.conv.bias": torch.zeros(32),
        "repa_encoder.cls_token": torch.zeros(1, 1, 768),
    }


def reference_autoencoder() -> dict[str, Tensor]:
    """Encoder and decoder of one set of vectors, the quantiser of another."""
    tensors = vectors("autoencoder_ch32") | vectors("quantizer")
    bare = {name: tensor for name, tensor in tensors.items() if name.startswith(("encoder", "decoder", "quantize"))}
    return {
        **bare,
        **{f"ema_model.{name}": tensor + 1 for name, tensor in bare.items()},
        "loss.discriminator.heads.0.weight": torch.zeros(3),
        "total_visited_codes": torch.tensor(7),
    }


def random_d16() -> dict[str, Tensor]:
    """A full-size generator checkpoint: bare and EMA weights, the autoencoder inside, a tensor of the REPA encoder."""
    keys = json.loads((FOLDER / "release_checkpoint_keys.json").read_text())
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tuple(shape) for name, shape in keys["generator_d16"].items()}
    shapes |= {name: tuple(tensor.shape) for name, tensor in projector(1024).items()}
    tensors = {
        beginning + name: torch.empty(shape).normal_(generator=generator)
        for beginning in ("nvgformer.", "ema_model.nvgformer.")
        for name, shape in shapes.items()
    }
    for beginning in ("nvgformer.", "ema_model.nvgformer."):
        tensors[f"{beginning}rope_ids"] = vectors("generator_d2")["rope_ids"]
    autoencoder = {name: torch.zeros(shape) for name, shape in keys["autoencoder"].items()}
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in autoencoder.items()}
    return tensors | {"repa_encoder.cls_token": torch.zeros(1, 1, 768)}


def random_autoencoder() -> dict[str, Tensor]:
    """A full-size autoencoder checkpoint with bare weights."""
    keys = json.loads((FOLDER / "release_checkpoint_keys.json").read_text())["autoencoder"]
    generator = torch.Generator().manual_seed(1)
    return {name: torch.empty(shape).normal_(generator=generator) for name, shape in keys.items()}
