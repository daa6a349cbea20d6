"""A step computes nothing on the host that depends on values of the device: it runs on a device that has no values."""

from typing import Any

import pytest
import torch
from tiny_networks import CODEBOOK_SIZE, tokenizer_config
from torch.utils._python_dispatch import TorchDispatchMode

from nvg.granularity import structure_embedding
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.sampling import integrate_flow
from nvg.tokenizer import (
    Dequantizer,
    DequantizerConfig,
    DinoFeatures,
    Dinov2Features,
    Discriminator,
    EfficientNetTokens,
    FeatureDistance,
    Tokenizer,
)
from nvg.training import ContentObjective, GeneratorLossConfig, StructureObjective
from nvg.training.adversarial import DiscriminatorLossConfig, DiscriminatorObjective
from nvg.training.tokenizer_objective import TokenizerLossConfig, TokenizerObjective

SPACE: dict[str, Any] = {"num_positions": 16, "latent_channels": 4}


class NothingIsSent(TorchDispatchMode):
    """Refuses copies from the host to the device, which wait where the memory is not pinned."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and result.is_meta:
            raise AssertionError(f"a tensor {tuple(args[0].shape)} is sent from the host")
        return result


def on_meta(noise, objective):
    return {name: value if name in objective.host_noise else value.to("meta") for name, value in noise.items()}


@pytest.mark.parametrize("stages_per_image", [None, 2])
@pytest.mark.parametrize("kind", ["content", "structure", "content with noise"])
def test_forward_and_backward_never_wait_for_the_device(kind, stages_per_image):
    loss = GeneratorLossConfig(stages_per_image=stages_per_image)
    dequantizer = Dequantizer(DequantizerConfig(**SPACE, codebook_size=CODEBOOK_SIZE))
    if kind == "structure":
        network = StructureGenerator(StructureGeneratorConfig(depth=1, width=64, num_classes=10, **SPACE))
        objective = StructureObjective(network, dequantizer, loss)
    else:
        content_input = "canvas" if kind == "content" else "noised_canvas"
        config = ContentGeneratorConfig(
            depth=1, width=64, num_classes=10, codebook_size=CODEBOOK_SIZE, content_input=content_input, **SPACE
        )
        objective = ContentObjective(ContentGenerator(config), dequantizer, loss)
    objective.to("meta")
    noise = objective.draw_noise(seed=0, step=0, global_batch=4)
    noise = on_meta(noise, objective)
    batch = {"label": (4,), "content_ids": (4, 31), "structure": (4, 16)}
    loss_value, metrics = objective(
        {name: torch.zeros(shape, dtype=torch.int64, device="meta") for name, shape in batch.items()}, noise
    )
    loss_value.backward()  # reading a value of the meta device, as .item() or nonzero() do, is an error
    assert loss_value.is_meta
    assert all(value.is_meta for value in metrics.values())
    assert {"accuracy", "accuracy_0"} <= set(metrics)


@pytest.mark.parametrize("stage", [2, torch.zeros(4, dtype=torch.int64, device="meta")], ids=["one", "each"])
def test_structure_embeddings_send_nothing(stage):
    with NothingIsSent():
        assert structure_embedding(torch.zeros(4, 16, dtype=torch.int64, device="meta"), stage, 4).is_meta


def test_what_is_sent_is_noticed():
    with NothingIsSent(), pytest.raises(AssertionError, match="sent from the host"):
        torch.as_tensor(2).to("meta")


def test_the_flow_of_sampling_neither_waits_nor_sends():
    network = StructureGenerator(StructureGeneratorConfig(depth=1, width=64, num_classes=10, **SPACE)).to("meta")
    structure, labels = (torch.zeros(shape, dtype=torch.int64, device="meta") for shape in ((2, 16), (2,)))
    noise, canvas = torch.zeros(2, 16, 4, device="meta"), torch.zeros(2, 16, 4, device="meta")
    settings: dict[str, Any] = {"stage": 1, "guidance_scale": 2.0, "num_steps": 2}
    assert integrate_flow(network, noise, canvas, structure, labels, **settings).is_meta


def test_judges_of_the_tokenizer_neither_wait_nor_send():
    """The discriminator's crops are decided by uniforms that stay on the host."""
    with torch.device("meta"):
        judge = DiscriminatorObjective(Discriminator(DinoFeatures()), DiscriminatorLossConfig()).train()
        network = Tokenizer(tokenizer_config(image_channels=3))
    config = TokenizerLossConfig(adversarial_weight=0.1)
    objective = TokenizerObjective(network, config, discriminator=judge.network).to("meta")
    noise = on_meta(objective.draw_noise(seed=0, step=0, global_batch=2), objective)
    images = torch.zeros(2, 3, 256, 256, device="meta", requires_grad=True)
    with NothingIsSent():
        objective.adversarial_loss(images, noise).backward()
        judge({"image": images.detach(), "reconstruction": images.detach()}, noise)[0].backward()


@pytest.mark.parametrize(
    "build", [lambda: Dinov2Features(embed_dim=48, depth=1, num_heads=3), lambda: EfficientNetTokens(8)]
)
def test_the_teacher_of_alignment_neither_waits_nor_sends(build):
    with torch.device("meta"):
        teacher = build()
    with NothingIsSent():
        assert teacher(torch.zeros(2, 3, 256, 256, device="meta")).is_meta


def test_the_feature_loss_neither_waits_nor_sends():
    with torch.device("meta"):
        distance = FeatureDistance(32)
    found = torch.zeros(2, 1, 32, 32, device="meta", requires_grad=True)
    with NothingIsSent():
        distance(found, found.detach()).mean().backward()
    assert found.grad is not None


def test_quantising_in_training_neither_waits_nor_sends(monkeypatch):
    """What follows clustering in a tokenizer's step; the merging in rounds asks the device whether it is done."""
    config = TokenizerLossConfig(soft_assignment_images=0, revive_after_images=100)
    objective = TokenizerObjective(Tokenizer(tokenizer_config(image_channels=3)), config).to("meta").train()
    maps = torch.zeros(2, 16, dtype=torch.int64, device="meta")
    monkeypatch.setattr(objective.network, "structure_maps", lambda latent_BLC, checked: maps)
    noise = on_meta(objective.draw_noise(seed=0, step=0, global_batch=2), objective)
    with NothingIsSent():
        loss, _ = objective({"image": torch.zeros(2, 3, 16, 16, device="meta")}, noise)
        loss.backward()
    assert loss.is_meta
