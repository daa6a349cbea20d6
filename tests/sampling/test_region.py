"""A kept region: the picture outside at every stage, a hierarchy everywhere, and free samples where nothing is kept."""

from dataclasses import replace

import pytest
import tiny_networks
import torch
from hypothesis import given as each
from hypothesis import settings
from hypothesis import strategies as st
from reference_vectors import tiny_generators
from switched_networks import switched

from nvg.errors import UserError
from nvg.granularity import StageLayout, balanced_split, check_structure, cluster_latents, raster_split, stage_map
from nvg.sampling import Given, keep_region, kept_positions, sampler
from nvg.tokenizer import quantize_ids

GUMBEL = replace(tiny_networks.FEW_STEPS, gumbel_split=True)
TOP_HALF = replace(tiny_networks.FEW_STEPS, gumbel_split=False)


def networks_of(num_positions=16):
    networks = tiny_generators(num_positions=num_positions)
    for network in networks:
        network.requires_grad_(False)
    return networks


def region_of(keep_BL, networks, seed=0):
    """A region of random pictures, one a row."""
    dequantizer = networks[2]
    generator = torch.Generator().manual_seed(seed)
    latent_BLC = torch.randn(*keep_BL.shape, dequantizer.config.latent_channels, generator=generator)
    structure_BL = cluster_latents(latent_BLC)
    return keep_region(keep_BL, quantize_ids(latent_BLC, structure_BL, dequantizer), structure_BL, dequantizer)


