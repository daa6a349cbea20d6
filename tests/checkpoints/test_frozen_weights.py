"""Weight files of the frozen networks, in the real formats with random numbers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import vgg16

from nvg.checkpoints.frozen_weights import load_dino_features, load_perceptual_distance
from nvg.errors import UserError
from nvg.tokenizer import DinoFeatures


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
