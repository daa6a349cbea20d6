import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvg.errors import UserError
from nvg.granularity import (
    StageLayout,
    balanced_split,
    check_structure,
    cluster_mean,
    cluster_means,
    counted_mean,
    place,
    place_all,
    raster_split,
    spatial_structure,
    stage_map,
    structure_embedding,
    structure_from_embedding,
)

LEAF = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(row)) for row in range(3)])


def test_embedding_of_figure_3():
    """Position with path 1, 0 at stage 2 of a K = 4 hierarchy: 2 0 1 1."""
    structure = torch.arange(16)[None]
    assert structure_embedding(structure, 0, 4)[0, 9].tolist() == [1, 1, 1, 1]
    assert structure_embedding(structure, 2, 4)[0, 9].tolist() == [2, 0, 1, 1]
    assert structure_embedding(structure, 4, 4)[0, 9].tolist() == [2, 0, 0, 2]


@settings(max_examples=40, deadline=None)
@given(last_stage=st.sampled_from([4, 6, 8, 10]), seed=st.integers(0, 10_000))
def test_equation_7_inverts_equation_6(last_stage, seed):
    """Both equations as the paper writes them, at every stage and for every label of it."""
    leaf = torch.randperm(1 << last_stage, generator=torch.Generator().manual_seed(seed))[None]
    for stage in range(last_stage + 1):
        label, embedding = stage_map(leaf, stage, last_stage), structure_embedding(leaf, stage, last_stage)
        assert sorted(set(label[0].tolist())) == list(range(1 << stage))
        for j in range(last_stage):
            written = 2 * ((label // 2 ** (stage - 1 - j)) % 2) if j < stage else torch.ones_like(label)
            assert torch.equal(embedding[..., j], written)
        weights = torch.tensor([2.0 ** (stage - j - 2) for j in range(stage)])
        assert torch.equal((embedding[..., :stage] * weights).sum(-1), label.float())
        assert torch.equal(structure_from_embedding(embedding), label << (last_stage - stage))


def test_stage_can_differ_by_row():
    stages = torch.tensor([0, 3, 6])
    rows = structure_embedding(LEAF, stages, 6)
    for row, stage in enumerate(stages.tolist()):
        assert torch.equal(rows[row], structure_embedding(LEAF[row : row + 1], stage, 6)[0])


@pytest.mark.parametrize("stage", range(7))
def test_pooling_equals_a_loop_and_inverts_placing(stage):
    values = torch.randn(3, 64, 2, generator=torch.Generator().manual_seed(9))
    pooled = cluster_mean(values, LEAF, stage)
    labels = stage_map(LEAF, stage, 6)
    for row in range(3):
        for cluster in range(1 << stage):
            torch.testing.assert_close(pooled[row, cluster], values[row][labels[row] == cluster].mean(0))
    torch.testing.assert_close(cluster_mean(place(pooled, LEAF, stage), LEAF, stage), pooled)


@pytest.mark.parametrize("num_positions", [16, 64, 256])
def test_means_of_mixed_stages_are_those_of_each_stage_to_the_bit(num_positions):
    """Stage 1 has no sequence; values and gradients are compared."""
    generator = torch.Generator().manual_seed(num_positions)
    last_stage = num_positions.bit_length() - 1
    stages = torch.tensor([last_stage, 0, 2, last_stage, 2, 0, last_stage - 1, 3])
    maps = torch.stack([torch.randperm(num_positions, generator=generator) for _ in stages])
    values = torch.randn(len(stages), num_positions, 3, generator=generator, requires_grad=True)
    order = stages.argsort(stable=True)
    means = cluster_means(values, maps, stages, order, torch.bincount(stages).tolist())
    alone = [cluster_mean(values[row : row + 1], maps[row : row + 1], int(stages[row]))[0] for row in order]
    assert torch.equal(means, torch.cat(alone))
    weights = torch.randn(means.shape, generator=generator)
    gradients = [torch.autograd.grad((found * weights).sum(), values)[0] for found in (means, torch.cat(alone))]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("num_positions", [4, 16, 256])
def test_placing_all_stages_is_placing_each(num_positions):
    generator = torch.Generator().manual_seed(0)
    layout = StageLayout(num_positions)
    maps = torch.stack([torch.randperm(num_positions, generator=generator) for _ in range(3)])
    ids = torch.randint(0, 1000, (3, layout.num_tokens), generator=generator)
    placed = place_all(ids, maps)
    assert placed.shape == (3, layout.num_stages, num_positions)
    for stage in range(layout.num_stages):
        assert torch.equal(placed[:, stage], place(ids[:, layout.tokens(stage), None], maps, stage)[..., 0])


def test_pooling_reads_known_splits_only():
    values = torch.randn(3, 64, 2)
    known = (LEAF >> 4) << 4
    torch.testing.assert_close(cluster_mean(values, known, 2), cluster_mean(values, LEAF, 2))


def test_balanced_split_takes_the_top_half_of_every_parent():
    score = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    known = (LEAF >> 4) << 4
    split = stage_map(balanced_split(known, score, 2, 6), 3, 6)
    assert torch.equal(split >> 1, LEAF >> 4)
    for parent in range(4):
        mine = (LEAF >> 4)[0] == parent
        assert score[0][mine & (split[0] % 2 == 1)].min() >= score[0][mine & (split[0] % 2 == 0)].max()


def test_equal_scores_prefer_the_lower_position():
    split = balanced_split(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4), 0, 2)
    assert stage_map(split, 1, 2).tolist() == [[1, 1, 0, 0]]


def test_last_split_follows_the_raster_order():
    full = raster_split((LEAF >> 1) << 1, 6)
    check_structure(full)
    for row in range(3):
        position_of = full[row].argsort()
        assert bool((position_of[0::2] < position_of[1::2]).all())


def test_repeated_splits_rebuild_a_map():
    rebuilt = torch.zeros_like(LEAF)
    for stage in range(6):
        rebuilt = balanced_split(rebuilt, ((LEAF >> (5 - stage)) & 1).float(), stage, 6)
    assert torch.equal(rebuilt, LEAF)


def test_spatial_structure_halves_rows_then_columns():
    structure = spatial_structure(16).view(4, 4)
    assert (structure >> 3).tolist() == [[0] * 4] * 2 + [[1] * 4] * 2
    assert ((structure >> 2) & 1).tolist() == [[0, 0, 1, 1]] * 4
    check_structure(spatial_structure(256)[None])


def test_layout_counts_tokens_and_refuses_odd_grids():
    layout = StageLayout(256)
    assert (layout.last_stage, layout.num_tokens, layout.side) == (8, 511, 16)
    assert [layout.tokens(stage).stop - layout.tokens(stage).start for stage in range(9)] == [1 << i for i in range(9)]
    with pytest.raises(UserError, match="num_positions is 36; expected one of 4, 16, 64, 256, 1024, 4096, 16384,"):
        StageLayout(36)


def test_unbalanced_map_is_refused():
    with pytest.raises(UserError, match="no permutation"):
        check_structure(torch.zeros(1, 16, dtype=torch.int64))


@pytest.mark.parametrize("stage", [0, 2, 4])
def test_means_of_what_counts_leave_the_rest_out(stage):
    generator = torch.Generator().manual_seed(stage)
    values_BLC = torch.randn(5, 16, 3, generator=generator)
    structure_BL = torch.stack([torch.randperm(16, generator=generator) for _ in range(5)])
    counted_BL = torch.rand(5, 16, generator=generator) < 0.4
    found_BUC = counted_mean(values_BLC, counted_BL, structure_BL, stage)
    for row in range(5):
        for cluster in range(1 << stage):
            members_L = structure_BL[row] >> (4 - stage) == cluster
            chosen_L = members_L & counted_BL[row] if (members_L & counted_BL[row]).any() else members_L
            torch.testing.assert_close(found_BUC[row, cluster], values_BLC[row, chosen_L].mean(0))
    for all_or_none_BL in (torch.ones_like(counted_BL), torch.zeros_like(counted_BL)):
        found_BUC = counted_mean(values_BLC, all_or_none_BL, structure_BL, stage)
        assert torch.equal(found_BUC, cluster_mean(values_BLC, structure_BL, stage))
