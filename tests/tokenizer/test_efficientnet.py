"""EfficientNet-Lite0 as a frozen network: what it is shown, what it gives, and where gradients go."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nvg.errors import UserError
from nvg.tokenizer import EfficientNetFeatures
from nvg.tokenizer.efficientnet import MAP_CHANNELS, NUM_FEATURES


@pytest.fixture(scope="module")
def network() -> EfficientNetFeatures:
    torch.manual_seed(0)
    return EfficientNetFeatures(input_side=64)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_images_arrive_as_bytes_minus_127_over_128(network) -> None:
    levels = torch.arange(256.0).repeat(16).reshape(1, 1, 64, 64)
    seen = []
    hook = network.backbone.conv_stem.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    network(levels / 127.5 - 1)
    hook.remove()
    assert torch.allclose(seen[0], ((levels - 127) / 128).expand(-1, 3, -1, -1), atol=1e-6)


def test_features_of_any_side_grey_or_colour(network, images) -> None:
    found = network(images)
    assert found.shape == (2, NUM_FEATURES)
    assert found.dtype == torch.float32
    grey = images[:, :1]
    assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))
    assert network(images[..., :17, :17]).shape == (2, NUM_FEATURES)
    assert torch.allclose(
        network(torch.full((1, 1, 16, 16), 0.25)), network(torch.full((1, 1, 300, 300), 0.25)), atol=1e-5
    )
    with pytest.raises(UserError, match="input_side is 16; expected 32 or more"):
        EfficientNetFeatures(input_side=16)


def test_maps_are_those_inside_the_network(network, images) -> None:
    wanted = {0: "blocks.0", 1: "blocks.1", 2: "blocks.2", 3: "blocks.4", 4: "blocks.6"}
    inside, hooks = {}, []
    for depth, name in wanted.items():
        keep = lambda module, given, found, depth=depth: inside.update({depth: found.clone()})  # noqa: E731
        hooks.append(network.backbone.get_submodule(name).register_forward_hook(keep))
    features = network(images)
    for hook in hooks:
        hook.remove()
    maps = network.maps(images, [0, 1, 2, 3, 4])
    for depth, found in enumerate(maps):
        assert found.shape == (2, MAP_CHANNELS[depth], 32 >> depth, 32 >> depth)
        assert torch.equal(found, inside[depth])
    assert torch.equal(network.maps(images, [1, 3])[1], maps[3])
    head = network.backbone.bn2(network.backbone.conv_head(maps[4]))
    assert torch.allclose(features, head.mean(dim=(2, 3)), atol=1e-6)


def test_gradients_reach_the_image_and_no_weight(network, images) -> None:
    network.train()
    assert not any(module.training for module in network.modules())  # its statistics stay ImageNet's
    shown = images[:1].requires_grad_()
    network(shown).square().mean().backward()
    assert shown.grad is not None
    assert all(weight.grad is None for weight in network.parameters())
    # uphill along the gradient, by about what it says
    step = 1e-3 * shown.grad / shown.grad.norm()
    with torch.no_grad():
        gained = network(shown + step).square().mean() - network(shown - step).square().mean()
    assert float(gained) == pytest.approx(2e-3 * float(shown.grad.norm()), rel=0.05)


def test_folded_it_is_the_same_network(images) -> None:
    torch.manual_seed(0)
    plain = EfficientNetFeatures(input_side=64)
    norms = [part for part in plain.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:  # as after a training: no two alike
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert values is not None
            nn.init.uniform_(values, 0.5, 1.5)
    plain = plain.double()
    folded = copy.deepcopy(plain)
    folded.fold()
    assert len(norms) == 49
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    convolutions = [part.weight for part in folded.backbone.modules() if isinstance(part, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)
    shown = images.double().requires_grad_()
    depths = range(len(MAP_CHANNELS))
    for network in (plain, folded):
        network._prepared = lambda images_BCSS: images_BCSS  # `forward` is of float32
    wanted, found = (network.maps(shown, depths) for network in (plain, folded))
    assert all(torch.allclose(*pair, rtol=1e-9, atol=1e-9) for pair in zip(found, wanted, strict=True))
    losses = (torch.stack([part.square().mean() for part in maps]).sum() for maps in (wanted, found))
    slopes = [torch.autograd.grad(loss, shown)[0] for loss in losses]
    assert torch.allclose(*slopes, rtol=1e-7, atol=1e-12)
    assert torch.allclose(folded(shown), plain(shown), rtol=1e-9, atol=1e-9)
    assert all(weight.grad is None and not weight.requires_grad for weight in folded.parameters())
