"""Canvases with mistakes: what they are made of, what has to be painted on them, and who sees them."""

from dataclasses import replace

import pytest
import torch
from reference_vectors import tiny_generators
from switched_networks import records

from nvg.errors import UserError
from nvg.granularity import cluster_mean, place
from nvg.tokenizer import Tokenizer, TokenizerConfig
from nvg.training import (
    ContentObjective,
    GeneratorLossConfig,
    StructureObjective,
    TokenizerLossConfig,
    TokenizerObjective,
)
from nvg.training.mistakes import mistaken_canvases

LOSS = GeneratorLossConfig(self_correction=1.0)


def tiny_tokenizer():
    torch.manual_seed(0)
    return Tokenizer(
        TokenizerConfig(
            image_size=16, image_channels=1, base_width=8, norm_groups=4, width_multipliers=[1, 1, 1],
            num_res_blocks=1, latent_channels=4, codebook_size=16,
        )
    )  # fmt: skip


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
    of_tokenizer = TokenizerObjective(tiny_tokenizer(), TokenizerLossConfig(token_perturbation=1.0))
    for objective in (ContentObjective(content, dequantizer, LOSS), of_tokenizer):
        whole = objective.draw_noise(seed=3, step=5, global_batch=6)
        part = objective.draw_noise(seed=3, step=5, global_batch=6, rows=slice(2, 4))
        for name in ("mistakes", "mistake_size"):
            assert torch.equal(whole[name][2:4], part[name])
        assert (whole["mistake_size"] >= 0).all()
        assert (whole["mistake_size"] < 1).all()


def test_the_decoder_sees_mistakes_in_training_alone_and_the_quantiser_never():
    objective, plain = (
        TokenizerObjective(tiny_tokenizer(), TokenizerLossConfig(token_perturbation=size)) for size in (1.5, 0.0)
    )
    batch = {"image": torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1}
    noise = objective.draw_noise(seed=0, step=0, global_batch=6)
    assert objective.eval()(batch, noise)[0] == plain.eval()(batch, noise)[0]
    _, disturbed = objective.train()(batch, noise)
    _, undisturbed = plain.train()(batch, noise)
    assert disturbed["quantizer"] == undisturbed["quantizer"]
    assert disturbed["l1"] != undisturbed["l1"]
    _, none = objective(batch, {**noise, "mistake_size": torch.zeros(6)})
    torch.testing.assert_close(none["l1"], undisturbed["l1"], rtol=1e-5, atol=0)


def test_what_the_decoder_is_given_is_painted_with_the_moved_codes_and_leads_back_to_the_latent():
    objective = TokenizerObjective(tiny_tokenizer(), TokenizerLossConfig(token_perturbation=1.5)).train()
    network, given = objective.network, []
    network.decoder.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    batch = {"image": torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1}
    noise = objective.draw_noise(seed=0, step=0, global_batch=6)
    objective(batch, noise)[0].backward()
    ids, maps = network.tokenize(batch["image"])
    canvases = network.dequantizer.canvases(ids, maps)
    made = mistaken_canvases(network.dequantizer, ids, maps, canvases[:, -1], noise["mistakes"], noise["mistake_size"])
    torch.testing.assert_close(given[0].flatten(2).transpose(1, 2), made.canvases_BSLC[:, -1])
    assert not torch.allclose(made.canvases_BSLC[:, -1], canvases[:, -1], atol=1e-2)
    weight = next(network.encoder.parameters())
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_a_negative_size_and_the_structure_generator_are_refused():
    with pytest.raises(UserError, match=r"loss\.self_correction"):
        GeneratorLossConfig(self_correction=-0.1)
    with pytest.raises(UserError, match=r"loss\.token_perturbation"):
        TokenizerLossConfig(token_perturbation=-0.1)
    _, structure, dequantizer = tiny_generators()
    with pytest.raises(UserError, match=r"loss\.self_correction.*content"):
        StructureObjective(structure, dequantizer, LOSS)
