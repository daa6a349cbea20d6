"""Given structure: what is given comes out, masks are balanced, and nothing unusable goes in."""

import pytest
import torch
from hypothesis import given as each
from hypothesis import settings
from hypothesis import strategies as st
from reference_vectors import tiny_generators

from nvg.errors import UserError
from nvg.granularity import StageLayout, check_structure, cluster_latents, spatial_structure, stage_map
from nvg.sampling import (
    SamplingConfig,
    check_given_structure,
    give_contents,
    give_structure,
    label_bend,
    label_structure,
    mask_structure,
    sample,
    score_structure,
)


def own_structure(num_samples=2, num_positions=16):
    return cluster_latents(torch.randn(num_samples, num_positions, 3, generator=torch.Generator().manual_seed(0)))


def draw(given):
    content, structure, dequantizer = tiny_generators()
    return sample(
        content=content,
        structure=structure,
        dequantizer=dequantizer,
        labels_B=torch.tensor([0, 1]),
        sample_indices_B=torch.tensor([0, 1]),
        seed=0,
        config=SamplingConfig(num_flow_steps=2),
        given=given,
    )


def rectangle(rows, columns, size=32):
    """Bool mask whose foreground fills rows × columns of a 4×4 grid, from the upper left corner."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[: rows * size // 4, : columns * size // 4] = True
    return mask


@pytest.mark.parametrize("num_splits", [1, 2, 3, 4])
def test_given_splits_come_out_and_the_rest_is_a_hierarchy(num_splits):
    structure = own_structure()
    drawn = draw(give_structure(structure, num_splits))
    check_structure(drawn.structure_BL)
    assert torch.equal(stage_map(drawn.structure_BL, num_splits, 4), stage_map(structure, num_splits, 4))


@pytest.mark.parametrize("num_contents", [1, 3, 4, 5])
def test_given_contents_come_out_with_the_structure_up_to_the_next_stage(num_contents):
    structure, ids = own_structure(), torch.randint(0, 11, (2, 31), generator=torch.Generator().manual_seed(1))
    drawn = draw(give_contents(ids, structure, num_contents))
    fixed = (1 << num_contents) - 1
    assert torch.equal(drawn.content_ids_BT[:, :fixed], ids[:, :fixed])
    depth = min(num_contents, 4)  # "generate i to K": s_i is given as well
    assert torch.equal(stage_map(drawn.structure_BL, depth, 4), stage_map(structure, depth, 4))
    if num_contents == 5:
        rebuilt = tiny_generators()[2].canvases(ids, structure)
        torch.testing.assert_close(drawn.canvases_BSLC, rebuilt)


@pytest.mark.parametrize("foreground", [0, 1])
@pytest.mark.parametrize(("rows", "columns"), [(4, 2), (2, 4)])
def test_a_balanced_mask_does_not_bend(rows, columns, foreground):
    mask = rectangle(rows, columns)
    balanced = mask_structure(mask, 16, foreground=foreground)
    assert balanced.bend == 0
    inside = mask[4::8, 4::8].flatten()
    assert torch.equal(balanced.structure_L >> 3 == foreground, inside)


@pytest.mark.parametrize(("rows", "columns", "bend"), [(2, 2, 4 / 16), (4, 3, 4 / 16), (4, 1, 4 / 16), (3, 3, 1 / 16)])
def test_the_bend_is_the_share_of_positions_that_changed_side(rows, columns, bend):
    assert mask_structure(rectangle(rows, columns), 16).bend == bend


def test_too_small_a_foreground_grows_and_too_large_a_one_gives_way_at_its_boundary():
    small = mask_structure(rectangle(4, 1), 16).structure_L.view(4, 4) >> 3
    assert small.tolist() == [[1, 1, 0, 0]] * 4
    large = mask_structure(rectangle(4, 3), 16).structure_L.view(4, 4) >> 3
    assert large.tolist() == [[1, 1, 0, 0]] * 4
    corner = torch.zeros(64, 64, dtype=torch.bool)
    corner[:8, :8] = True
    grown = mask_structure(corner, 256).structure_L.view(16, 16) >> 7
    centre = torch.arange(16) + 0.5
    distance = (centre[:, None] ** 2 + centre**2).sqrt()
    assert float(distance[grown == 1].max()) < 13.5  # a quarter of a disc of 128 positions has radius 12.8
    assert float(distance[grown == 0].min()) > 12


@settings(max_examples=30, deadline=None)
@each(seed=st.integers(0, 10_000), side=st.sampled_from([4, 8]), levels=st.sampled_from([2, 3, 256]))
def test_any_mask_becomes_a_hierarchy_and_its_sides_swap_exactly(seed, side, levels):
    mask = torch.randint(0, levels, (2 * side, 2 * side), generator=torch.Generator().manual_seed(seed))
    mask[0, 0], mask[0, 1] = 0, levels - 1
    one, other = (mask_structure(mask, side * side, foreground=foreground) for foreground in (1, 0))
    last = StageLayout(side * side).last_stage
    check_structure(torch.stack([one.structure_L, other.structure_L]))
    assert torch.equal(one.structure_L >> (last - 1), 1 - (other.structure_L >> (last - 1)))
    assert one.bend == other.bend <= 0.5


def test_scores_are_halved_at_every_stage():
    structure = score_structure(torch.arange(16.0).flip(0))
    assert stage_map(structure, 3, 4).tolist() == [7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0]
    check_structure(structure[None])
    with pytest.raises(UserError, match="score is not finite"):
        score_structure(torch.full((16,), torch.nan))


def test_a_label_map_keeps_its_segments_together():
    labels = torch.zeros(16, 16, dtype=torch.int64)
    labels[:, 8:] = 7
    labels[8:, 8:] = 3
    structure = label_structure(labels, 64)
    check_structure(structure[None])
    quarters = stage_map(structure, 2, 6).view(8, 8)
    assert (quarters[:4, 4:] == quarters[0, 4]).all()
    assert (quarters[4:, 4:] == quarters[4, 4]).all()
    assert len({int(quarters[0, 0]), int(quarters[0, 4]), int(quarters[4, 4])}) == 3


@pytest.mark.parametrize(
    ("columns", "num_splits", "bend"),
    [(8, 1, 0), (8, 4, 0), (4, 1, 4 / 16), (12, 1, 4 / 16)],  # of sixteen columns so many have the second label
)
def test_the_bend_of_a_segmentation_is_what_lies_with_another_label(columns, num_splits, bend):
    labels = torch.zeros(16, 16, dtype=torch.int64)
    labels[:, :columns] = 9
    assert label_bend(labels, label_structure(labels, 16), num_splits) == bend


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(8, 8), "all one colour"),
        (torch.zeros(8, 8, dtype=torch.uint8), "all one colour"),
        (torch.eye(3), r"\(3, 3\).*at least 4×4"),
        (torch.ones(8, 4), "square"),
        (torch.ones(8, 8, 3), "square"),
        (torch.full((8, 8), torch.nan), "not finite"),
    ],
)
def test_masks_that_divide_nothing_are_refused(mask, message):
    with pytest.raises(UserError, match=message):
        mask_structure(mask, 16)


def test_label_order_and_single_labels_are_refused():
    with pytest.raises(UserError, match="choose child 0 or 1"):
        mask_structure(torch.eye(8), 16, foreground=2)
    with pytest.raises(UserError, match="one label"):
        label_structure(torch.zeros(8, 8, dtype=torch.int64), 16)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (torch.zeros(1, 16, dtype=torch.int64), "no balanced hierarchy"),
        (torch.arange(16)[None] + 1, "no balanced hierarchy"),
        (torch.arange(16.0)[None], "integers"),
        (torch.arange(64)[None], r"\(1, 64\).*16 positions"),
        (torch.arange(16), "one row"),
    ],
)
def test_structures_that_are_none_are_refused(structure, message):
    with pytest.raises(UserError, match=message):
        check_given_structure(structure, 16)


def test_prefixes_out_of_range_are_refused():
    structure, ids = spatial_structure(16)[None], torch.zeros(1, 31, dtype=torch.int64)
    for num_splits in (0, 5, -1):
        with pytest.raises(UserError, match="1 to 4 splits"):
            give_structure(structure, num_splits)
    for num_contents in (0, 6):
        with pytest.raises(UserError, match="1 to 5 stages of contents"):
            give_contents(ids, structure, num_contents)
    with pytest.raises(UserError, match="no balanced hierarchy"):
        give_structure(torch.zeros(1, 16, dtype=torch.int64), 1)
