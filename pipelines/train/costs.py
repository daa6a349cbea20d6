"""What a training costs: parameters, operations and tokens of an image, memory of a device, hours.

All of it is counted on networks without storage, so the largest takes a second on a laptop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cluster.ranks import Ranks
from nvg.layers import SingleStreamBlock
from nvg.layers.block import normed_and_turned
from nvg.layers.rope import HEAD_WIDTH
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.sampling import SamplingConfig
from nvg.tokenizer import Tokenizer, TokenizerConfig
from pipelines.train.devices import peak_flops
from pipelines.train.task import TrainingTask

ModelConfig = ContentGeneratorConfig | StructureGeneratorConfig
_BACKWARD = 2.0  # operations of the backward pass for each of the forward pass
# Of what blocks keep for the backward pass, compiled ones keep so much: measured at four sizes, docs/results/gpu.json.
COMPILED_KEEP = 0.865
# Kernels of forward and backward pass for each operation of the forward pass, and for each of a compiled block.
_KERNELS, _COMPILED_KERNELS = 2.4, 0.7


@dataclass(frozen=True, kw_only=True)
class TrainingWork:
    """Costs of a training that follow from the network alone.

    Attributes:
        num_parameters: trained ones.
        flops_per_image: matrix products and attention of forward and backward pass over all stages of an image.
        tokens_per_image: of all sequences of an image.
        activation_bytes: kept for the backward pass of one image.
        pass_bytes: kept of a pass whatever its images: weights as the matrix products take them.
        largest_parameter: elements of the largest tensor.
        stream_elements: tokens of an image · width · depth: what the blocks carry through memory.
        num_kernels: started in a pass, forward and backward, whatever its images.
    """

    num_parameters: int
    flops_per_image: float
    tokens_per_image: int
    activation_bytes: float
    pass_bytes: float = 0.0
    largest_parameter: int = 0
    stream_elements: float = 0.0
    num_kernels: int = 0


@dataclass(frozen=True, kw_only=True)
class TokenizerWork:
    """Costs of a tokenizer that follow from the network alone, of one image and without the judges.

    Attributes:
        num_parameters: trained ones.
        encoder_flops, decoder_flops: operations of a forward pass.
        activation_bytes: kept for the backward pass, in fp32.
        num_kernels: started in a pass, forward and backward, whatever its images.
    """

    num_parameters: int
    encoder_flops: float
    decoder_flops: float
    activation_bytes: float
    num_kernels: int = 0

    @property
    def step_flops(self) -> float:
        """Operations of an image in training, forward and backward."""
        return (1 + _BACKWARD) * (self.encoder_flops + self.decoder_flops)


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
    model: ModelConfig,
    *,
    stages_per_image: int | None,
    precision: str,
    recompute_activations: bool,
    compiled: bool = False,
    device_type: Literal["cuda", "cpu"] = "cuda",
) -> TrainingWork:
    """Count one image of a generator.

    Blocks keep all the same, so one is counted for all of them.

    Args:
        model: architecture.
        stages_per_image: of a step; None stands for all.
        precision: bf16, or another.
        recompute_activations, compiled: see `ComputeConfig`.
        device_type: whose kernels norm and turn queries and keys: a CPU's keep their steps as well.
    """
    with torch.device("meta"), _Operations() as operations:
        network = _build(model)
        operations.number = 0
        _forward(network)
    width, tokens = network.canvas_in.out_features, tokens_per_image(network, stages_per_image)
    share = tokens / tokens_per_image(network, None)
    bf16 = precision == "bf16"
    shallow = replace(model, depth=1, width=width)
    around = _kept_bytes(lambda number: _forward(_build(shallow), number), bf16) - _block_bytes(network, bf16, "cpu")
    block = _block_bytes(network, bf16, device_type)
    kept = block.of_an_image * (COMPILED_KEEP if compiled else 1.0)
    if isinstance(model, ContentGeneratorConfig):  # the cross-entropy keeps the logarithm of every probability
        around = around._replace(of_an_image=around.of_an_image + 4.0 * network.layout.num_tokens * model.codebook_size)
    if recompute_activations:  # the inputs of all blocks, and one block at a time
        activations = share * (around.of_an_image + kept) + 4.0 * tokens * width * model.depth
    else:
        activations = share * (around.of_an_image + model.depth * kept)
    return TrainingWork(
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        flops_per_image=flops_per_image(model, stages_per_image),
        tokens_per_image=tokens,
        activation_bytes=activations,
        pass_bytes=around.of_a_pass + (1 if recompute_activations else model.depth) * block.of_a_pass,
        largest_parameter=max(parameter.numel() for parameter in network.parameters()),
        stream_elements=float(tokens * width * model.depth),
        num_kernels=round((_COMPILED_KERNELS if compiled else _KERNELS) * operations.number),
    )


def count_tokenizer(model: TokenizerConfig) -> TokenizerWork:
    """Count one image of a tokenizer: encoder and decoder; clustering and quantising are small beside them."""
    with torch.device("meta"):
        tokenizer, image = Tokenizer(model), torch.empty(1, model.image_channels, model.image_size, model.image_size)
        with FlopCounterMode(display=False) as encoder:
            latent = tokenizer.encode(image)
        with FlopCounterMode(display=False) as decoder:
            tokenizer.decode(latent)
        with _Operations() as operations:
            tokenizer.decode(tokenizer.encode(image))

    def reconstruct(number: int) -> Tensor:
        network = Tokenizer(model)
        return network.decode(network.encode(torch.zeros(number, *image.shape[1:])))

    return TokenizerWork(
        num_parameters=sum(parameter.numel() for parameter in tokenizer.parameters()),
        encoder_flops=float(encoder.get_total_flops()),
        decoder_flops=float(decoder.get_total_flops()),
        activation_bytes=_kept_bytes(reconstruct, bf16=False).of_an_image,
        num_kernels=round(_KERNELS * operations.number),
    )


def sampling_flops(content: ModelConfig, structure: ModelConfig | None, config: SamplingConfig) -> float:
    """Operations of one drawn sequence by Algorithm 2: a pass, or two with guidance, at each stage and flow step."""
    with torch.device("meta"):
        layout = _build(content).layout
    last = layout.last_stage

    def passes(scale: float) -> int:
        return 1 if scale == 1.0 else 2

    of_contents = sum(passes(config.content_scale(stage, last)) for stage in range(layout.num_stages))
    total = of_contents * flops_per_image(content, 1) / (1 + _BACKWARD)
    if structure is not None:
        scales = [config.structure_scale(stage, last) for stage in range(layout.num_structure_stages)]
        evaluations = config.num_flow_steps * sum(map(passes, scales))
        total += evaluations * flops_per_image(structure, 1) / (1 + _BACKWARD)
    return total


class _Operations(TorchDispatchMode):
    """Counts the operations that compute something; views do not."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not func.is_view
        return func(*args, **(kwargs or {}))


