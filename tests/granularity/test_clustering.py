import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_vectors import vectors
from torch import Tensor

from nvg.errors import UserError
from nvg.granularity import (
    StageLayout,
    check_structure,
    cluster_halves,
    cluster_latents,
    greedy_pairs,
    stage_map,
)


def sequential_pairs(distance_NN: Tensor) -> list[list[int]]:
    """Greedy as the paper writes it: one global minimum after the other, ties by (distance, i, j), i < j."""
    number = len(distance_NN)
    open_NN = np.where(np.tri(number, dtype=bool), np.inf, distance_NN.numpy())
    pairs = []
    for _ in range(number // 2):
        i, j = divmod(int(open_NN.argmin()), number)
        pairs.append([i, j])
        open_NN[[i, j]] = open_NN[:, [i, j]] = np.inf
    return pairs


def sequential_map(latent_LC: Tensor) -> Tensor:
    """Finest map of one latent: pairs, then pairs of pairs, until one cluster is left."""
    members_NM = torch.arange(len(latent_LC))[:, None]
    while len(members_NM) > 1:
        means_NC = latent_LC[members_NM].mean(1)
        distance_NN = torch.cdist(means_NC, means_NC, compute_mode="donot_use_mm_for_euclid_dist")
        members_NM = members_NM[torch.tensor(sequential_pairs(distance_NN))].flatten(1)
    return members_NM[0].argsort()


def random_latents(number: int, num_positions: int, generator: torch.Generator) -> Tensor:
    return torch.randn(number, num_positions, 8, generator=generator)


def smooth_latents(number: int, num_positions: int, generator: torch.Generator) -> Tensor:
    coarse = torch.randn(number, 8, 2, 2, generator=generator)
    side = StageLayout(num_positions).side
    fine = F.interpolate(coarse, size=(side, side), mode="bicubic").flatten(2).transpose(1, 2)
    return fine + 0.05 * random_latents(number, num_positions, generator)


def tied_latents(number: int, num_positions: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 3, (number, num_positions, 2), generator=generator).float()


def constant_latents(number: int, num_positions: int, generator: torch.Generator) -> Tensor:
    return torch.randn(number, 1, 3, generator=generator).expand(-1, num_positions, -1)


def test_reference_maps_agree_label_by_label():
    data = vectors("structure_maps")
    leaf = cluster_latents(data["points"])
    assert torch.equal(leaf, data["leaf"].long())
    for stage in range(9):
        assert torch.equal(stage_map(leaf, stage, 8), data["maps"][:, stage])


@pytest.mark.parametrize("latents", [random_latents, smooth_latents, tied_latents, constant_latents])
def test_equals_the_sequential_greedy_loop(latents):
    """250 inputs of each kind, on three grids."""
    generator = torch.Generator().manual_seed(0)
    for num_positions, number in ((16, 180), (64, 64), (256, 6)):
        latent = latents(number, num_positions, generator)
        assert torch.equal(cluster_latents(latent), torch.stack([sequential_map(image) for image in latent]))


@pytest.mark.parametrize("num_positions", [4, 16, 64, 256, 1024])
def test_every_stage_is_balanced(num_positions):
    leaf = cluster_latents(torch.randn(2, num_positions, 5, generator=torch.Generator().manual_seed(0)))
    check_structure(leaf)
    layout = StageLayout(num_positions)
    for stage in range(layout.num_stages):
        counts = torch.bincount(stage_map(leaf, stage, layout.last_stage)[0])
        assert counts.tolist() == [num_positions >> stage] * (1 << stage)


def test_constant_latents_pair_in_raster_order():
    leaf = cluster_latents(torch.zeros(1, 64, 3))
    assert leaf.tolist() == [list(range(64))]


def test_rows_do_not_depend_on_their_batch():
    latent = torch.randn(5, 64, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(cluster_latents(latent)[3:4], cluster_latents(latent[3:4]))


def test_pairs_come_in_greedy_order():
    points = torch.randn(1, 32, 2, generator=torch.Generator().manual_seed(2))
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    assert greedy_pairs(distance)[0].tolist() == sequential_pairs(distance[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_latents_that_cannot_be_compared_are_refused(value):
    latent = torch.randn(2, 16, 3)
    latent[1, 0, 0] = value
    with pytest.raises(UserError, match=r"finite|overflow"):
        cluster_latents(latent)


@pytest.mark.parametrize("num_levels_above", [0, 1, 2, 3])
def test_halves_of_a_cluster_are_its_children_in_the_whole_map(num_levels_above):
    latent = torch.randn(6, 16, 3, generator=torch.Generator().manual_seed(7))
    leaf = cluster_latents(latent)
    for row, image in zip(leaf, latent, strict=True):
        for parent in range(1 << num_levels_above):
            members = (row >> (4 - num_levels_above) == parent).nonzero().flatten()
            children = (row[members] >> (3 - num_levels_above)) & 1
            assert torch.equal(cluster_halves(image[None, members])[0], children)
