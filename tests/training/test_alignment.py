"""Hidden tokens are aligned with features: the loss is its formula, the head learns and the network with it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nvg.errors import UserError
from nvg.models import ContentGenerator, ContentGeneratorConfig, HiddenTokens
from nvg.tokenizer import Dequantizer, DequantizerConfig
from nvg.training import ContentObjective, GeneratorLossConfig
from pipelines.train.config import OptimizerConfig
from pipelines.train.engine import build_optimizer, trained_modules

SPACE: dict[str, Any] = {"num_positions": 16, "latent_channels": 4, "codebook_size": 16}
WIDTH = 6


def objective(weight=0.5, block=2, **given) -> Any:
    torch.manual_seed(0)
    network = ContentGenerator(ContentGeneratorConfig(depth=3, width=64, num_classes=10, **SPACE))
    dequantizer = Dequantizer(DequantizerConfig(**SPACE))
    return ContentObjective(
        network, dequantizer, GeneratorLossConfig(repa_weight=weight, repa_block=block), feature_width=WIDTH, **given
    ).eval()


def batch(num_positions=16):
    stream = torch.Generator().manual_seed(1)
    return {
        "label": torch.tensor([3, 7]),
        "content_ids": torch.randint(0, 16, (2, 31), generator=stream),
        "structure": torch.stack([torch.randperm(16, generator=stream) for _ in range(2)]),
        "features": torch.randn(2, num_positions, WIDTH, generator=stream),
    }


def test_loss_is_the_mean_over_all_stages_of_one_minus_the_cosine():
    aligned, records = objective(), batch()
    noise = aligned.draw_noise(seed=0, step=0, global_batch=2)
    loss, metrics = aligned(records, noise)
    plain = objective(weight=0.0)
    without, _ = plain(records, noise)
    assert loss.item() == pytest.approx(without.item() + 0.5 * metrics["repa"].item(), rel=1e-6)

    distances = []
    canvases = aligned.dequantizer.canvases(records["content_ids"], records["structure"])
    for image in range(2):
        label = torch.where(noise["class_dropped"], 10, records["label"])[image][None]
        for stage in range(5):
            before = canvases[image : image + 1, stage - 1] if stage else torch.zeros(1, 16, 4)
            hidden: Any = HiddenTokens(2)
            aligned.network(before, records["structure"][image][None], torch.tensor([stage]), label, hidden=hidden)
            predicted = aligned.alignment.head(hidden.tokens_NSD[:, 1:])
            distances.append((1 - F.cosine_similarity(predicted, records["features"][image][None], dim=-1)).mean())
    assert metrics["repa"].item() == pytest.approx(torch.stack(distances).mean().item(), rel=1e-5)


def test_gradient_reaches_the_blocks_before_and_the_head_only():
    aligned = objective(block=2)
    hidden = aligned.alignment.hidden()
    stages = torch.arange(2)
    aligned.network(torch.randn(2, 16, 4), batch()["structure"], stages, stages, hidden=hidden)
    aligned.alignment(hidden, batch()).backward()
    blocks = aligned.network.trunk.blocks
    assert [block.linear_in.weight.grad is not None for block in blocks] == [True, True, False]
    assert all(parameter.grad is not None for parameter in aligned.alignment.head.parameters())


def test_teacher_makes_the_features_where_none_are_stored_and_is_neither_trained_nor_saved():
    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, WIDTH)

        def forward(self, images):
            return self.linear(F.avg_pool2d(images, 2).flatten(2).transpose(1, 2))

    teacher = Teacher()
    aligned = objective(teacher=teacher)
    images = torch.rand(2, 3, 8, 8)
    noise = aligned.draw_noise(seed=0, step=0, global_batch=2)
    records = batch()
    stored = {**records, "features": teacher(images).detach()}
    online, _ = aligned({**records, "image": images}, noise)
    assert online.item() == pytest.approx(objective()(stored, noise)[0].item(), rel=1e-6)
    assert not any("teacher" in name for name in aligned.state_dict())
    found = {id(parameter) for module in trained_modules(aligned) for parameter in module.parameters()}
    assert not found & {id(parameter) for parameter in teacher.parameters()}


def test_head_is_trained_without_the_networks_factors_and_no_part_of_the_weights():
    aligned = objective()
    config = OptimizerConfig(lr_factors={"token_head": 20.0})
    optimizer = build_optimizer(trained_modules(aligned), config, torch.device("cpu"))
    trained = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    head = aligned.alignment.head.layers[0]
    assert (trained[id(head.weight)]["lr_factor"], trained[id(head.weight)]["weight_decay"]) == (1.0, 0.05)
    assert trained[id(aligned.network.token_head.weight)]["lr_factor"] == 20.0
    assert not any("alignment" in name for name in aligned.network.state_dict())


def test_impossible_alignments_are_named():
    with pytest.raises(UserError, match=r"loss.repa_block is 8; the network has blocks 1 to 3"):
        objective(block=8)
    aligned = objective()
    noise = aligned.draw_noise(seed=0, step=0, global_batch=2)
    with pytest.raises(UserError, match=r"features of \(4, 6\) .* do not fit tokens of \(16, 6\)"):
        aligned(batch(num_positions=4), noise)
    with pytest.raises(UserError, match="repa_weight is -1"):
        GeneratorLossConfig(repa_weight=-1.0)
