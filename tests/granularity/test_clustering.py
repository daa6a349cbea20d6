import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_vectors import vectors

from nvg.errors import UserError
from nvg.granularity import (
    StageLayout,
    check_structure,
    cluster_halves,
    cluster_latents,
    greedy_pairs,
    stage_map,
)


def slow_pairs(distance_NN: torch.Tensor) -> list[tuple[int, int]]:
    """Greedy as the paper writes it: one global minimum after the other, ties by (distance, i, j)."""
    free, pairs = set(range(len(distance_NN))), []
    while free:
        _, i, j = min((float(distance_NN[i, j]), i, j) for i in free for j in free if i < j)
        pairs.append((i, j))
        free -= {i, j}
    return pairs


def slow_cluster(latent_LC: torch.Tensor) -> list[int]:
    """Finest map of one latent, by loops."""
    members = [[position] for position in range(len(latent_LC))]
    while len(members) > 1:
        means = torch.stack([latent_LC[m].mean(0) for m in members])
        distance = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
        members = [members[i] + members[j] for i, j in slow_pairs(distance)]
    leaf = [0] * len(latent_LC)
    for number, position in enumerate(members[0]):
        leaf[position] = number
    return leaf


def test_reference_maps_agree_label_by_label():
    data = vectors("structure_maps")
    leaf = cluster_latents(data["points"])
    assert torch.equal(leaf, data["leaf"].long())
    for stage in range(9):
        assert torch.equal(stage_map(leaf, stage, 8), data["maps"][:, stage])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), side=st.sampled_from([2, 4]), levels=st.sampled_from([2, 3, 1000]))
def test_equals_the_slow_greedy_loop_with_and_without_ties(seed, side, levels):
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randint(0, levels, (2, side * side, 3), generator=generator).float()
    assert cluster_latents(latent).tolist() == [slow_cluster(image) for image in latent]


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
    assert greedy_pairs(distance)[0].tolist() == [list(pair) for pair in slow_pairs(distance[0])]


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
