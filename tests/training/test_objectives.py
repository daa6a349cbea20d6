from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference_vectors import tiny_generators
from switched_networks import records

from nvg.errors import UserError
from nvg.granularity import structure_embedding
from nvg.models import ContentGeneratorConfig, StructureGeneratorConfig
from nvg.tokenizer import Tokenizer, TokenizerConfig
from nvg.training import (
    ContentObjective,
    DiscriminatorLossConfig,
    GeneratorLossConfig,
    StructureObjective,
    TokenizerLossConfig,
    TokenizerObjective,
    generator_objectives,
)

ALL_STAGES = GeneratorLossConfig(class_dropout_prob=0.0)


@torch.no_grad()
def test_content_loss_equals_a_loop_over_images_and_stages():
    content, _, dequantizer = tiny_generators()
    batch = records()
    canvases = dequantizer.canvases(batch["content_ids"], batch["structure"])
    objective = ContentObjective(content, dequantizer, ALL_STAGES)
    loss, metrics = objective(batch, objective.draw_noise(seed=0, step=0, global_batch=6))
    terms = []
    for image in range(6):
        rows = slice(image, image + 1)
        for stage in range(5):
            before = canvases[rows, stage - 1] if stage else torch.zeros_like(canvases[rows, 0])
            structure = batch["structure"][rows]
            final = content(before, structure, torch.tensor([stage]), batch["label"][rows])
            logits = content.token_logits(final, before, structure, stage)[0]
            target = batch["content_ids"][image, dequantizer.layout.tokens(stage)]
            terms.append(F.mse_loss(final, canvases[rows, -1]) + F.cross_entropy(logits, target))
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    torch.testing.assert_close(loss, metrics["mse"] + metrics["cross_entropy"])


