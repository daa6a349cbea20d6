"""Laws of the switches: each changes what it names and nothing else."""

import json
from dataclasses import asdict

import pytest
import torch
from switched_networks import records, switched

from nvg.checkpoints import load_network, save_weights
from nvg.errors import UserError
from nvg.granularity import cluster_mean
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.models.canvas_input import MIXED_CANVAS, NOISED_CANVAS, noise_level, noised_canvas

INPUTS = [NOISED_CANVAS, MIXED_CANVAS]


def test_noise_level_is_the_papers_schedule():
    paper = [1 - (i - 1) / 9 for i in range(1, 10)]
    assert noise_level(torch.arange(9), 8).tolist() == pytest.approx(paper)
    for last_stage in (4, 6, 10):
        levels = noise_level(torch.arange(last_stage + 1), last_stage)
        assert levels.tolist() == sorted(levels.tolist(), reverse=True)
        assert float(levels[0]) == 1.0
        assert float(levels[-1]) == pytest.approx(1 / (last_stage + 1))


def test_mixing_law():
    canvas, noise = torch.randn(3, 16, 4), torch.randn(3, 16, 4)
    for content_input in INPUTS:
        assert torch.equal(noised_canvas(canvas, noise, torch.zeros(3), content_input), canvas)
    half = torch.full((3,), 0.5)
    torch.testing.assert_close(noised_canvas(canvas, noise, half, NOISED_CANVAS), canvas + 0.5 * noise)
    torch.testing.assert_close(noised_canvas(canvas, noise, half, MIXED_CANVAS), 0.5 * canvas + 0.5 * noise)
    assert torch.equal(noised_canvas(canvas, noise, torch.ones(3), MIXED_CANVAS), noise)


def call(content, noise=None, stage=2):
    canvas, batch = torch.randn(6, 16, 4, generator=torch.Generator().manual_seed(3)), records()
    return content(canvas, batch["structure"], torch.full((6,), stage), batch["label"], None, noise)


@torch.no_grad()
@pytest.mark.parametrize("content_input", INPUTS)
def test_noise_reaches_the_network_scaled_by_its_level(content_input):
    content, plain = switched(content={"content_input": content_input})[0], switched()[0]
    noise = torch.randn(6, 16, 4)
    if content_input == NOISED_CANVAS:  # no noise drawn, none seen
        assert torch.equal(call(content, torch.zeros(6, 16, 4)), call(plain))
    else:  # at stage 0 nothing of the start canvas is left
        with torch.no_grad():
            before = call(content, noise, stage=0)
            content.start_canvas.add_(1.0)
            assert torch.equal(call(content, noise, stage=0), before)
    assert not torch.equal(call(content, noise), call(content, noise + 1))


def test_noise_is_asked_for_exactly_where_it_is_needed():
    with pytest.raises(UserError, match=r"found none at content_input 'noised_canvas'"):
        call(switched(content={"content_input": NOISED_CANVAS})[0])
    with pytest.raises(UserError, match=r"found some at content_input 'canvas'"):
        call(switched()[0], torch.zeros(6, 16, 4))


@torch.no_grad()
def test_next_content_pools_the_head_itself():
    final, following = switched()[0], switched(content={"prediction": "next_content"})[0]
    batch, estimate, canvas = records(), torch.randn(6, 16, 4), torch.randn(6, 16, 4)
    maps = batch["structure"]
    assert torch.equal(*(following.token_logits(estimate, seen, maps, 2) for seen in (canvas, -canvas)))
    torch.testing.assert_close(
        following.token_logits(estimate, canvas, maps, 2), following.token_head(cluster_mean(estimate, maps, 2))
    )
    torch.testing.assert_close(
        final.token_logits(estimate + canvas, canvas, maps, 2), following.token_logits(estimate, canvas, maps, 2)
    )


@torch.no_grad()
def test_without_structure_rope_maps_change_nothing():
    content, structure, _ = switched(content={"structure_rope": False}, structure={"structure_rope": False})
    aware_content, aware_structure, _ = switched()
    batch, canvas, stage = records(), torch.randn(6, 16, 4), torch.full((6,), 2)
    other = batch["structure"].flip(1)
    noisy, time = torch.randn(6, 16, 4), torch.rand(6)
    for maps_blind in (True, False):
        one, two = (content, structure) if maps_blind else (aware_content, aware_structure)
        drawn = [one(canvas, maps, stage, batch["label"]) for maps in (batch["structure"], other)]
        assert torch.equal(*drawn) == maps_blind
        flows = [two(noisy, canvas, maps, stage, time, batch["label"]) for maps in (batch["structure"], other)]
        assert torch.equal(*flows) == maps_blind


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ContentGeneratorConfig(content_input="noise"), "content_input is 'noise'; choose one of canvas"),
        (lambda: ContentGeneratorConfig(prediction="tokens"), "prediction is 'tokens'"),
        (lambda: StructureGeneratorConfig(structure_input="clean"), "structure_input is 'clean'"),
        (
            lambda: StructureGeneratorConfig(structure_input="noise", structure_rope=False),
            "nothing would tell the network which splits are known",
        ),
    ],
)
def test_impossible_switches_are_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize("kind", ["content", "structure"])
def test_weights_from_before_the_switches_load(tmp_path, kind):
    network = switched()[0 if kind == "content" else 1]
    save_weights(tmp_path, network.state_dict(), asdict(network.config), kind, name="ema")
    file = tmp_path / "config.json"
    description = json.loads(file.read_text())
    for name in ("content_input", "prediction", "structure_rope", "structure_input"):
        description["config"].pop(name, None)
    file.write_text(json.dumps(description))
    loaded = load_network(ContentGenerator if kind == "content" else StructureGenerator, tmp_path)
    assert loaded.config == network.config
