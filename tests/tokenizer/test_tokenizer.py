from typing import Any

import pytest
import torch

from nvg.errors import UserError
from nvg.granularity import check_structure
from nvg.tokenizer import Tokenizer, TokenizerConfig

SMALL: dict[str, Any] = {
    "image_channels": 1,
    "base_width": 8,
    "norm_groups": 4,
    "num_res_blocks": 1,
    "latent_channels": 4,
    "codebook_size": 16,
}


@pytest.mark.parametrize(("size", "levels", "side"), [(16, 3, 4), (16, 2, 8), (32, 2, 16), (64, 2, 32), (8, 3, 2)])
def test_any_power_of_two_grid(size, levels, side):
    torch.manual_seed(0)
    config = TokenizerConfig(image_size=size, width_multipliers=[1] * levels, **SMALL)
    tokenizer = Tokenizer(config).eval()
    images = torch.rand(2, 1, size, size) * 2 - 1
    ids, structure = tokenizer.tokenize(images)
    assert config.latent_side == side
    assert ids.shape == (2, 2 * side * side - 1)
    assert structure.shape == (2, side * side)
    check_structure(structure)
    decoded = tokenizer.decode(tokenizer.dequantizer.canvases(ids, structure)[:, -1]).detach()
    assert decoded.shape == images.shape
    assert float(decoded.abs().max()) <= 1.0


def test_published_tokenizer_has_the_release_shapes():
    import json

    from reference_vectors import FOLDER

    from nvg.checkpoints.release_names import autoencoder_from_release

    shapes = json.loads((FOLDER / "release_checkpoint_keys.json").read_text())["autoencoder"]
    with torch.device("meta"):
        own = {key: list(tensor.shape) for key, tensor in Tokenizer(TokenizerConfig()).state_dict().items()}
        release = autoencoder_from_release({key: torch.empty(shape) for key, shape in shapes.items()}, num_levels=5)
    assert own == {key: list(tensor.shape) for key, tensor in release.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 30}, "image_size 30"),
        ({"image_size": 24}, "num_positions is 36"),
        ({"image_channels": 2}, "image_channels is 2"),
        ({"norm_groups": 3}, "norm_groups 3"),
        ({"codebook_size": 1}, "codebook_size is 1"),
    ],
)
def test_impossible_configs_are_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        _ = TokenizerConfig(**{"image_size": 16, "width_multipliers": [1, 1, 1], **SMALL, **change}).dequantizer


def test_images_of_another_size_are_refused():
    tokenizer = Tokenizer(TokenizerConfig(image_size=16, width_multipliers=[1, 1, 1], **SMALL))
    with pytest.raises(UserError, match=r"\(3, 16, 16\).*\(1, 16, 16\)"):
        tokenizer.tokenize(torch.zeros(1, 3, 16, 16))
