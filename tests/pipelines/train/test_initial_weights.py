"""Fine-tuning begins with another training's weights, and says which it could not take."""

import logging
from dataclasses import asdict, replace

import pytest
import torch
from tiny_networks import save_generators

from nvg.checkpoints import load_network, save_weights
from nvg.errors import UserError
from nvg.models import ContentGenerator, StructureGenerator
from pipelines.train.generator import ComputeConfig, ContentRun, begin_with, is_new, prepare_network


@pytest.fixture
def weights(tmp_path):
    return dict(zip((ContentGenerator, StructureGenerator), save_generators(tmp_path), strict=True))


@pytest.mark.parametrize("network_type", [ContentGenerator, StructureGenerator])
def test_same_classes_take_every_weight(network_type, weights, caplog):
    source = load_network(network_type, weights[network_type])
    network = network_type(source.config)
    begin_with(network, str(weights[network_type]))
    for name, value in source.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    assert not caplog.records


@pytest.mark.parametrize("network_type", [ContentGenerator, StructureGenerator])
def test_other_classes_begin_anew_and_nothing_else(network_type, weights, caplog):
    source = load_network(network_type, weights[network_type])
    network = network_type(replace(source.config, num_classes=3))
    fresh = network.class_embedding.weight.detach().clone()
    with caplog.at_level(logging.WARNING):
        begin_with(network, str(weights[network_type]))
    assert "was trained on 10 classes, this run has 3: the class embedding begins anew" in caplog.text
    for name, value in network.state_dict().items():
        expected = fresh if name == "class_embedding.weight" else source.state_dict()[name]
        assert torch.equal(value, expected), name


def test_scales_stay_those_of_the_new_records(weights):
    source = load_network(ContentGenerator, weights[ContentGenerator])
    scales = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    network = ContentGenerator(replace(source.config, canvas_scales=scales))
    begin_with(network, str(weights[ContentGenerator]))
    assert network.canvas_scales.tolist() == scales


def test_imported_weights_have_another_file_name(weights, tmp_path):
    source = load_network(ContentGenerator, weights[ContentGenerator])
    save_weights(tmp_path / "bare", source.state_dict(), asdict(source.config), "content", name="model")
    network = ContentGenerator(source.config)
    begin_with(network, str(tmp_path / "bare"))
    assert torch.equal(network.token_head.weight, source.token_head.weight)


def test_another_architecture_or_kind_is_refused_by_name(weights, tmp_path):
    config = load_network(ContentGenerator, weights[ContentGenerator]).config
    with pytest.raises(UserError, match=r"another architecture:\n  structure_rope: True there, False here"):
        begin_with(ContentGenerator(replace(config, structure_rope=False)), str(weights[ContentGenerator]))
    with pytest.raises(UserError, match="describes a structure"):
        begin_with(ContentGenerator(config), str(weights[StructureGenerator]))
    with pytest.raises(UserError, match=r"init_from: found no folder .*nowhere"):
        begin_with(ContentGenerator(config), str(tmp_path / "nowhere"))


def test_a_run_with_a_checkpoint_does_not_look_at_them(weights, tmp_path):
    config = load_network(ContentGenerator, weights[ContentGenerator]).config
    run = ContentRun(
        run_folder=str(tmp_path / "run"),
        init_from=str(tmp_path / "gone"),
        compute=ComputeConfig(recompute_activations=True),
    )
    network = ContentGenerator(config)
    with pytest.raises(UserError, match="init_from"):
        prepare_network(network, run)
    (tmp_path / "run" / "checkpoints" / "step-00000004").mkdir(parents=True)
    assert not is_new(tmp_path / "run")
    prepare_network(network, run)
    assert network.trunk.recompute_activations
