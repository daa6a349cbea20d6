import pytest
import torch

from nvg.errors import UserError
from nvg.granularity import cluster_latents, spatial_structure
from nvg.tokenizer import Tokenizer, TokenizerConfig
from nvg.training import TokenizerLossConfig, TokenizerObjective

SMALL = {
    "image_size": 16,
    "image_channels": 1,
    "base_width": 8,
    "width_multipliers": [1, 1, 1],
    "norm_groups": 4,
    "num_res_blocks": 1,
    "latent_channels": 4,
    "codebook_size": 16,
}


def tokenizers() -> tuple[Tokenizer, Tokenizer]:
    """One set of weights, with both kinds of structure."""
    torch.manual_seed(0)
    own, spatial = Tokenizer(TokenizerConfig(**SMALL)), Tokenizer(TokenizerConfig(**SMALL, structure="spatial"))
    torch.nn.init.normal_(own.dequantizer.codebook, std=0.3)
    spatial.load_state_dict(own.state_dict())
    return own.eval(), spatial.eval()


IMAGES = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_every_image_has_the_spatial_structure_and_decodes_from_ids_and_maps():
    own, spatial = tokenizers()
    ids, maps = spatial.tokenize(IMAGES)
    assert torch.equal(maps, spatial_structure(16).expand(5, -1))
    canvas = spatial.dequantizer.canvases(ids, maps)[:, -1]
    torch.testing.assert_close(spatial.decode(canvas), spatial.reconstruct(IMAGES))
    assert torch.equal(own.structure_maps(own.encode(IMAGES)), cluster_latents(own.encode(IMAGES)))
    assert not torch.equal(own.tokenize(IMAGES)[1], maps)


def test_residuals_of_the_last_stage_are_those_of_the_ids():
    """Every stage quantises what the stages before it left, on the maps it is given."""
    _, spatial = tokenizers()
    ids, maps = spatial.tokenize(IMAGES)
    with torch.no_grad():
        residual = spatial.encode(IMAGES) - spatial.dequantizer.canvases(ids, maps)[:, 3]
        nearest = torch.cdist(residual, spatial.dequantizer.codebook).argmin(-1)
    by_place = nearest.new_empty(nearest.shape).scatter(1, maps, nearest)
    assert float((by_place == ids[:, spatial.dequantizer.layout.tokens(4)]).float().mean()) > 0.99


def test_training_uses_the_maps_of_the_config():
    own, spatial = (TokenizerObjective(network, TokenizerLossConfig()) for network in tokenizers())
    noise = own.draw_noise(seed=0, step=0, global_batch=5)
    with torch.no_grad():
        assert float(own({"image": IMAGES}, noise)[0]) != float(spatial({"image": IMAGES}, noise)[0])


def test_other_structures_are_refused():
    with pytest.raises(UserError, match="structure is 'random'; choose one of granularity, spatial"):
        TokenizerConfig(**SMALL, structure="random")
