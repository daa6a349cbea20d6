"""The tokenizer against vectors of an independent implementation."""

import pytest
import torch
from einops import rearrange
from reference_vectors import reference_dequantizer, vectors

from nvg.checkpoints.release_names import autoencoder_from_release
from nvg.granularity import cluster_latents, stage_map
from nvg.tokenizer import Tokenizer, TokenizerConfig, quantize_ids


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    config = TokenizerConfig(image_size=64, base_width=32, width_multipliers=[1, 1, 2, 2, 2], codebook_size=8)
    tokenizer = Tokenizer(config).eval()
    names = {key: value for key, value in vectors("autoencoder_ch32").items() if key.startswith(("encoder", "decoder"))}
    own = tokenizer.state_dict()
    renamed = autoencoder_from_release(names, num_levels=5)
    assert renamed.keys() == {key for key in own if not key.startswith("dequantizer")}
    tokenizer.load_state_dict(own | renamed)
    return tokenizer


@torch.no_grad()
def test_encoder_and_decoder(tokenizer):
    data = vectors("autoencoder_ch32")
    latent = tokenizer.encode(data["in.image"])
    torch.testing.assert_close(rearrange(latent, "b (h w) c -> b c h w", h=4), data["out.latent"], rtol=0, atol=1e-4)
    torch.testing.assert_close(tokenizer.decode(latent), data["out.image"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_quantiser_ids_maps_and_canvases():
    data, dequantizer = vectors("quantizer"), reference_dequantizer()
    latent = rearrange(data["latent"], "b c h w -> b (h w) c").contiguous()
    structure = cluster_latents(latent)
    for stage in range(9):
        assert torch.equal(stage_map(structure, stage, 8), data["maps"][:, stage])
    ids = quantize_ids(latent, structure, dequantizer)
    assert torch.equal(ids, data["tokens"])
    torch.testing.assert_close(dequantizer.canvases(ids, structure), data["canvases"], rtol=0, atol=1e-4)
