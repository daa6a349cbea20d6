"""Canvases with mistakes: what they are made of, and what has to be painted on them."""

from dataclasses import replace

import pytest
import torch
from reference_vectors import tiny_generators
from switched_networks import records

from nvg.errors import UserError
from nvg.granularity import cluster_mean, place
from nvg.training import ContentObjective, GeneratorLossConfig, StructureObjective
from nvg.training.self_correction import mistaken_canvases

LOSS = GeneratorLossConfig(self_correction=1.0)


def painted(size, num=6):
    _, _, dequantizer = tiny_generators()
    batch = records(num)
    canvases = dequantizer.canvases(batch["content_ids"], batch["structure"]).detach()
    errors = torch.randn(num, 31, canvases.shape[-1], generator=torch.Generator().manual_seed(1))
    made = mistaken_canvases(
        dequantizer, batch["content_ids"], batch["structure"], canvases[:, -1], errors, torch.full((num,), size)
    )
    return dequantizer, batch, canvases, errors, made


def test_without_mistakes_canvases_and_ids_are_the_records_own_to_the_bit():
    _, batch, canvases, _, made = painted(0.0)
    assert torch.equal(made.canvases_BSLC, canvases)
    assert torch.equal(made.content_ids_BT, batch["content_ids"])


@torch.no_grad()
def test_each_canvas_is_the_one_before_and_the_nearest_code_to_the_moved_mean():
    """A loop over images, stages and clusters; up to the first mistake the recorded ids are what is right."""
    dequantizer, batch, canvases, errors, made = painted(0.7)
    codes = dequantizer.codebook
    for image in range(6):
        structure, canvas, right = batch["structure"][image : image + 1], torch.zeros(1, *canvases.shape[2:]), True
        for stage in range(5):
            tokens = dequantizer.layout.tokens(stage)
            missing = cluster_mean(canvases[image : image + 1, -1] - canvas, structure, stage)[0]
            moved = missing + 0.7 * missing.square().mean(0).sqrt() * errors[image, tokens]
            nearest = torch.cdist(missing, codes).argmin(1)
            expected = batch["content_ids"][image, tokens] if right else nearest
            assert torch.equal(made.content_ids_BT[image, tokens], expected)
            wrong = torch.cdist(moved, codes).argmin(1)
            ids = torch.where(wrong == nearest, expected, wrong)
            right = right and torch.equal(ids, batch["content_ids"][image, tokens])
            canvas = canvas + dequantizer.refiners[stage](place(codes[ids][None], structure, stage))
            torch.testing.assert_close(made.canvases_BSLC[image, stage], canvas[0])


def test_larger_mistakes_lead_further_away_and_what_is_painted_next_leads_back():
    _, _, canvases, _, small = painted(0.1, 64)
    _, _, _, _, large = painted(2.0, 64)
    distance = [(made.canvases_BSLC - canvases).square().mean((0, 2, 3)) for made in (small, large)]
    assert (distance[1] > distance[0]).all()


def test_the_loss_sees_mistakes_in_training_alone():
    content, _, dequantizer = tiny_generators()
    batch = records()
    with_mistakes, without = (
        ContentObjective(content, dequantizer, replace(LOSS, self_correction=size)) for size in (1.0, 0.0)
    )
    noise = with_mistakes.draw_noise(seed=0, step=0, global_batch=6)
    assert with_mistakes.eval()(batch, noise)[0] == without.eval()(batch, noise)[0]
    assert with_mistakes.train()(batch, noise)[0] != without.train()(batch, noise)[0]
    none = {**noise, "mistake_size": torch.zeros(6)}
    assert with_mistakes.train()(batch, none)[0] == without.train()(batch, noise)[0]


def test_rows_of_a_step_are_the_same_however_the_batch_is_split():
    content, _, dequantizer = tiny_generators()
    objective = ContentObjective(content, dequantizer, LOSS)
    whole = objective.draw_noise(seed=3, step=5, global_batch=6)
    part = objective.draw_noise(seed=3, step=5, global_batch=6, rows=slice(2, 4))
    for name in ("mistakes", "mistake_size"):
        assert torch.equal(whole[name][2:4], part[name])
    assert (whole["mistake_size"] >= 0).all()
    assert (whole["mistake_size"] < 1).all()


def test_a_negative_size_and_the_structure_generator_are_refused():
    with pytest.raises(UserError, match=r"loss\.self_correction"):
        GeneratorLossConfig(self_correction=-0.1)
    _, structure, dequantizer = tiny_generators()
    with pytest.raises(UserError, match=r"loss\.self_correction.*content"):
        StructureObjective(structure, dequantizer, LOSS)
