import torch
from reference_vectors import tiny_generators

from nvg.granularity import cluster_latents
from nvg.tokenizer import quantize_for_training, quantize_ids


def case(seed=0):
    dequantizer = tiny_generators(seed=seed)[2]
    latent = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    return latent, cluster_latents(latent), dequantizer


def run(latent, structure, dequantizer, soft):
    return quantize_for_training(latent, structure, dequantizer, commitment_weight=0.25, soft_assignment=soft)


def test_training_and_inference_choose_the_same_ids():
    latent, structure, dequantizer = case()
    ids = quantize_ids(latent, structure, dequantizer)
    for soft in (False, True):
        quantized = run(latent, structure, dequantizer, soft)
        assert torch.equal(quantized.content_ids_BT, ids)


def test_canvas_is_the_sum_of_contributions():
    latent, structure, dequantizer = case()
    ids = quantize_ids(latent, structure, dequantizer)
    canvases = dequantizer.canvases(ids, structure)
    total = torch.zeros_like(latent)
    for stage in range(5):
        codes = dequantizer.codebook[ids[:, dequantizer.layout.tokens(stage)]]
        total = total + dequantizer.contribution(codes, structure, stage)
        torch.testing.assert_close(canvases[:, stage], total)


def test_latents_built_from_codes_are_quantised_without_error():
    """With refiners that add nothing, a latent that is one code everywhere is hit by stage 0 and stays hit."""
    _, structure, dequantizer = case()
    with torch.no_grad():
        dequantizer.codebook[0] = 0.0
        for refiner in dequantizer.refiners:
            for parameter in refiner.parameters():
                parameter.zero_()
        constant = dequantizer.codebook[7].expand(3, 16, 4).clone()
    ids = quantize_ids(constant, structure, dequantizer)
    assert ids[:, 0].tolist() == [7] * 3
    assert not bool(ids[:, 1:].any())
    torch.testing.assert_close(dequantizer.canvases(ids, structure)[:, -1], constant)


def test_decoder_gradient_reaches_the_encoder_only():
    latent, structure, dequantizer = case()
    run(latent, structure, dequantizer, False).canvas_BLC.square().sum().backward()
    assert latent.grad is not None
    assert bool(latent.grad.any())
    assert dequantizer.codebook.grad is None


def test_loss_is_the_mean_over_stages_of_both_terms():
    latent, structure, dequantizer = case()
    quantized = run(latent, structure, dequantizer, False)
    canvases = dequantizer.canvases(quantized.content_ids_BT, structure)
    errors = (canvases - latent[:, None]).square().mean((0, 2, 3))
    torch.testing.assert_close(quantized.loss, 1.25 * errors.mean())


def test_soft_assignment_reaches_every_entry_but_never_the_encoder():
    latent, structure, dequantizer = case()
    (hard,) = torch.autograd.grad(run(latent, structure, dequantizer, False).loss, dequantizer.codebook)
    used = run(latent, structure, dequantizer, False).content_ids_BT.unique()
    unused = [entry for entry in range(11) if entry not in used.tolist()]
    assert not bool(hard[unused].any())
    loss = run(latent, structure, dequantizer, True).loss
    soft, to_encoder = torch.autograd.grad(loss, [dequantizer.codebook, latent])
    assert bool((soft.abs().sum(1) > 0).all())
    (commitment_only,) = torch.autograd.grad(run(latent, structure, dequantizer, False).loss, latent)
    torch.testing.assert_close(to_encoder, commitment_only)


def test_rows_do_not_depend_on_their_batch():
    latent, structure, dequantizer = case()
    assert torch.equal(
        quantize_ids(latent, structure, dequantizer)[1:2],
        quantize_ids(latent[1:2], structure[1:2], dequantizer),
    )
