"""Controlled samples beside free ones, on tiny networks with random weights."""

import numpy as np
import pytest
import torch

from eval.controlled import compare, draw_best, draw_samples, draw_stagewise
from eval.pictures.sheets import control_sheet, stagewise_sheet
from eval.scores.adherence import split_agreement
from nvg.granularity import cluster_latents, stage_map
from nvg.pixels import to_uint8
from nvg.sampling import Given, give_contents, give_structure

LABELS, INDICES = torch.tensor([0, 3, 7]), torch.tensor([0, 3, 7])


@pytest.fixture(scope="module")
def sampler(generator_spec):
    return generator_spec.build("cpu")


@pytest.fixture
def structure_BL():
    return cluster_latents(torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(2)))


def test_samples_are_drawn_by_what_was_given_and_free_ones_are_those_of_plain_sampling(sampler, structure_BL):
    samples, free, comparison = compare(sampler, LABELS, INDICES, give_structure(structure_BL, 2))
    assert torch.equal(stage_map(samples.sequences.structure_BL, 2, 4), stage_map(structure_BL, 2, 4))
    assert np.array_equal(free.images_BHWC, sampler.draw(LABELS, INDICES))
    assert comparison is not None
    assert comparison.free_best is None
    assert len(comparison.samples.splits) == 2
    assert comparison.margin == comparison.samples.mean - comparison.free.mean
    agreement = split_agreement(samples.latent_BLC, structure_BL, 2)
    assert comparison.samples.mean == pytest.approx(float(agreement.mean()))


def test_the_best_of_several_draws_is_never_worse_and_starts_with_the_plain_one(sampler, structure_BL):
    def agreement(num_candidates):
        best = draw_best(sampler, LABELS, INDICES, None, structure_BL, 3, num_candidates=num_candidates)
        return split_agreement(best.latent_BLC, structure_BL, 3).mean(1)

    plain = split_agreement(draw_samples(sampler, LABELS, INDICES).latent_BLC, structure_BL, 3).mean(1)
    assert torch.equal(agreement(1), plain)
    assert (agreement(4) >= agreement(2)).all()
    assert (agreement(2) >= plain).all()
    assert (agreement(4) > plain).any()


def test_each_row_of_the_best_draws_is_one_whole_draw(sampler, structure_BL):
    best = draw_best(sampler, LABELS, INDICES, None, structure_BL, 3, num_candidates=4)
    rebuilt = sampler.tokenizer.dequantizer.canvases(best.sequences.content_ids_BT, best.sequences.structure_BL)
    torch.testing.assert_close(best.sequences.canvases_BSLC, rebuilt)


def test_a_reconstruction_given_everything_is_the_reconstruction(sampler, noise_images):
    images = noise_images[:3]
    latent = sampler.tokenizer.encode(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).detach()
    ids, structure = sampler.tokenizer.tokenize(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    assert torch.equal(structure, cluster_latents(latent))
    _, _, comparison = compare(sampler, LABELS, INDICES, give_contents(ids, structure, 5), images_BHWC=images)
    assert comparison is not None
    assert comparison.reconstruction == comparison.samples


def test_nothing_is_compared_where_no_split_is_given(sampler):
    given = Given(structure_BL=torch.arange(16).expand(3, -1), content_ids_BT=torch.zeros(3, 31).long(), num_contents=1)
    assert compare(sampler, LABELS, INDICES, given)[2] is None


def test_stage_wise_samples_begin_free_and_keep_more_and_more_of_the_reference(sampler, noise_images):
    ids, structure = sampler.tokenizer.tokenize(torch.from_numpy(noise_images[:1]).permute(0, 3, 1, 2) / 127.5 - 1)
    drawn = draw_stagewise(sampler, LABELS, INDICES, ids, structure)
    assert drawn.structures_SBHWC is not None
    assert drawn.contents_SBHWC.shape == drawn.structures_SBHWC.shape == (5, 3, 16, 16, 1)
    for samples in (drawn.contents_SBHWC, drawn.structures_SBHWC):
        assert np.array_equal(samples[0], sampler.draw(LABELS, INDICES))
    pairs = [
        (drawn.contents_SBHWC, give_contents(ids, structure, 3)),
        (drawn.structures_SBHWC, give_structure(structure, 3)),
    ]
    for samples, prefix in pairs:
        one = draw_samples(sampler, LABELS[:1], INDICES[:1], prefix).images_BHWC
        assert np.abs(samples[3, :1].astype(int) - one).max() <= 1  # another batch rounds otherwise
    whole = sampler.tokenizer.decode(sampler.tokenizer.dequantizer.canvases(ids, structure)[:, -1]).detach()
    assert np.abs(drawn.reference_SHWC[-1].astype(int) - to_uint8(whole, sampler.spec.rounding)[0]).max() <= 1
    groups = [("contents and structure", drawn.contents_SBHWC), ("structure", drawn.structures_SBHWC)]
    picture = stagewise_sheet(drawn.reference_SHWC, groups, ["three", "a very long name of a class", "seven"])
    assert picture.light[:4] == b"\x89PNG"


def test_the_sheet_shows_any_number_of_maps_and_columns(noise_images):
    maps = [np.arange(16).reshape(4, 4) >> shift for shift in (3, 2)]
    rows = [("as given", noise_images[:3]), ("free", noise_images[:20])]
    sheet = control_sheet(noise_images[0], maps, rows, source_name="image", agreements=[0.75])
    assert sheet.light.startswith(b"\x89PNG")
    assert sheet.light != sheet.dark
    assert control_sheet(None, [], rows[:1], source_name="").light.startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="at least one row"):
        control_sheet(None, [], [], source_name="")
