"""Weights of the frozen networks that judge a training or are its target: read from local files, never fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvg.checkpoints.files import load_tensors
from nvg.checkpoints.networks import check_fit
from nvg.errors import UserError
from nvg.tokenizer import DinoFeatures, Dinov2Features, PerceptualDistance

CLASSIFIER_PARTS = ("classifier.", "head.", "fc.", "fc_norm.")


def load_dino_features(path: str | Path) -> DinoFeatures:
    """DINO's ViT-S/16, frozen.

    Args:
        path: the authors' `dino_deitsmall16_pretrain.pth`, or timm's `vit_small_patch16_224.dino` as safetensors.

    Raises:
        UserError: the file is missing or damaged, or holds another network.
    """
    network = DinoFeatures()
    where = "dino_deitsmall16_pretrain.pth of DINO's release, or timm's vit_small_patch16_224.dino"
    tensors = read_tensors(path, "DINO ViT-S/16", where, "judges.dino_weights")
    check_fit(tensors, network.vit, str(path))
    network.vit.load_state_dict(tensors)
    network.zero_key_biases()
    return network


def load_dinov2_features(path: str | Path, *, key: str, network: Dinov2Features | None = None) -> Dinov2Features:
    """DINOv2's ViT-B/14, frozen; its position table is resampled to the grid of 16×16.

    Args:
        path: the authors' `dinov2_vitb14_pretrain.pth`, or timm's `vit_base_patch14_dinov2.lvd142m` as safetensors.
        key: configuration key that names the path, for messages.
        network: the network to fill; None builds it.

    Raises:
        UserError: the file is missing or damaged, or holds another network.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    network = network or Dinov2Features()
    where = "dinov2_vitb14_pretrain.pth of DINOv2's release, or timm's vit_base_patch14_dinov2.lvd142m"
    tensors = read_tensors(path, "DINOv2 ViT-B/14", where, key)
    tensors.pop("mask_token", None)  # of its own training
    table = tensors.get("pos_embed")
    if table is not None and table.shape[1:] != network.vit.pos_embed.shape[1:]:
        tensors["pos_embed"] = resample_abs_pos_embed(table, list(network.vit.patch_embed.grid_size))
    check_fit(tensors, network.vit, str(path))
    network.vit.load_state_dict(tensors)
    return network


def load_perceptual_distance(path: str | Path, trunk: str = "vgg", *, key: str | None = None) -> PerceptualDistance:
    """LPIPS with its ImageNet trunk, frozen.

    Args:
        path: torchvision's `vgg16-397923af.pth` (or `alexnet-owt-7be5be79.pth`), the whole classifier or its features.
        trunk: "vgg" or "alex".
        key: configuration key that names the path, for messages; None is that of the training loss.

    Raises:
        UserError: the file is missing or damaged, or holds another network.
    """
    network = PerceptualDistance(trunk)
    file = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}[trunk]
    where = f"{file} of torchvision's ImageNet models"
    tensors = read_tensors(path, f"LPIPS trunk {trunk}", where, key or f"judges.{trunk}_weights")
    # LPIPS cuts `features` into slices whose layers keep their numbers.
    slices = {name.split(".")[1]: name.split(".")[0] for name in network.lpips.net.state_dict()}
    renamed = {}
    for name, tensor in tensors.items():
        number, _, leaf = name.removeprefix("features.").partition(".")
        renamed[f"{slices.get(number, 'features')}.{number}.{leaf}"] = tensor
    check_fit(renamed, network.lpips.net, str(path))
    network.lpips.net.load_state_dict(renamed)
    return network


def read_tensors(path: str | Path, what: str, origin: str, key: str) -> dict[str, Tensor]:
    """Tensors of a local weight file, without those of a classifier on top.

    Args:
        path: `.safetensors`, or a file of `torch.save` holding a flat dictionary of tensors.
        what: name of the network, for messages.
        origin: which file is meant and whose it is, for messages.
        key: configuration key that names the path, for messages.

    Raises:
        UserError: the file is missing, damaged, or no dictionary of tensors.
    """
    found, path = str(path), Path(path)
    if not path.is_file():
        raise UserError(
            f"{what}: found no file {found!r}; expected {origin}. Download it once, put it anywhere, and set {key} "
            "to its path; a loss weight of 0 does without it"
        )
    try:
        loaded: Any
        if path.suffix == ".safetensors":
            loaded = load_tensors(path, "fetch it again")
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{what}: {path} cannot be read ({reason}); expected {origin}: fetch it again") from error
    if not isinstance(loaded, dict) or not all(isinstance(of, str | Tensor) for item in loaded.items() for of in item):
        raise UserError(f"{what}: {path} holds no flat dictionary of tensors; expected {origin}")
    return {name: tensor for name, tensor in loaded.items() if not name.startswith(CLASSIFIER_PARTS)}