@pytest.mark.parametrize("stages", [[[4, 0], [2, 4], [0, 2]], [[3], [3], [3]], [[0], [0], [4]]])
def test_tokens_of_all_stages_in_one_product_are_those_of_a_loop_over_stages(stages):
    """Loss, gradients and the numbers of every stage, where stages are missing or alone; the head is called once."""
    content, _, dequantizer = tiny_generators()
    batch, stage_BM = records(3), torch.tensor(stages)
    objective = ContentObjective(content, dequantizer, ALL_STAGES).eval()
    calls = []
    content.token_head.register_forward_hook(lambda *_: calls.append(1))
    loss, metrics = objective(batch, {"stages": stage_BM})
    assert len(calls) == 1
    canvases = dequantizer.canvases(batch["content_ids"], batch["structure"])
    terms, by_stage = [], {}
    for image, row in enumerate(stages):
        rows = slice(image, image + 1)
        for stage in row:
            before = canvases[rows, stage - 1] if stage else torch.zeros_like(canvases[rows, 0])
            final = content(before, batch["structure"][rows], torch.tensor([stage]), batch["label"][rows])
            logits = content.token_logits(final, before, batch["structure"][rows], stage)[0]
            target = batch["content_ids"][image, dequantizer.layout.tokens(stage)]
            entropy = F.cross_entropy(logits, target)
            terms.append(F.mse_loss(final, canvases[rows, -1]) + entropy)
            right = (logits.argmax(-1) == target).float().mean()
            by_stage.setdefault(stage, []).append(torch.stack([entropy, right]).detach())
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(loss, expected)
    learned = list(content.parameters())
    for found, wanted in zip(*(torch.autograd.grad(one, learned) for one in (loss, expected)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    per_stage = {name: value for name, value in metrics.items() if name[-1].isdigit()}
    assert set(per_stage) == {f"{name}_{stage}" for name in ("cross_entropy", "accuracy") for stage in by_stage}
    for stage, numbers in by_stage.items():
        sums = torch.stack(numbers).sum(0)
        for name, total in zip(("cross_entropy", "accuracy"), sums, strict=True):
            torch.testing.assert_close(
                per_stage[f"{name}_{stage}"], torch.stack([total, torch.tensor(float(len(numbers)))])
            )


def test_what_the_token_loss_keeps_is_one_float_a_logit():
    """Held for the backward pass at 4,096 codes: the log-probabilities, and nothing else of their size."""
    content, _, dequantizer = tiny_generators(num_positions=64)
    content.token_head = torch.nn.Linear(4, 4096)
    objective = ContentObjective(content, dequantizer, ALL_STAGES)
    maps = torch.stack([torch.randperm(64) for _ in range(2)])
    batch = {"label": torch.arange(2), "content_ids": torch.randint(0, 11, (2, 127)), "structure": maps}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() >= 64 * 4096:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = objective(batch, objective.draw_noise(seed=0, step=0, global_batch=2))
    assert sum(kept.values()) == 4 * 2 * 127 * 4096
    loss.backward()


def test_cross_entropy_in_parts_is_that_of_the_whole(monkeypatch):
    logits = torch.randn(50, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.arange(50) % 16
    found = []
    for at_once in (1 << 24, 7 * 16, 1):
        monkeypatch.setattr(generator_objectives, "_LOGITS_AT_ONCE", at_once)
        entropies = generator_objectives.token_entropies(logits, target)
        found.append((entropies, torch.autograd.grad(entropies.square().sum(), logits)[0]))
    for entropies, gradient in found[1:]:
        assert torch.equal(entropies, found[0][0])
        assert torch.equal(gradient, found[0][1])


@torch.no_grad()
def test_structure_loss_equals_a_loop_over_images_and_stages():
    _, structure, dequantizer = tiny_generators()
    batch = records()
    canvases = dequantizer.canvases(batch["content_ids"], batch["structure"])
    objective = StructureObjective(structure, dequantizer, ALL_STAGES)
    noise = objective.draw_noise(seed=0, step=0, global_batch=6)
    loss, _ = objective(batch, noise)
    data = (structure_embedding(batch["structure"], 4, 4) - 1).float()
    terms = []
    for image in range(6):
        rows = slice(image, image + 1)
        for column, stage in enumerate(noise["stages"][image].tolist()):
            t, epsilon = noise["time"][image, column], noise["noise"][rows]
            noisy, target = t * epsilon + (1 - t) * data[rows], epsilon - data[rows]
            noisy[..., :stage], target[..., :stage] = data[rows][..., :stage], 0.0
            velocity = structure(
                noisy,
                canvases[rows, stage],
                batch["structure"][rows],
                torch.tensor([stage]),
                t[None],
                batch["label"][rows],
            )
            terms.append((velocity - target).square().mean())
    torch.testing.assert_close(loss, torch.stack(terms).mean())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["content", "structure"])
def test_held_out_losses_never_see_the_null_class(kind):
    content, structure, dequantizer = tiny_generators()
    objective = (
        ContentObjective(content, dequantizer, ALL_STAGES)
        if kind == "content"
        else StructureObjective(structure, dequantizer, ALL_STAGES)
    )
    kept = objective.draw_noise(seed=0, step=0, global_batch=6)
    dropped = {**kept, "class_dropped": torch.ones(6, dtype=torch.bool)}
    losses = {
        training: [objective.train(training)(records(), noise)[0].item() for noise in (kept, dropped)]
        for training in (True, False)
    }
    assert losses[False][0] == losses[False][1]
    assert losses[True][0] != losses[True][1]


@pytest.mark.parametrize("kind", ["content", "structure"])
def test_rows_of_the_global_batch_give_the_mean_loss(kind):
    """What makes any number of ranks see the same step: equal shares average to the loss of the whole batch."""
    content, structure, dequantizer = tiny_generators()
    objective = (
        ContentObjective(content, dequantizer, GeneratorLossConfig(stages_per_image=2))
        if kind == "content"
        else StructureObjective(structure, dequantizer, GeneratorLossConfig(stages_per_image=2))
    )
    batch, noise = records(), objective.draw_noise(seed=3, step=7, global_batch=6)
    whole, _ = objective(batch, noise)
    halves = [
        objective({k: v[rows] for k, v in batch.items()}, {k: v[rows] for k, v in noise.items()})[0]
        for rows in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(whole, sum(halves) / 2)


@pytest.mark.parametrize("stages_per_image", [None, 2])
@pytest.mark.parametrize("kind", ["content", "noised content", "structure", "tokenizer"])
def test_a_rank_draws_its_rows_of_the_noise_bitwise(kind, stages_per_image):
    content, structure, dequantizer = tiny_generators()
    config = GeneratorLossConfig(stages_per_image=stages_per_image)
    objective: Any = ContentObjective(content, dequantizer, config)
    if kind == "noised content":
        content.config = replace(content.config, content_input="noised_canvas")
    elif kind == "structure":
        objective = StructureObjective(structure, dequantizer, config)
    elif kind == "tokenizer":
        adversarial: Any = SimpleNamespace(config=TokenizerLossConfig(), discriminator=object())
        objective = SimpleNamespace(draw_noise=partial(TokenizerObjective.draw_noise, adversarial))
    whole = objective.draw_noise(seed=1, step=5, global_batch=24)
    # In one piece each, or dealt out in turns as StreamingDataset does.
    for rows in (slice(0, 8), slice(8, 16), slice(16, 24), slice(0, None, 3), slice(2, None, 3)):
        part = objective.draw_noise(seed=1, step=5, global_batch=24, rows=rows)
        assert part.keys() == whole.keys()
        for name, value in whole.items():
            assert torch.equal(part[name], value[rows]), name
            assert part[name].dtype == value.dtype


def test_noise_depends_on_seed_and_step_alone_and_covers_stages_evenly():
    content, structure, dequantizer = tiny_generators()
    objective = StructureObjective(structure, dequantizer, GeneratorLossConfig(stages_per_image=2))
    first = objective.draw_noise(seed=1, step=5, global_batch=30)
    again = objective.draw_noise(seed=1, step=5, global_batch=30)
    other = objective.draw_noise(seed=1, step=6, global_batch=30)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["noise"], other["noise"])
    assert all(len(value) == 30 for value in first.values())
    assert torch.bincount(first["stages"].flatten()).tolist() == [20, 20, 20]
    assert bool((first["stages"][:, 0] != first["stages"][:, 1]).all())
    dropped = ContentObjective(content, dequantizer, GeneratorLossConfig(class_dropout_prob=0.25))
    share = dropped.draw_noise(seed=0, step=0, global_batch=4000)["class_dropped"].float().mean()
    assert float(share) == pytest.approx(0.25, abs=0.03)


def test_only_the_network_learns():
    content, _, dequantizer = tiny_generators()
    objective = ContentObjective(content, dequantizer, ALL_STAGES)
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert trained == {f"network.{name}" for name, _ in content.named_parameters()}
    objective(records(), objective.draw_noise(seed=0, step=0, global_batch=6))[0].backward()
    assert all(parameter.grad is not None for parameter in content.parameters())


def test_tokenizer_loss_falls_and_leaves_warm_up():
    torch.manual_seed(0)
    config = TokenizerConfig(
        image_size=16, image_channels=1, base_width=8, norm_groups=4, width_multipliers=[1, 1, 1], num_res_blocks=1,
        latent_channels=4, codebook_size=16,
    )  # fmt: skip
    objective = TokenizerObjective(Tokenizer(config), TokenizerLossConfig(soft_assignment_images=80))
    assert bool(objective.draw_noise(seed=0, step=9, global_batch=8)["soft_assignment"].all())
    assert not bool(objective.draw_noise(seed=0, step=10, global_batch=8)["soft_assignment"].any())
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)
    losses = []
    for step in range(40):
        loss, metrics = objective({"image": images}, objective.draw_noise(seed=0, step=step, global_batch=8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(metrics["l1"]))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GeneratorLossConfig(class_dropout_prob=1.0), "class_dropout_prob is 1.0"),
        (lambda: GeneratorLossConfig(stages_per_image=0), "stages_per_image is 0"),
        (lambda: GeneratorLossConfig(repa_weight=float("nan")), "loss.repa_weight is nan"),
        (lambda: TokenizerLossConfig(adversarial_weight=float("inf")), "loss.adversarial_weight is inf"),
        (lambda: DiscriminatorLossConfig(lecam_decay=1.0), "lecam_decay is 1.0"),
        (lambda: DiscriminatorLossConfig(lecam_weight=float("nan")), "lecam_weight is nan"),
        (lambda: ContentGeneratorConfig(drop_path_rate=float("nan")), "content.drop_path_rate is nan"),
        (lambda: StructureGeneratorConfig(drop_path_rate=float("inf")), "structure.drop_path_rate is inf"),
        (lambda: TokenizerLossConfig(commitment_weight=-1.0), "commitment_weight is -1.0"),
    ],
)
def test_impossible_configs_are_refused_by_name(build, message):
    with pytest.raises(UserError, match=message):
        build()
