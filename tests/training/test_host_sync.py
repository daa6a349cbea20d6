"""A step computes nothing on the host that depends on values of the device: it runs on a device that has no values."""

from typing import Any

import pytest
import torch
from tiny_networks import CODEBOOK_SIZE

from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.tokenizer import Dequantizer, DequantizerConfig
from nvg.training import ContentObjective, GeneratorLossConfig, StructureObjective

SPACE: dict[str, Any] = {"num_positions": 16, "latent_channels": 4}


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
    noise = {name: value if name in objective.host_noise else value.to("meta") for name, value in noise.items()}
    batch = {"label": (4,), "content_ids": (4, 31), "structure": (4, 16)}
    loss_value, metrics = objective(
        {name: torch.zeros(shape, dtype=torch.int64, device="meta") for name, shape in batch.items()}, noise
    )
    loss_value.backward()  # reading a value of the meta device, as .item() or nonzero() do, is an error
    assert loss_value.is_meta
    assert all(value.is_meta for value in metrics.values())
    assert {"accuracy", "accuracy_0"} <= set(metrics)
