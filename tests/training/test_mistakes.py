"""Canvases with mistakes or a foreign region: what they are made of, what each stage then paints, who sees them."""

from dataclasses import replace

import numpy as np
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
from nvg.training.mistakes import drawn_regions, mistaken_canvases, turned_positions, with_foreign_region

LOSS = GeneratorLossConfig(self_correction=1.0, foreign_regions=0.5)


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
    assert torch.equal(made.ids_BT, batch["content_ids"])


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
            assert torch.equal(made.ids_BT[image, tokens], expected)
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


@pytest.mark.parametrize(
    ("name", "key", "none"),
    [
        ("self_correction", "mistake_size", torch.zeros(6)),
        ("foreign_regions", "foreign", torch.zeros(6, 16, dtype=torch.bool)),
    ],
)
def test_the_loss_sees_them_in_training_alone(name, key, none):
    content, _, dequantizer = tiny_generators()
    batch = records()
    seen, without = (
        ContentObjective(content, dequantizer, replace(GeneratorLossConfig(), **{name: size})) for size in (1.0, 0.0)
    )
    noise = seen.draw_noise(seed=0, step=0, global_batch=6)
    assert seen.eval()(batch, noise)[0] == without.eval()(batch, noise)[0]
    assert seen.train()(batch, noise)[0] != without.train()(batch, noise)[0]
    assert seen.train()(batch, {**noise, key: none})[0] == without.train()(batch, noise)[0]


def test_rows_of_a_step_are_the_same_however_the_batch_is_split():
    content, _, dequantizer = tiny_generators()
    of_content = ContentObjective(content, dequantizer, LOSS)
    of_tokenizer = TokenizerObjective(tiny_tokenizer(), TokenizerLossConfig(token_perturbation=1, foreign_regions=0.5))
    for objective in (of_content, of_tokenizer):
        whole = objective.draw_noise(seed=3, step=5, global_batch=6)
        part = objective.draw_noise(seed=3, step=5, global_batch=6, rows=slice(2, 4))
        for name in ("mistakes", "mistake_size", "foreign", "turn"):
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


# --- foreign regions


@pytest.mark.parametrize("side", [4, 8, 16])
def test_a_region_lies_on_one_side_of_a_line_and_shows_the_picture_turned(side):
    """Every form is one of the square's seven motions, made here with NumPy; an eighth to seven eighths are foreign."""
    drawn = drawn_regions(side**2, 1.0, seed=0, step=0, global_batch=400, rows=slice(None))
    upright = np.arange(side**2).reshape(side, side)
    motions = [np.rot90(form, turn).ravel() for form in (upright, upright.T) for turn in range(4)][1:]
    turned = turned_positions(drawn["turn"], side).numpy()
    assert {motion.tobytes() for motion in motions} == {row.tobytes() for row in turned}
    for foreign in drawn["foreign"].numpy():
        assert 1 / 8 <= foreign.mean() < 7 / 8
        inside, outside = (np.argwhere(kind.reshape(side, side)) for kind in (foreign, ~foreign))
        ways = [(np.cos(angle), np.sin(angle)) for angle in np.linspace(0, 2 * np.pi, 721)]
        assert any((inside @ way).max() <= (outside @ way).min() + 1e-9 for way in ways)


def test_so_many_images_have_a_region():
    drawn = drawn_regions(16, 0.3, seed=0, step=0, global_batch=4000, rows=slice(None))["foreign"]
    assert drawn.any(1).float().mean() == pytest.approx(0.3, abs=0.03)


def test_a_region_shows_the_records_own_canvases_turned_and_each_stage_then_leads_back():
    """A loop over images, stages, positions and clusters; images without a region stay as they are, to the bit."""
    dequantizer, batch, recorded, _, mistaken = painted(0.7, 12)
    structure, codes = batch["structure"], dequantizer.codebook
    drawn = drawn_regions(16, 0.5, seed=1, step=0, global_batch=12, rows=slice(None))
    made = with_foreign_region(dequantizer, mistaken, recorded, structure, drawn["foreign"], drawn["turn"])
    sources = turned_positions(drawn["turn"], 4)
    assert 0 < drawn["foreign"].any(1).sum() < 12
    for image, foreign in enumerate(drawn["foreign"]):
        if not foreign.any():
            assert torch.equal(made.canvases_BSLC[image], mistaken.canvases_BSLC[image])
            assert torch.equal(made.ids_BT[image], mistaken.ids_BT[image])
            continue
        for stage in range(5):
            for position, source in enumerate(sources[image].tolist()):
                expected = mistaken.canvases_BSLC[image, stage, position]
                expected = recorded[image, stage, source] if foreign[position] else expected
                assert torch.equal(made.canvases_BSLC[image, stage, position], expected)
            before = made.canvases_BSLC[image, stage - 1] if stage else torch.zeros_like(recorded[image, 0])
            missing = cluster_mean((recorded[image, -1] - before)[None], structure[image : image + 1], stage)[0]
            nearest = torch.cdist(missing, codes).argmin(1)
            assert torch.equal(made.ids_BT[image, dequantizer.layout.tokens(stage)], nearest)


