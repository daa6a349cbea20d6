import pytest
import torch
from switched_networks import CONTENT_SWITCHES, STRUCTURE_SWITCHES, switched
from tiny_networks import draw
from torch import nn

from nvg.granularity import StageLayout, check_structure, structure_embedding
from nvg.randomness import Purpose, normals
from nvg.sampling import integrate_flow
from nvg.sampling.noise import SampleNoise


@pytest.mark.parametrize(
    ("content", "structure"), [(c, {}) for c in CONTENT_SWITCHES] + [({}, s) for s in STRUCTURE_SWITCHES[1:]]
)
def test_a_sample_is_the_same_in_every_batch(content, structure):
    networks = switched(content=content, structure=structure)
    together = draw(networks, list(range(6)))
    check_structure(together.structure_BL)
    for indices in ([4], [1, 4, 5]):
        alone, row = draw(networks, indices), indices.index(4)
        assert torch.equal(alone.content_ids_BT[row], together.content_ids_BT[4])
        assert torch.equal(alone.structure_BL[row], together.structure_BL[4])


def test_canvas_noise_is_new_at_every_stage_and_belongs_to_the_sample():
    cpu = torch.device("cpu")
    noise = SampleNoise.draw(3, torch.tensor([5, 9]), StageLayout(16), cpu, canvas_channels=4).canvas_BSLC
    assert noise is not None
    assert noise.shape == (2, 5, 16, 4)
    assert not torch.equal(noise[:, 0], noise[:, 1])
    assert torch.equal(noise[1, 1], normals(3, 9, Purpose.CANVAS_NOISE, 1, (16, 4)))


class Seen(nn.Module):
    """Keeps what the flow hands to the network, and answers with a velocity of ones."""

    def __init__(self, like):
        super().__init__()
        self.layout, self.null_class, self.inputs = like.layout, like.null_class, []

    def condition(self, *_):
        return None

    def with_class(self, *_):
        return None

    def velocity(self, noisy, time, condition):
        self.inputs.append(noisy)
        return torch.ones_like(noisy)


@pytest.mark.parametrize("known_clean", [True, False])
def test_known_channels_are_reset_only_where_they_are_clean(known_clean):
    _, structure, _ = switched()
    maps = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(row)) for row in range(2)])
    known = (maps >> 2) << 2
    clean = (structure_embedding(known, 2, 4) - 1).float()
    start, network = torch.randn(2, 16, 4), Seen(structure)
    landed = integrate_flow(
        network,  # pyright: ignore[reportArgumentType]
        start,
        torch.zeros(2, 16, 4),
        known,
        torch.tensor([0, 1]),
        stage=2,
        guidance_scale=1.0,
        num_steps=3,
        known_clean=known_clean,
    )
    assert torch.equal(network.inputs[0][..., 2:], start[..., 2:])
    assert torch.equal(network.inputs[0][..., :2], clean[..., :2] if known_clean else start[..., :2])
    assert torch.equal(landed[..., :2], clean[..., :2]) == known_clean
    torch.testing.assert_close(landed[..., 2:], start[..., 2:] - 1.0)
