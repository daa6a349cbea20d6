import pytest
import torch
import torch.nn.functional as F
from switched_networks import CONTENT_SWITCHES, STRUCTURE_SWITCHES, records, switched

from nvg.training import ContentObjective, GeneratorLossConfig, StructureObjective, noisy_structure

ALL_STAGES = GeneratorLossConfig(class_dropout_prob=0.0)


@pytest.mark.parametrize("content_input", ["noised_canvas", "mixed_canvas"])
def test_noise_is_drawn_for_the_global_batch_and_shared_by_the_stages_of_an_image(content_input):
    content, _, dequantizer = switched(content={"content_input": content_input})
    plain = ContentObjective(switched()[0], dequantizer, ALL_STAGES).draw_noise(seed=1, step=2, global_batch=8)
    noise = ContentObjective(content, dequantizer, ALL_STAGES).draw_noise(seed=1, step=2, global_batch=8)
    assert noise["canvas_noise"].shape == (8, 16, 4)
    assert set(noise) - set(plain) == {"canvas_noise"}
    assert all(torch.equal(noise[name], plain[name]) for name in plain)  # the switch moves no other random number


@torch.no_grad()
@pytest.mark.parametrize("switches", CONTENT_SWITCHES)
def test_content_loss_equals_a_loop_over_images_and_stages(switches):
    content, _, dequantizer = switched(content=switches)
    batch = records()
    canvases = dequantizer.canvases(batch["content_ids"], batch["structure"])
    objective = ContentObjective(content, dequantizer, ALL_STAGES)
    noise = objective.draw_noise(seed=0, step=0, global_batch=6)
    loss, metrics = objective(batch, noise)
    terms = []
    for image in range(6):
        rows = slice(image, image + 1)
        given = noise["canvas_noise"][rows] if content.config.needs_noise else None
        for stage in range(5):
            before = canvases[rows, stage - 1] if stage else torch.zeros_like(canvases[rows, 0])
            structure = batch["structure"][rows]
            final = content(before, structure, torch.tensor([stage]), batch["label"][rows], noise_NLC=given)
            logits = content.token_logits(final, before, structure, stage)[0]
            term = F.cross_entropy(logits, batch["content_ids"][image, dequantizer.layout.tokens(stage)])
            if switches.get("prediction") != "next_content":
                term = term + F.mse_loss(final, canvases[rows, -1])
            terms.append(term)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    assert ("mse" in metrics) == (switches.get("prediction") != "next_content")


def test_pure_noise_differs_in_the_known_channels_alone():
    data, noise = torch.randn(3, 16, 4).sign(), torch.randn(3, 16, 4)
    time, stage = torch.tensor([0.2, 0.7, 0.9]), torch.tensor([0, 1, 2])
    clean, clean_target = noisy_structure(data, noise, time, stage, known_clean=True)
    pure, pure_target = noisy_structure(data, noise, time, stage, known_clean=False)
    known = (torch.arange(4) < stage[:, None, None]).expand_as(data)
    assert torch.equal(clean[~known], pure[~known])
    assert torch.equal(clean_target[~known], pure_target[~known])
    assert torch.equal(clean[known], data[known])
    assert bool((clean_target[known] == 0).all())
    assert bool((pure[known] != data[known]).all())
    torch.testing.assert_close(pure_target, noise - data)


@torch.no_grad()
@pytest.mark.parametrize("switches", STRUCTURE_SWITCHES)
def test_structure_loss_is_the_mean_of_its_squared_errors(switches):
    _, structure, dequantizer = switched(structure=switches)
    objective = StructureObjective(structure, dequantizer, ALL_STAGES)
    noise = objective.draw_noise(seed=0, step=0, global_batch=6)
    errors, stages = objective.squared_errors(records(), noise)
    loss, metrics = objective(records(), noise)
    torch.testing.assert_close(loss, errors.mean())
    torch.testing.assert_close(metrics["velocity_1"][0] / metrics["velocity_1"][1], errors[stages == 1].mean())


@torch.no_grad()
def test_outside_training_every_branch_is_kept():
    """What scores on held-out records rest on."""
    content, structure, dequantizer = switched()
    for objective in (
        ContentObjective(content, dequantizer, ALL_STAGES),
        StructureObjective(structure, dequantizer, ALL_STAGES),
    ):
        objective.network.trunk.rates = torch.tensor([0.0, 0.5])
        noise = objective.draw_noise(seed=0, step=0, global_batch=6)
        all_dropped = {**noise, "drop_path": torch.zeros_like(noise["drop_path"])}
        assert objective.train()(records(), noise)[0] != objective(records(), all_dropped)[0]
        assert objective.eval()(records(), noise)[0] == objective(records(), all_dropped)[0]


@pytest.mark.parametrize("switches", CONTENT_SWITCHES)
def test_a_content_step_moves_every_parameter(switches):
    content, _, dequantizer = switched(content=switches)
    objective = ContentObjective(content.train(), dequantizer, ALL_STAGES)
    objective(records(), objective.draw_noise(seed=0, step=0, global_batch=6))[0].backward()
    assert all(parameter.grad is not None for parameter in content.parameters())


@pytest.mark.parametrize("switches", STRUCTURE_SWITCHES)
def test_a_structure_step_moves_every_parameter(switches):
    _, structure, dequantizer = switched(structure=switches)
    objective = StructureObjective(structure.train(), dequantizer, ALL_STAGES)
    objective(records(), objective.draw_noise(seed=0, step=0, global_batch=6))[0].backward()
    assert all(parameter.grad is not None for parameter in structure.parameters())