def test_the_decoder_paints_two_pictures_each_in_its_place_and_learns_from_both():
    """A loop over images and positions: in a region canvas and target are those of the turned picture."""
    objective = TokenizerObjective(tiny_tokenizer(), TokenizerLossConfig(foreign_regions=0.6)).train()
    network, given, made = objective.network, [], []
    network.decoder.register_forward_hook(lambda _, arguments, out: (given.append(arguments[0]), made.append(out))[0])
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = objective.draw_noise(seed=0, step=0, global_batch=8)
    loss, metrics = objective({"image": images}, noise)
    assert 0 < noise["foreign"].any(1).sum() < 8
    pixels = images[:, 0].numpy()
    forms = [np.rot90(pixels.swapaxes(1, 2), turn, (1, 2)) for turn in range(4)]
    forms = [np.rot90(pixels, turn, (1, 2)) for turn in range(1, 4)] + forms
    told = [form.reshape(8, -1) for form in forms]
    turned = np.stack(
        [images[n].flatten()[turned_positions(noise["turn"][n : n + 1], 16)[0]].numpy() for n in range(8)]
    )
    assert all(any((turned[n] == form[n]).all() for form in told) for n in range(8))
    turned_images = torch.from_numpy(turned).view_as(images)
    own, other = (network.dequantizer.canvases(*network.tokenize(of))[:, -1] for of in (images, turned_images))
    target = images.clone()
    for image, position in np.argwhere(noise["foreign"].numpy()):
        row, column = 4 * (position // 4), 4 * (position % 4)
        target[image, :, row : row + 4, column : column + 4] = turned_images[
            image, :, row : row + 4, column : column + 4
        ]
        own[image, position] = other[image, position]
    torch.testing.assert_close(given[0].flatten(2).transpose(1, 2), own)
    torch.testing.assert_close(metrics["l1"], (made[0] - target).abs().mean())
    loss.backward()
    assert all(weight.grad is not None for weight in network.parameters())


def test_the_decoder_sees_foreign_regions_in_training_alone_and_the_quantiser_never():
    objective, plain = (
        TokenizerObjective(tiny_tokenizer(), TokenizerLossConfig(foreign_regions=share)) for share in (1.0, 0.0)
    )
    batch = {"image": torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1}
    noise = objective.draw_noise(seed=0, step=0, global_batch=6)
    assert objective.eval()(batch, noise)[0] == plain.eval()(batch, noise)[0]
    _, seen = objective.train()(batch, noise)
    _, without = plain.train()(batch, noise)
    assert seen["quantizer"] == without["quantizer"]
    assert seen["l1"] != without["l1"]
    _, none = objective(batch, {**noise, "foreign": torch.zeros(6, 16, dtype=torch.bool)})
    assert none["l1"] == without["l1"]


@pytest.mark.parametrize("config", [GeneratorLossConfig, TokenizerLossConfig])
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_of_foreign_regions_is_one(config, share):
    with pytest.raises(UserError, match=r"loss\.foreign_regions"):
        config(foreign_regions=share)


def test_two_pictures_in_one_and_a_discriminator_exclude_each_other():
    with pytest.raises(UserError, match=r"loss\.foreign_regions.*discriminator"):
        TokenizerLossConfig(foreign_regions=0.5, adversarial_weight=0.1)


def test_a_negative_size_and_the_structure_generator_are_refused():
    with pytest.raises(UserError, match=r"loss\.self_correction"):
        GeneratorLossConfig(self_correction=-0.1)
    with pytest.raises(UserError, match=r"loss\.token_perturbation"):
        TokenizerLossConfig(token_perturbation=-0.1)
    _, structure, dequantizer = tiny_generators()
    for name in ("self_correction", "foreign_regions"):
        with pytest.raises(UserError, match=rf"loss\.{name}.*content"):
            StructureObjective(structure, dequantizer, replace(GeneratorLossConfig(), **{name: 0.5}))
