import json
from dataclasses import asdict

import pytest
import torch
from reference_vectors import tiny_generators

from nvg.checkpoints import load_network, load_weights, save_weights, weights_hash
from nvg.errors import UserError
from nvg.models import ContentGenerator


def test_networks_come_back_as_they_were(tmp_path):
    content, structure, dequantizer = tiny_generators()
    for network, kind in ((content, "content"), (structure, "structure"), (dequantizer, "dequantizer")):
        save_weights(tmp_path / kind, network.state_dict(), asdict(network.config), kind, name="own")
        back = load_network(type(network), tmp_path / kind, "own")
        assert back.config == network.config
        assert not back.training
        assert all(torch.equal(value, network.state_dict()[key]) for key, value in back.state_dict().items())
    assert not list(tmp_path.rglob("*.part"))


def test_hash_changes_with_the_weights(tmp_path):
    save_weights(tmp_path, {"a": torch.zeros(3)}, {}, "tokenizer")
    first = weights_hash(tmp_path)
    save_weights(tmp_path, {"a": torch.ones(3)}, {}, "tokenizer")
    assert weights_hash(tmp_path) != first


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"model.safetensors is missing.*content"):
        load_weights(tmp_path, "content")
    save_weights(tmp_path, {"a": torch.zeros(300)}, {}, "tokenizer")
    with pytest.raises(UserError, match=r"describes a tokenizer.*expected a content"):
        load_weights(tmp_path, "content")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        load_weights(tmp_path, "tokenizer")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: not valid JSON"):
        load_weights(tmp_path, "tokenizer")


def test_another_architecture_is_refused_by_name(tmp_path):
    content, _, _ = tiny_generators()
    save_weights(tmp_path, content.state_dict(), {**asdict(content.config), "width": 128}, "content", name="ema")
    with pytest.raises(UserError, match=r"another architecture: canvas_in.bias: found \(64,\), expected \(128,\)"):
        load_network(ContentGenerator, tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "config": {"tall": 1}}))
    with pytest.raises(UserError, match=r"tall is an unknown key"):
        load_network(ContentGenerator, tmp_path)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    content, _, _ = tiny_generators()
    tensors = {name: tensor.clone() for name, tensor in content.state_dict().items()}
    tensors["canvas_in.bias"][0] = torch.nan
    save_weights(tmp_path, tensors, asdict(content.config), "content", name="ema")
    with pytest.raises(UserError, match=r"ema.safetensors holds numbers that are not finite in canvas_in.bias; use"):
        load_network(ContentGenerator, tmp_path)