class _Kept(NamedTuple):
    """Bytes kept for the backward pass: of each image, and of a pass whatever its images."""

    of_an_image: float
    of_a_pass: float

    def __sub__(self, other: _Kept) -> _Kept:
        return _Kept(self.of_an_image - other.of_an_image, self.of_a_pass - other.of_a_pass)


def _kept_bytes(run: Callable[[int], Any], bf16: bool, passed_over: Callable[[], list[Tensor]] = list) -> _Kept:
    """What autograd keeps of a forward pass of so many images, its leaves not counted; nothing has storage."""

    def kept_of(number: int) -> int:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
                kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                result = run(number)
            for tensor in passed_over():
                kept.pop(tensor.untyped_storage()._cdata, None)
        del result
        return sum(kept.values())

    one, two = kept_of(1), kept_of(2)
    return _Kept(float(two - one), float(2 * one - two))


def _block_bytes(network: ContentGenerator | StructureGenerator, bf16: bool, device_type: str) -> _Kept:
    """Bytes that one block keeps of all sequences of an image; what all blocks share is not counted."""
    num_sequences, num_tokens = _sequences(network)
    first = network.trunk.blocks[0]
    assert isinstance(first, SingleStreamBlock)
    width = network.canvas_in.out_features
    shared: list[Tensor] = []

    def run(number: int) -> list[Any]:
        block = SingleStreamBlock(width, first.mlp_width // width)
        x_NSD = torch.zeros(number * num_sequences, num_tokens, width, requires_grad=True)
        vec_ND = torch.zeros(number * num_sequences, width, requires_grad=True)
        table_NSP2 = torch.zeros(number * num_sequences, num_tokens, HEAD_WIDTH // 2, 2)
        shared.extend((vec_ND, table_NSP2))
        turn = normed_and_turned if device_type == "cpu" else _turned_by_kernel
        return [block, block(x_NSD, vec_ND, table_NSP2, None, turn)]

    return _kept_bytes(run, bf16, lambda: shared)


class _Kernel(torch.autograd.Function):
    """Keeps what `nvg.layers.triton_heads.turn_heads` keeps; without a GPU there may be no Triton to ask."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs)
        heads = inputs[0]
        shape = heads.shape[:2] + heads.shape[3:]
        return heads.new_empty(shape), heads.new_empty(shape)


def _turned_by_kernel(qk_NS2HD: Tensor, gain_2D: Tensor, table_NSP2: Tensor) -> tuple[Tensor, Tensor]:
    query, key = _Kernel.apply(qk_NS2HD, gain_2D.float(), table_NSP2)  # pyright: ignore[reportGeneralTypeIssues]
    return query, key


def _build(model: ModelConfig) -> ContentGenerator | StructureGenerator:
    return ContentGenerator(model) if isinstance(model, ContentGeneratorConfig) else StructureGenerator(model)


def _sequences(network: ContentGenerator | StructureGenerator) -> tuple[int, int]:
    """Sequences of an image, tokens of one."""
    layout = network.layout
    if isinstance(network, ContentGenerator):
        return layout.num_stages, 1 + layout.num_positions
    return layout.num_structure_stages, 1 + 2 * layout.num_positions


def _forward(network: ContentGenerator | StructureGenerator, number: int = 1) -> list[Tensor]:
    """All stages of so many images; what keeps the graph alive."""
    config, layout = network.config, network.layout
    of_an_image, _ = _sequences(network)
    stages = torch.arange(of_an_image).repeat(number)
    num_sequences, classes = len(stages), torch.zeros(len(stages), dtype=torch.int64)
    maps = torch.zeros(num_sequences, config.num_positions, dtype=torch.int64)
    canvas = torch.zeros(num_sequences, config.num_positions, config.latent_channels)
    if isinstance(network, StructureGenerator):
        noisy = torch.zeros(num_sequences, config.num_positions, layout.last_stage)
        return [network(noisy, canvas, maps, stages, torch.zeros(num_sequences), classes)]
    noise = canvas if network.config.needs_noise else None
    final = network(canvas, maps, stages, classes, noise_NLC=noise)
    few = slice(number)
    return [network.token_logits(final[few], canvas[few], maps[few], stage) for stage in range(of_an_image)]


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes that a device holds between two steps.

    Attributes:
        weights, gradients: fp32.
        master: the fp32 weights that ZeRO updates, a device its share, apart from those of the network.
        moments: AdamW's two, fp32.
        average: of the weights, fp32, on the main rank.
    """

    weights: float
    gradients: float
    master: float
    moments: float
    average: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.master + self.moments + self.average


def state_bytes(num_parameters: int, *, zero_stage: int, world_size: int, offload: bool) -> StateBytes:
    """Weights, gradients and AdamW's moments of the main rank, and its average, which the others do not hold.

    Args:
        zero_stage: 0 keeps all of it on every device; 1 shards the moments and the weights they act on, 2 gradients as
            well, 3 all.
        world_size: devices.
        offload: whether the moments and the weights they act on are in host memory.
    """
    whole, part = 4.0 * num_parameters, 4.0 * num_parameters / world_size
    on_device = not offload
    return StateBytes(
        weights=part if zero_stage == 3 else whole,
        gradients=part if zero_stage >= 2 else whole + part if zero_stage == 1 else whole,
        master=part if zero_stage and on_device else 0.0,
        moments=2 * (part if zero_stage else whole) if on_device else 0.0,
        average=whole,
    )


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
