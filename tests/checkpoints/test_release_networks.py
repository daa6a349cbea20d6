"""Sizes come from shapes, everything else is compared strictly, and both directions undo each other."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from reference_vectors import FOLDER, vectors
from released_checkpoints import reference_autoencoder

from nvg.checkpoints.release_networks import (
    AUTOENCODER_IGNORED,
    AUTOENCODER_PARTS,
    ReleasedNetwork,
    check_same_space,
    generators_of_release,
    generators_to_release,
    select,
    tokenizer_of_release,
    tokenizer_to_release,
)
from nvg.errors import UserError
from nvg.models import (
    ContentGenerator,
    ContentGeneratorConfig,
    RepaHead,
    RepaHeadConfig,
    StructureGenerator,
    StructureGeneratorConfig,
)
from nvg.tokenizer import Tokenizer, TokenizerConfig

Tensors = dict[str, torch.Tensor]


def published_sizes(name: str) -> Tensors:
    """Tensors of the published sizes that take no memory."""
    shapes = json.loads((FOLDER / "release_checkpoint_keys.json").read_text())[name]
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    if "rope_ids" in tensors:
        tensors["rope_ids"] = vectors("generator_d2")["rope_ids"]
    return tensors


def bare_autoencoder() -> Tensors:
    return select(reference_autoencoder(), AUTOENCODER_PARTS, AUTOENCODER_IGNORED, "ae.ckpt")[0]


def own(kind: str, network) -> ReleasedNetwork:
    return ReleasedNetwork(kind=kind, config=network.config, tensors=network.state_dict())


def own_tokenizer(**settings) -> ReleasedNetwork:
    sizes = {"image_size": 16, "base_width": 32, "width_multipliers": [1, 2, 2], "num_res_blocks": 1}
    space = {"latent_channels": 4, "codebook_size": 11}
    return own("tokenizer", Tokenizer(TokenizerConfig(**{**sizes, **space, **settings})))


def own_generators(**settings) -> list[ReleasedNetwork]:
    """A 4x4 grid; settings are of the content generator."""
    space: dict[str, Any] = {"depth": 2, "num_classes": 3, "num_positions": 16, "latent_channels": 4}
    scales = torch.linspace(1, 2, 6).tolist()
    content = ContentGeneratorConfig(**{**space, "codebook_size": 11, "canvas_scales": scales, **settings})
    return [
        own("content", ContentGenerator(content)),
        own("structure", StructureGenerator(StructureGeneratorConfig(**space))),
        own("repa", RepaHead(RepaHeadConfig(width=128, hidden=20, out=7))),
    ]


def same(left: ReleasedNetwork, right: ReleasedNetwork) -> bool:
    assert left.kind == right.kind
    assert asdict(left.config) == asdict(right.config)
    assert left.tensors.keys() == right.tensors.keys()
    return all(torch.equal(tensor, right.tensors[name]) for name, tensor in left.tensors.items())


def test_published_sizes_are_recognised():
    content, structure = generators_of_release(published_sizes("generator_d16"), "d16.ckpt")
    assert replace(content.config, canvas_scales=[]) == ContentGeneratorConfig()
    assert structure.config == StructureGeneratorConfig()
    assert tokenizer_of_release(published_sizes("autoencoder"), "ae.ckpt").config == TokenizerConfig()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_generators_there_and_back(dtype):
    networks = own_generators()
    released = generators_to_release(networks, dtype)
    assert released["rope_ids"].dtype == dtype
    assert released["rope_ids"].shape == (1, 17, 7)
    for network, again in zip(networks, generators_of_release(released, "d2.ckpt"), strict=True):
        assert same(network, again)


def test_tokenizer_there_and_back():
    tokenizer = own_tokenizer()
    assert same(tokenizer, tokenizer_of_release(tokenizer_to_release(tokenizer), "ae.ckpt"))


def check_named(read, tensors: Tensors, name: str, *, twins: str) -> None:
    """Without a tensor, or with 64 rows more, `read` names that tensor alone, or one that tells the same size."""
    others = {key: tensor for key, tensor in tensors.items() if key != name}
    shape = tuple(tensors[name].shape)
    misshapen = {**others, name: torch.zeros(()).expand(shape[0] + 64, *shape[1:])}
    for damaged in (others, misshapen):
        with pytest.raises(UserError, match="holds another architecture") as error:
            read(damaged, "a.ckpt")
        named = re.findall(r"([\w.]+): found", str(error.value))
        assert named == [name] or (len(named) == 1 and all(re.fullmatch(twins, text) for text in (name, *named)))


@pytest.mark.parametrize("name", sorted(vectors("generator_d2")))
def test_a_missing_or_misshapen_tensor_of_the_generator_is_named(name):
    twins = r"cls_head\.linear\.(weight|bias)|(content|structure)_class_embed\.weight"
    check_named(generators_of_release, vectors("generator_d2"), name, twins=twins)


@pytest.mark.parametrize("name", sorted(set(bare_autoencoder()) - {"quantize.embedding.weight"})[::7])
def test_a_missing_or_misshapen_tensor_of_the_autoencoder_is_named(name):
    check_named(tokenizer_of_release, bare_autoencoder(), name, twins="none")


def test_the_first_ten_differences_are_named():
    tensors = dict(vectors("generator_d2"))
    extra = {f"content_blocks.2.{name}": torch.zeros(3) for name in "abcdefghijkl"}
    with pytest.raises(UserError, match=r"d2\.ckpt.*blocks\.2\.a: found \(3,\), expected nothing.*\.j: .* and 2 more$"):
        generators_of_release(tensors | extra, "d2.ckpt")
    whole_block = {name: tensor for name, tensor in tensors.items() if not name.startswith("content_blocks.1")}
    with pytest.raises(UserError, match=r"content_blocks\.1\.linear1\.bias: found nothing, expected \(896,\)"):
        generators_of_release(whole_block, "d2.ckpt")
    with pytest.raises(UserError, match=r"content_embed\.bias: found torch\.int64, expected \(128,\)"):
        generators_of_release(tensors | {"content_embed.bias": torch.zeros(128, dtype=torch.int64)}, "d2.ckpt")


def test_other_rotary_ids_are_refused():
    ids = vectors("generator_d2")["rope_ids"].clone()
    ids[0, 0, 0] = 0
    with pytest.raises(UserError, match="rope_ids are not those of the released networks"):
        generators_of_release({**vectors("generator_d2"), "rope_ids": ids}, "d2.ckpt")


def test_names_of_no_release_are_refused():
    tensors = reference_autoencoder()
    _, ignored = select(tensors, AUTOENCODER_PARTS, AUTOENCODER_IGNORED, "ae.ckpt")
    assert ignored == {"ema_model.": len(bare_autoencoder()), "loss.": 1, "total_visited_codes": 1}
    strange = {f"strange.{number:02d}": torch.zeros(1) for number in range(12)}
    with pytest.raises(UserError, match=r"names that no release has: strange\.00, .*strange\.09 and 2 more"):
        select(tensors | strange, AUTOENCODER_PARTS, AUTOENCODER_IGNORED, "ae.ckpt")
    with pytest.raises(UserError, match=r"has no tensor of nvgformer\.\*"):
        select({"loss.a": torch.zeros(1)}, ("nvgformer.",), ("loss.",), "d16.ckpt")


def test_settings_the_release_does_not_have_are_not_exported():
    with pytest.raises(UserError, match=r"cannot hold these settings of the tokenizer: norm_groups 16 .*be 32"):
        tokenizer_to_release(own_tokenizer(norm_groups=16))
    with pytest.raises(UserError, match=r"settings of the content: depth 2 \(it would be 1\)"):
        generators_to_release(own_generators(width=64)[:2], torch.float32)
    with pytest.raises(UserError, match=r"settings of the content: structure_rope False"):
        generators_to_release(own_generators(structure_rope=False), torch.float32)


def test_files_of_two_releases_do_not_fit():
    content = own_generators()[0]
    check_same_space(own_tokenizer(), content)
    with pytest.raises(UserError, match=r"do not fit each other: codebook_size 12 and 11"):
        check_same_space(own_tokenizer(codebook_size=12), content)
