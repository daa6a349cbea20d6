"""What a training costs: parameters, operations and tokens of an image, memory of a device, hours.

All of it is counted on networks without storage, so the largest takes a second on a laptop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from cluster.ranks import Ranks
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from pipelines.train.task import TrainingTask

ModelConfig = ContentGeneratorConfig | StructureGeneratorConfig
_BACKWARD = 2.0  # operations of the backward pass for each of the forward pass

# Dense bf16 operations a second, as the makers state them, by a part of the device's name.
PEAK_FLOPS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "H800": 989e12, "B200": 2250e12, "A100": 312e12,
    "A800": 312e12, "L40S": 362e12, "RTX 4090": 165e12,
}  # fmt: skip
STATED_DEVICE, STATED_UTILISATION = "H100", 0.4


@dataclass(frozen=True, kw_only=True)
class TrainingWork:
    """Costs of a training that follow from the network alone.

    Attributes:
        num_parameters: trained ones.
        flops_per_image: matrix products and attention of forward and backward pass over all stages of an image.
        tokens_per_image: of all sequences of an image.
        activation_bytes: kept for the backward pass of one image.
    """

    num_parameters: int
    flops_per_image: float
    tokens_per_image: int
    activation_bytes: float


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations a second of a device, None where it is not in the list."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device_name), None)


def tokens_per_image(network: ContentGenerator | StructureGenerator, stages_per_image: int | None) -> int:
    """Transformer tokens of an image: of all sequences that a step makes of it; None stands for all stages."""
    num_sequences, tokens = _sequences(network)
    return min(stages_per_image or num_sequences, num_sequences) * tokens


def flops_per_image(model: ModelConfig, stages_per_image: int | None) -> float:
    """Matrix products and attention of forward and backward pass for the stages of one image; None stands for all."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:  # there attention is two matrix products
        network = _build(model)
        _forward(network)
    share = tokens_per_image(network, stages_per_image) / tokens_per_image(network, None)
    return (1 + _BACKWARD) * counter.get_total_flops() * share


def count_work(
    model: ModelConfig, *, stages_per_image: int | None, precision: str, recompute_activations: bool
) -> TrainingWork:
    """Count one image of a generator; `stages_per_image` None stands for all stages."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with FakeTensorMode():
        network = _build(model)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with autocast, saved_tensors_hooks(keep, lambda tensor: tensor):
            result = _forward(network)
    for parameter in network.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    del result
    tokens = tokens_per_image(network, stages_per_image)
    activations = float(sum(kept.values())) * tokens / tokens_per_image(network, None)
    if recompute_activations:  # the inputs of all blocks, and one block at a time
        activations = 4.0 * tokens * network.canvas_in.out_features * model.depth + activations / model.depth
    return TrainingWork(
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        flops_per_image=flops_per_image(model, stages_per_image),
        tokens_per_image=tokens,
        activation_bytes=activations,
    )


def _build(model: ModelConfig) -> ContentGenerator | StructureGenerator:
    return ContentGenerator(model) if isinstance(model, ContentGeneratorConfig) else StructureGenerator(model)


def _sequences(network: ContentGenerator | StructureGenerator) -> tuple[int, int]:
    """Sequences of an image, tokens of one."""
    layout = network.layout
    if isinstance(network, ContentGenerator):
        return layout.num_stages, 1 + layout.num_positions
    return layout.num_structure_stages, 1 + 2 * layout.num_positions


def _forward(network: ContentGenerator | StructureGenerator) -> list[Tensor]:
    """All stages of one image; what keeps the graph alive."""
    config, layout = network.config, network.layout
    num_sequences, _ = _sequences(network)
    stages, classes = torch.arange(num_sequences), torch.zeros(num_sequences, dtype=torch.int64)
    maps = torch.zeros(num_sequences, config.num_positions, dtype=torch.int64)
    canvas = torch.zeros(num_sequences, config.num_positions, config.latent_channels)
    if isinstance(network, StructureGenerator):
        noisy = torch.zeros(num_sequences, config.num_positions, layout.last_stage)
        return [network(noisy, canvas, maps, stages, torch.zeros(num_sequences), classes)]
    noise = canvas if network.config.needs_noise else None
    final = network(canvas, maps, stages, classes, noise_NLC=noise)
    return [network.token_logits(final[:1], canvas[:1], maps[:1], stage) for stage in range(num_sequences)]


def state_bytes(num_parameters: int, *, zero_stage: int, world_size: int, offload: bool) -> float:
    """Bytes a device holds of weights, gradients and AdamW's moments, all fp32, and of the main rank's average.

    Args:
        zero_stage: 0 keeps all of it on every device; 1 shards the moments and the weights they act on, 2 gradients as
            well, 3 all.
        world_size: devices.
        offload: whether the moments and the weights they act on are in host memory.
    """
    weights = gradients = average = 4.0
    if zero_stage == 0:
        return num_parameters * (weights + gradients + 8.0 + average)
    share = 1.0 / world_size
    moments = 0.0 if offload else 12.0 * share
    weights *= share if zero_stage == 3 else 1.0
    gradients *= share if zero_stage >= 2 else 1.0 + share
    return num_parameters * (weights + gradients + moments + average)


class Speed:
    """Images and tokens a second, and the share of the devices' peak that the network's own operations make up.

    mfu = images_per_s · operations of an image, forward and backward / dense bf16 peak of all devices. Blocks computed
    again do not count; a device whose peak is not listed, such as a CPU, has none.
    """

    def __init__(self, task: TrainingTask, ranks: Ranks) -> None:
        self._task = task
        peak = peak_flops(torch.cuda.get_device_name(ranks.device)) if ranks.device.type == "cuda" else None
        self._peak = None if peak is None else peak * ranks.world_size
        self._flops_per_image: float | None = None

    def numbers(self, images_per_s: float) -> dict[str, float]:
        """images_per_s, and tokens_per_s and mfu where they are known."""
        numbers = {"images_per_s": images_per_s}
        if self._task.tokens_per_image is not None:
            numbers["tokens_per_s"] = images_per_s * self._task.tokens_per_image
        if self._peak is not None and self._task.count_flops is not None:
            if self._flops_per_image is None:
                self._flops_per_image = self._task.count_flops()
            numbers["mfu"] = images_per_s * self._flops_per_image / self._peak
        return numbers
