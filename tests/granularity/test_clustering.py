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
    clustering,
    greedy_pairs,
    stage_map,
)
from nvg.granularity.clustering import merge_compiled, merge_in_rounds


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
    """Finest map of one latent: pairs, then pairs of pairs, until one cluster is left; float32, channel by channel."""
    means_NC, members_NM = latent_LC.numpy(), np.arange(len(latent_LC))[:, None]
    while len(members_NM) > 1:
        squared_NN = np.zeros((len(means_NC), len(means_NC)), dtype=np.float32)
        for mean_N in means_NC.T:
            squared_NN += (mean_N[:, None] - mean_N) ** 2
        pairs_P2 = np.array(sequential_pairs(torch.from_numpy(np.sqrt(squared_NN))))
        means_NC = (means_NC[pairs_P2[:, 0]] + means_NC[pairs_P2[:, 1]]) * np.float32(0.5)
        members_NM = members_NM[pairs_P2].reshape(len(pairs_P2), -1)
    return torch.from_numpy(members_NM[0].argsort())


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


def half_constant_latents(number: int, num_positions: int, generator: torch.Generator) -> Tensor:
    """White backgrounds: the first half, the last half or every other position is alike."""
    latent = random_latents(number, num_positions, generator)
    half = num_positions // 2
    for row, alike in enumerate(slice(*bounds) for bounds in [(half,), (half, None), (0, None, 2)] * number):
        if row < number:
            latent[row, alike] = latent[row, alike][:1]
    return latent


def hub_latents(number: int, num_positions: int, generator: torch.Generator) -> Tensor:
    """Late positions are near to everything, so that the nearest of most rows is gone again and again."""
    distance_L1 = torch.linspace(10, 1, num_positions)[:, None]
    return distance_L1 * F.normalize(random_latents(number, num_positions, generator), dim=2)


LATENTS = [random_latents, smooth_latents, tied_latents, constant_latents, half_constant_latents, hub_latents]


def test_reference_maps_agree_label_by_label():
    data = vectors("structure_maps")
    leaf = cluster_latents(data["points"])
    assert torch.equal(leaf, data["leaf"].long())
    for stage in range(9):
        assert torch.equal(stage_map(leaf, stage, 8), data["maps"][:, stage])


@pytest.mark.parametrize("latents", LATENTS)
def test_equals_the_sequential_greedy_loop(latents):
    """250 inputs of each kind, on three grids: one answer, label by label, of the compiled and the batched way."""
    generator = torch.Generator().manual_seed(0)
    for num_positions, number in ((16, 180), (64, 64), (256, 6)):
        latent = latents(number, num_positions, generator)
        expected = torch.stack([sequential_map(image) for image in latent])
        assert torch.equal(cluster_latents(latent), expected)
        for merge in (merge_compiled, merge_in_rounds):
            members = merge(latent.contiguous(), StageLayout(num_positions).last_stage)
            assert torch.equal(members[:, 0].argsort(1), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("latents", LATENTS)
def test_gpu_finds_the_maps_of_the_cpu(latents):
    latent = latents(32, 256, torch.Generator().manual_seed(0))
    assert torch.equal(cluster_latents(latent.cuda()).cpu(), cluster_latents(latent))


def test_distances_are_those_of_the_library():
    points = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(5))
    expected = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(clustering._distances(points), expected)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_number_of_threads_changes_nothing(num_threads):
    latent = random_latents(7, 64, torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        found = merge_compiled(latent, 6)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, merge_in_rounds(latent, 6))


def test_without_numba_the_batched_way_is_taken(monkeypatch):
    monkeypatch.setattr(clustering, "find_spec", lambda name: None)
    clustering._compiled_merge.cache_clear()
    monkeypatch.setattr(clustering, "merge_compiled", None)
    latent = random_latents(3, 64, torch.Generator().manual_seed(4))
    try:
        found = cluster_latents(latent)
    finally:
        clustering._compiled_merge.cache_clear()
    assert torch.equal(found, torch.stack([sequential_map(image) for image in latent]))


def test_a_batch_without_images_has_no_maps():
    assert cluster_latents(torch.zeros(0, 16, 3)).shape == (0, 16)


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 3e38])
def test_latents_that_cannot_be_compared_are_refused(value):
    latent = torch.randn(2, 16, 3)
    latent[1, 0, 0] = value
    with pytest.raises(UserError, match=r"finite|overflow"):
        cluster_latents(latent)
    if np.isfinite(value):
        for merge in (merge_compiled, merge_in_rounds):
            with pytest.raises(UserError, match="overflow float32"):
                merge(latent, 4)


@pytest.mark.parametrize("exponent", [-148, -126, -100, -70, -64, -20, 0, 40])
def test_latents_of_any_size_have_the_maps_of_their_shape(exponent):
    """Multiplied by a power of two nothing is rounded, so nothing may change: squares of 1e-20 are 0 in float32."""
    latent = torch.randint(-(1 << 11), 1 << 11, (4, 64, 3), generator=torch.Generator().manual_seed(8)).double()
    scaled = (latent * 2.0**exponent).float()
    assert torch.equal(scaled.double(), latent * 2.0**exponent)
    assert torch.equal(cluster_latents(scaled), cluster_latents(latent.float()))
    assert torch.equal(cluster_halves(scaled), cluster_halves(latent.float()))


def test_ordinary_latents_beside_tiny_differences_are_no_ties():
    """One background but for a channel of 1e-21: greedy pairs what is nearest in it, not what comes first."""
    small = torch.randn(1, 16, 1, generator=torch.Generator().manual_seed(9))
    latent = torch.cat([small * 1e-21, torch.ones(1, 16, 2)], dim=2)
    assert torch.equal(cluster_latents(latent), cluster_latents(small))
    assert cluster_latents(latent).tolist() != [list(range(16))]


def test_ordinary_latents_are_compared_as_they_are():
    for latents in LATENTS:
        latent = latents(12, 64, torch.Generator().manual_seed(10)).contiguous()
        assert torch.equal(cluster_latents(latent), merge_in_rounds(latent, 6)[:, 0].argsort(1))


@pytest.mark.parametrize("num_levels_above", [0, 1, 2, 3])
def test_halves_of_a_cluster_are_its_children_in_the_whole_map(num_levels_above):
    latent = torch.randn(6, 16, 3, generator=torch.Generator().manual_seed(7))
    leaf = cluster_latents(latent)
    for row, image in zip(leaf, latent, strict=True):
        for parent in range(1 << num_levels_above):
            members = (row >> (4 - num_levels_above) == parent).nonzero().flatten()
            children = (row[members] >> (3 - num_levels_above)) & 1
            assert torch.equal(cluster_halves(image[None, members])[0], children)
