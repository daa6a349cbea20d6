"""Agreement of maps: labels may be swapped anywhere, errors count once, chance is what it is said to be."""

import itertools

import pytest
import torch
from tiny_networks import save_tokenizer

from eval.scores.adherence import encode_images, explained_share, map_agreement, measure, split_agreement
from nvg.checkpoints import load_network
from nvg.granularity import cluster_latents, spatial_structure
from nvg.pixels import to_model_range
from nvg.tokenizer import Tokenizer


def latents(num_images, num_positions=16, seed=0):
    return torch.randn(num_images, num_positions, 3, generator=torch.Generator().manual_seed(seed))


def swapped(structure_BL, stage, parent, last_stage=4):
    """The map with the two children of one parent swapped."""
    inside = structure_BL >> (last_stage - stage) == parent
    return torch.where(inside, structure_BL ^ (1 << (last_stage - stage - 1)), structure_BL)


def test_an_image_follows_its_own_map():
    latent = latents(5, 64)
    adherence = measure(latent, cluster_latents(latent), 6)
    assert adherence.splits == [1.0] * 5
    assert adherence.maps == [1.0] * 5
    assert adherence.explained == adherence.own_explained
    assert adherence.mean == 1.0


@pytest.mark.parametrize(("stage", "parent"), [(0, 0), (1, 1), (2, 0), (2, 3)])
def test_swapping_the_children_of_any_parent_changes_nothing(stage, parent):
    latent, given = latents(4), cluster_latents(latents(4, seed=1))
    other = swapped(given, stage, parent)
    assert not torch.equal(given, other)
    found = cluster_latents(latent)
    assert torch.equal(split_agreement(latent, given, 3), split_agreement(latent, other, 3))
    assert torch.equal(map_agreement(found, given, 4), map_agreement(found, other, 4))
    assert torch.equal(map_agreement(found, given, 4), map_agreement(swapped(found, stage, parent), given, 4))
    torch.testing.assert_close(explained_share(latent, given, 4), explained_share(latent, other, 4))


def test_both_measures_are_equal_at_the_first_split():
    latent, given = latents(20), cluster_latents(latents(20, seed=1))
    assert torch.equal(split_agreement(latent, given, 1), map_agreement(cluster_latents(latent), given, 1))


def test_map_agreement_equals_trying_every_swap():
    found, given = cluster_latents(latents(3)), cluster_latents(latents(3, seed=1))
    best = torch.zeros(3, dtype=torch.float64)
    nodes = [(stage, parent) for stage in range(3) for parent in range(1 << stage)]
    for swaps in itertools.product([False, True], repeat=len(nodes)):
        tried = given
        for (stage, parent), swap in reversed(list(zip(nodes, swaps, strict=True))):
            tried = swapped(tried, stage, parent) if swap else tried
        best = torch.maximum(best, (tried >> 1 == found >> 1).double().mean(1))
    assert torch.equal(map_agreement(found, given, 3)[:, 2], best)


def test_chance_is_what_the_docstring_says():
    chance = split_agreement(latents(3000), spatial_structure(16).expand(3000, -1), 4).mean(0)
    assert chance.tolist() == pytest.approx([0.60, 0.63, 0.67], abs=0.02)


def test_an_error_above_does_not_count_again_below():
    given = spatial_structure(16)[None]
    row, column = torch.arange(16) // 4, torch.arange(16) % 4
    # Columns far apart, rows near: the image's first split is what was given for the second one.
    latent = torch.stack([100.0 * (column // 2) + column % 2, 10.0 * (row // 2) + 2.0 * (row % 2)], dim=1)[None]
    agreement = split_agreement(latent, given, 2)[0].tolist()
    assert agreement == [0.5, 1.0]
    assert map_agreement(cluster_latents(latent), given, 2)[0].tolist() == [0.5, 0.5]


def test_two_maps_that_divide_an_image_alike_explain_it_alike():
    # Two flat sides with noise: which position joins which pair is chance below the first split.
    flat = torch.arange(16)[:, None] % 2 * 10.0
    one, other = (flat + 1e-3 * latents(1, seed=seed) for seed in (1, 2))
    found, given = cluster_latents(one), cluster_latents(other)
    assert map_agreement(found, given, 3)[0, 2] < 1
    assert (explained_share(one, given, 3) > 0.999).all()
    assert float(explained_share(one, spatial_structure(16)[None], 1)) < 1e-3


def test_explained_variance_grows_to_all_of_it():
    latent, given = latents(4), cluster_latents(latents(4, seed=1))
    share = explained_share(latent, given, 4)
    assert (share.diff(dim=1) > 0).all()
    torch.testing.assert_close(share[:, 3], torch.ones(4).double())
    assert explained_share(torch.zeros(1, 16, 2), given[:1], 2).tolist() == [[1.0, 1.0]]


def test_images_are_encoded_as_the_tokenizer_clusters_them(tmp_path, noise_images):
    tokenizer = load_network(Tokenizer, save_tokenizer(tmp_path))
    latent = encode_images(tokenizer, noise_images, batch_size=16)
    assert latent.shape == (40, 16, 4)
    _, structure = tokenizer.tokenize(to_model_range(noise_images))
    assert (cluster_latents(latent) == structure).double().mean() > 0.95  # batches round differently
