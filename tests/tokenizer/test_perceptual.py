"""LPIPS gives the numbers of its authors' package (lpips 0.1.4); the distance in feature maps is its formula.

All weights are drawn here.
"""

import pytest
import torch
from torchvision.models import alexnet, vgg16

from nvg.checkpoints import load_perceptual_distance
from nvg.tokenizer import FeatureDistance

BUILD = {"vgg": vgg16, "alex": alexnet}
# of lpips 0.1.4 with torch 2.14: distances of the colour pairs, of the grey ones, norm of the gradient to the input
OF_AUTHORS = {
    "vgg": ([0.0161504801, 0.0241110548], [0.0153827164, 0.0407965593], 0.00834233562),
    "alex": ([0.0050038374, 0.0229662973], [0.00892209541, 0.0327622779], 0.0199597972),
}


def write_trunk(path, trunk):
    """Random weights of a classifier's features as torchvision names them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in BUILD[trunk](weights=None).features.state_dict().items():
        scale = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim == 4 else 0.1
        tensors[f"features.{name}"] = torch.randn(tensor.shape, generator=generator) * scale
    torch.save(tensors, path)
    return path


def image_pairs():
    step = torch.arange(3 * 32 * 32, dtype=torch.float64).reshape(1, 3, 32, 32)
    first = torch.cat([torch.sin(step * 0.37), torch.cos(step * 0.011)])
    second = torch.cat([torch.sin(step * 0.37 + 0.3), torch.cos(step * 0.011) * 0.5 + 0.2 * torch.sin(step * 1.7)])
    return first.float(), second.float()


@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["vgg", "alex"])
def test_distances_and_gradients_are_those_of_the_authors(tmp_path, trunk):
    distance = load_perceptual_distance(write_trunk(tmp_path / "trunk.pth", trunk), trunk)
    expected, found = image_pairs()
    found.requires_grad_()
    distance_B = distance(found, expected)
    distance_B.sum().backward()
    assert found.grad is not None
    colour, grey, gradient = OF_AUTHORS[trunk]
    assert distance_B.tolist() == pytest.approx(colour, abs=1e-6)
    assert distance(expected[:, :1], found[:, :1]).tolist() == pytest.approx(grey, abs=1e-6)
    assert found.grad.double().norm().item() == pytest.approx(gradient, abs=1e-6)


def test_network_is_frozen_and_in_evaluation_mode(tmp_path):
    distance = load_perceptual_distance(write_trunk(tmp_path / "trunk.pth", "alex"), "alex")
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    assert not any(module.training for module in distance.modules())


@pytest.fixture(scope="module")
def feature_distance():
    torch.manual_seed(0)
    return FeatureDistance(32).train()  # a training's mode does not reach it


def slow_distance(distance, found, expected):
    """Mean over depths and positions of 2 - 2 · cosine."""
    depths = []
    for depth in range(4):
        one, other = (distance.network.maps(images, [depth])[0].double() for images in (found, expected))
        positions = [
            2 - 2 * (one[:, :, row, column] * other[:, :, row, column]).sum(1)
            / (one[:, :, row, column].norm(dim=1) * other[:, :, row, column].norm(dim=1))
            for row in range(one.shape[2])
            for column in range(one.shape[3])
        ]  # fmt: skip
        depths.append(torch.stack(positions).mean(0))
    return torch.stack(depths).mean(0)


def test_distance_in_feature_maps_and_its_gradient_are_those_of_the_formula(feature_distance):
    expected, start = image_pairs()
    gradients = []
    for of in (feature_distance, lambda *images: slow_distance(feature_distance, *images)):
        found = start.clone().requires_grad_()
        distance_B = of(found, expected)
        distance_B.sum().backward()
        gradients.append((distance_B.detach().double(), found.grad))
    (ours_B, ours), (slow_B, slow) = gradients
    torch.testing.assert_close(ours_B, slow_B, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours, slow, rtol=1e-3, atol=1e-4 * slow.abs().max().item())
    # along the gradient the distance grows by its square
    step = 1e-2 / ours.norm()
    with torch.no_grad():
        ahead, behind = (feature_distance(start + sign * step * ours, expected).sum() for sign in (1, -1))
    assert ((ahead - behind) / (2 * step)).item() == pytest.approx(ours.square().sum().item(), rel=0.02)


def test_distance_in_feature_maps_is_zero_for_equal_images_and_takes_grey_ones(feature_distance):
    first, second = image_pairs()
    assert feature_distance(first, first).tolist() == [0.0, 0.0]
    grey = feature_distance(first[:, :1], second[:, :1])
    assert torch.equal(grey, feature_distance(first[:, :1].expand(-1, 3, -1, -1), second[:, :1].expand(-1, 3, -1, -1)))
    assert bool(((grey > 0) & (grey < 4)).all())
    with torch.autocast("cpu", dtype=torch.bfloat16):  # fp32 whatever a step rounds to
        assert torch.equal(feature_distance(first[:, :1], second[:, :1]), grey)


@pytest.mark.parametrize(("side", "seen_at"), [(16, 64), (64, 64), (256, 256)])
def test_small_images_are_enlarged_and_large_ones_seen_as_they_are(side, seen_at):
    distance, images = FeatureDistance(side), torch.rand(1, 1, side, side)
    assert distance.network.input_side == seen_at
    assert distance(images.flip(-1), images).item() > 0
    assert not any(of.requires_grad for of in distance.parameters())
    assert not any(module.training for module in distance.train().network.modules())