def random_keep(count, num_positions=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    share_B1 = torch.rand(count, 1, generator=generator)
    return torch.rand(count, num_positions, generator=generator) < share_B1


def same(one, other):
    return all(torch.equal(ours, theirs) for ours, theirs in zip(vars(one).values(), vars(other).values(), strict=True))


@pytest.mark.parametrize("config", [GUMBEL, TOP_HALF], ids=["gumbel", "top_half"])
def test_nothing_kept_is_a_free_sample_to_the_bit(config):
    networks = networks_of()
    region = region_of(torch.zeros(5, 16, dtype=torch.bool), networks)
    drawn = tiny_networks.draw(networks, range(5), config=config, given=Given(region=region))
    assert same(drawn, tiny_networks.draw(networks, range(5), config=config))


def test_edits_have_a_guidance_of_their_own_at_every_stage_and_free_samples_do_not_see_it():
    networks = networks_of()
    rising = replace(TOP_HALF, content_guidance=2.0, structure_guidance=1.0)
    own = replace(rising, edit_guidance=5.0)
    flat = replace(rising, content_guidance=5.0, structure_guidance=5.0, constant_guidance=True)
    content = replace(flat, structure_guidance=1.0)
    region = Given(region=region_of(random_keep(6), networks))
    edits = [
        tiny_networks.draw(networks, range(6), config=config, given=region) for config in (own, flat, rising, content)
    ]
    assert same(edits[0], edits[1])
    assert not any(same(edits[0], other) for other in edits[2:])
    assert same(*(tiny_networks.draw(networks, range(6), config=config) for config in (own, rising)))


@pytest.mark.parametrize("num_positions", [16, 64, 256])
def test_all_kept_is_the_reconstruction_to_the_bit(num_positions):
    networks = networks_of(num_positions)
    region = region_of(torch.ones(3, num_positions, dtype=torch.bool), networks)
    drawn = tiny_networks.draw(networks, range(3), given=Given(region=region))
    assert torch.equal(drawn.structure_BL, region.structure_BL)
    assert torch.equal(drawn.canvases_BSLC, region.canvases_BSLC)
    assert torch.equal(drawn.canvases_BSLC, networks[2].canvases(drawn.content_ids_BT, drawn.structure_BL))


@pytest.mark.parametrize("config", [GUMBEL, TOP_HALF], ids=["gumbel", "top_half"])
@pytest.mark.parametrize("num_positions", [16, 64])
def test_outside_every_stage_is_the_pictures_and_inside_something_else(num_positions, config):
    networks, keep_BL = networks_of(num_positions), random_keep(8, num_positions)
    region = region_of(keep_BL, networks)
    drawn = tiny_networks.draw(networks, range(8), config=config, given=Given(region=region))
    for stage in range(StageLayout(num_positions).num_stages):
        assert torch.equal(drawn.canvases_BSLC[:, stage][keep_BL], region.canvases_BSLC[:, stage][keep_BL])
    last_BLC, own_BLC = drawn.canvases_BSLC[:, -1], region.canvases_BSLC[:, -1]
    assert not (last_BLC[~keep_BL] == own_BLC[~keep_BL]).all(-1).any()


@each(seed=st.integers(0, 10_000), num_positions=st.sampled_from([16, 64, 256]))
@settings(max_examples=30, deadline=None)
def test_splits_follow_the_picture_outside_whatever_the_scores(seed, num_positions):
    """By induction: the picture's own halves have room for their positions outside, so the balance never forbids it."""
    layout, generator = StageLayout(num_positions), torch.Generator().manual_seed(seed)
    keep_BL = random_keep(3, num_positions, seed)
    region = region_of(keep_BL, networks_of(num_positions), seed)
    structure_BL = torch.zeros(3, num_positions, dtype=torch.int64)
    for stage in range(layout.num_structure_stages):
        scores_BL = region.score(torch.randn(3, num_positions, generator=generator), stage)
        structure_BL = balanced_split(structure_BL, scores_BL, stage, layout.last_stage)
        ours, theirs = (stage_map(maps, stage + 1, layout.last_stage) for maps in (structure_BL, region.structure_BL))
        assert torch.equal(ours[keep_BL], theirs[keep_BL])
    check_structure(raster_split(structure_BL, layout.last_stage))


def test_inside_the_highest_scores_fill_what_the_halves_lack():
    """One split of 16 positions of which 12 are kept: of the four inside as many go up as the picture had there."""
    networks = networks_of()
    keep_BL = torch.arange(16)[None] >= 4
    region = region_of(keep_BL, networks)
    missing = 8 - int((region.structure_BL[keep_BL] >> 3).sum())
    scores_BL = torch.cat([torch.tensor([0.1, 0.4, 0.3, 0.2]), torch.randn(12)])[None]
    split_BL = balanced_split(torch.zeros(1, 16, dtype=torch.int64), region.score(scores_BL, 0), 0, 4) >> 3
    assert [1, 2, 3, 0][:missing] == sorted(split_BL[0, :4].nonzero().flatten().tolist(), key=[1, 2, 3, 0].index)


def test_clusters_wholly_outside_keep_their_contents_and_only_they_must():
    networks, keep_BL = networks_of(), random_keep(40)
    region = region_of(keep_BL, networks)
    drawn = tiny_networks.draw(networks, range(40), given=Given(region=region))
    layout, kept_clusters = StageLayout(16), 0
    for stage in range(layout.num_stages):
        cluster_BL = stage_map(drawn.structure_BL, stage, 4)
        ids_BU = drawn.content_ids_BT[:, layout.tokens(stage)]
        for row in range(40):
            for cluster in range(1 << stage):
                members = cluster_BL[row] == cluster
                if keep_BL[row][members].all():
                    assert (region.content_ids_BSL[row, stage][members] == ids_BU[row, cluster]).all()
                    kept_clusters += 1
    assert kept_clusters > 40


def test_inside_the_canvas_is_what_the_stages_paint_one_after_the_other():
    """Against the rule written out: paint the stage as anywhere, then put the picture back outside."""
    networks, keep_BL = networks_of(), random_keep(6)
    dequantizer, region = networks[2], region_of(keep_BL, networks)
    drawn = tiny_networks.draw(networks, range(6), given=Given(region=region))
    canvas_BLC, layout = torch.zeros(6, 16, 4), StageLayout(16)
    for stage in range(layout.num_stages):
        codes_BUC = dequantizer.codebook[drawn.content_ids_BT[:, layout.tokens(stage)]]
        canvas_BLC = canvas_BLC + dequantizer.contribution(codes_BUC, drawn.structure_BL, stage)
        canvas_BLC[keep_BL] = region.canvases_BSLC[:, stage][keep_BL]
        torch.testing.assert_close(drawn.canvases_BSLC[:, stage], canvas_BLC, rtol=0, atol=1e-6)


def test_what_the_picture_lacks_outside_does_not_choose_what_is_painted_inside(monkeypatch):
    """The estimate of the final canvas outside is changed: no content inside changes with it."""
    networks, keep_BL = networks_of(), random_keep(6)
    region = region_of(keep_BL, networks)
    given = Given(region=region, structure_BL=region.structure_BL, num_splits=4)
    before = tiny_networks.draw(networks, range(6), given=given)
    missing, shift = networks[0].missing, torch.randn(16, 4, generator=torch.Generator().manual_seed(7)) * 10

    def changed(final_NLC, canvas_NLC):
        keep_NL1 = keep_BL.repeat(len(final_NLC) // 6, 1)[..., None]
        return missing(final_NLC, canvas_NLC) + keep_NL1 * shift

    monkeypatch.setattr(networks[0], "missing", changed)
    after = tiny_networks.draw(networks, range(6), given=given)
    assert torch.equal(before.content_ids_BT, after.content_ids_BT)


@pytest.mark.parametrize("content_input", ["canvas", "noised_canvas"])
def test_a_sample_is_the_same_in_any_batch(monkeypatch, content_input):
    networks = switched(content={"content_input": content_input})
    keep_BL = random_keep(11)
    region = region_of(keep_BL, networks)
    whole = tiny_networks.draw(networks, range(11), given=Given(region=region))
    monkeypatch.setattr(sampler, "_CACHE_BYTES", 0)
    sliced = tiny_networks.draw(networks, range(11), given=Given(region=region))
    some = torch.tensor([9, 2, 5])
    alone = tiny_networks.draw(networks, some.tolist(), given=Given(region=region.each(lambda tensor: tensor[some])))
    for drawn, rows in ((sliced, slice(None)), (alone, some)):
        assert torch.equal(drawn.content_ids_BT, whole.content_ids_BT[rows])
        assert torch.equal(drawn.structure_BL, whole.structure_BL[rows])
        torch.testing.assert_close(drawn.canvases_BSLC, whole.canvases_BSLC[rows], rtol=0, atol=1e-5)


def test_a_position_is_kept_where_all_its_pixels_are():
    keep_HW = torch.ones(16, 16, dtype=torch.bool)
    keep_HW[5, 7] = False
    keep_L = kept_positions(keep_HW, 16)
    assert (~keep_L).nonzero().tolist() == [[1 * 4 + 1]]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (torch.ones(16, 16, dtype=torch.bool), "keep: found white all over"),
        ((torch.arange(256).view(16, 16) % 3) > 0, "white on no whole position of the 4×4 latent grid.*4×4 pixels"),
    ],
)
def test_masks_that_leave_nothing_to_do_are_refused(keep, message):
    with pytest.raises(UserError, match=message):
        kept_positions(keep, 16)


@pytest.mark.parametrize("keep", [torch.ones(2, 16), torch.ones(2, 15, dtype=torch.bool)])
def test_kept_positions_fit_the_grid(keep):
    networks = networks_of()
    with pytest.raises(UserError, match=r"expected bool of shape \(2, 16\)"):
        keep_region(keep, torch.zeros(2, 31, dtype=torch.int64), torch.arange(16).repeat(2, 1), networks[2])
