"""Computing blocks again, or compiling them, changes no number that matters."""

from typing import Any

import pytest
import torch

from nvg.errors import UserError
from nvg.models import ContentGenerator, ContentGeneratorConfig
from nvg.randomness import Purpose, uniforms

SIZE: dict[str, Any] = {
    "depth": 3,
    "width": 64,
    "num_classes": 10,
    "num_positions": 16,
    "latent_channels": 4,
    "codebook_size": 16,
}


def gradients(change, depth=3):
    torch.manual_seed(0)
    network = ContentGenerator(ContentGeneratorConfig(**{**SIZE, "depth": depth}, drop_path_rate=1.0))
    change(network)
    canvas, stage = torch.randn(6, 16, 4), torch.arange(6) % 5
    structure = torch.stack([torch.randperm(16) for _ in range(6)])
    drop_path = uniforms(0, 0, Purpose.TRAIN_DROP_PATH, 0, (6, depth)).float()
    loss = network(canvas, structure, stage, stage, drop_path).square().mean()
    loss.backward()
    return {"loss": loss.detach(), **{name: value.grad for name, value in network.named_parameters()}}


def recompute(network):
    network.trunk.recompute_activations = True


def test_blocks_computed_again_give_the_same_gradients_bitwise():
    plain, again = gradients(lambda network: None), gradients(recompute)
    for name, value in plain.items():
        assert value is None or torch.equal(value, again[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_compiled_blocks_give_the_same_gradients(backend):
    """Inductor generates and compiles C++, a minute's work; the graphs it is given are the same."""

    def compiled(network):
        for block in network.trunk.blocks:
            block.compile(backend=backend)
        assert set(network.state_dict()) == names  # no prefix: checkpoints stay what they are

    names = set(ContentGenerator(ContentGeneratorConfig(**{**SIZE, "depth": 1})).state_dict())
    plain, found = gradients(lambda network: None, depth=1), gradients(compiled, depth=1)
    for name, value in plain.items():
        assert value is None or torch.allclose(value, found[name], rtol=1e-4, atol=1e-6), name


def test_blocks_that_cannot_be_compiled_name_the_key_to_change():
    def no_compiler(graph, inputs):
        raise OSError("no C++ compiler")

    def compiled(network):
        network.trunk.compile_blocks()
        for block in network.trunk.blocks:
            block.compile(backend=no_compiler)

    with pytest.raises(UserError, match=r"cannot be compiled.*compute.compile"):
        gradients(compiled, depth=1)
