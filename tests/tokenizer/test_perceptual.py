"""LPIPS gives the numbers of its authors' package (lpips 0.1.4), trunk weights drawn here."""

import pytest
import torch
from torchvision.models import alexnet, vgg16

from nvg.checkpoints import load_perceptual_distance

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
