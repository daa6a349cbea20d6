"""The parts of `gpu_campaign.py` that measure time and memory: kernels, training, sampling, encoding, host work."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from device_clock import wait_for
from gpu_campaign import Campaign
from torch import Tensor, nn

from nvg.granularity import cluster_latents, clustering
from nvg.granularity.clustering import merge_in_rounds
from nvg.models import ContentGenerator, ContentGeneratorConfig, StructureGenerator, StructureGeneratorConfig
from nvg.sampling import SamplingConfig, integrate_flow, sample
from nvg.tokenizer import (
    Dequantizer,
    DequantizerConfig,
    Tokenizer,
    TokenizerConfig,
    quantize_for_training,
    quantize_ids,
)
from nvg.training import (
    ContentObjective,
    Ema,
    GeneratorLossConfig,
    PlainEngine,
    StructureObjective,
    parameter_groups,
)

PEAK_FLOPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}  # dense bf16

# Operations of an image, forward and backward, all stages; `pipelines/train/costs.py` counts the same.
FLOPS = {
    ("content", 16): 2.915e12, ("content", 20): 5.647e12, ("content", 24): 9.704e12,
    ("structure", 16): 1.266e12, ("structure", 20): 2.402e12, ("structure", 24): 4.070e12,
}  # fmt: skip
MICRO_BATCH = {16: 24, 20: 15, 24: 12}  # of the presets
FLOW_STEPS = 25


def built(kind: str, depth: int, device: torch.device, **sizes: Any) -> Any:
    """A generator of published size but for `sizes`, its random weights the same on every device."""
    torch.manual_seed(0)
    if kind == "content":
        network = ContentGenerator(ContentGeneratorConfig(depth=depth, **sizes))
    else:
        network = StructureGenerator(StructureGeneratorConfig(depth=depth, **sizes))
    return network.to(device)


def dequantizer(device: torch.device) -> Dequantizer:
    """A random codebook of published size."""
    torch.manual_seed(1)
    quantizer = Dequantizer(DequantizerConfig())
    nn.init.normal_(quantizer.codebook, std=0.1)
    return quantizer.to(device).eval()


def objective_of(kind: str, network: Any, device: torch.device) -> Any:
    """The objective as the presets have it, without alignment."""
    make = ContentObjective if kind == "content" else StructureObjective
    return make(network, dequantizer(device), GeneratorLossConfig()).to(device)


def batch_of(number: int, device: torch.device) -> dict[str, Tensor]:
    """Made-up records."""
    generator = torch.Generator().manual_seed(2)
    columns = {
        "label": torch.randint(0, 1000, (number,), generator=generator),
        "content_ids": torch.randint(0, 4096, (number, 511), generator=generator),
        "structure": torch.stack([torch.randperm(256, generator=generator) for _ in range(number)]),
    }
    return {name: column.to(device) for name, column in columns.items()}


def noise_of(objective: Any, number: int, device: torch.device, step: int = 0) -> dict[str, Tensor]:
    """Noise of a step; what the host reads stays there."""
    noise = objective.draw_noise(seed=0, step=step, global_batch=number)
    return {name: value if name in objective.host_noise else value.to(device) for name, value in noise.items()}


def compile_blocks(*networks: Any) -> None:
    """One compilation for all blocks of a network, as `compute.compile` does it."""
    for network in networks:
        network.trunk.compile_blocks()


def _first_seconds(campaign: Campaign, call: Any) -> float:
    began = time.perf_counter()
    call()
    wait_for(campaign.device)
    return time.perf_counter() - began


def kernels(campaign: Campaign) -> None:
    """What memory and products reach, attention at our shapes, and clustering in rounds and in Triton."""
    size = 2**20 if campaign.tiny else 2**30
    dtype = torch.bfloat16 if campaign.cuda else torch.float32

    def copying() -> None:
        source = torch.zeros(size, dtype=dtype, device=campaign.device)
        target = torch.empty_like(source)
        ms = campaign.ms(lambda: target.copy_(source))
        campaign.note("kernels", "copy", 2 * source.nbytes / ms / 1e9, "TB/s")

    def product(name: str, rows: int, columns: int, inner: int) -> None:
        left, right = (torch.randn(n, inner, dtype=dtype, device=campaign.device) for n in (rows, columns))
        ms = campaign.ms(lambda: F.linear(left, right))
        campaign.note("kernels", f"product {name}", 2e-9 * rows * columns * inner / ms, "TFLOP/s")

    def attention(name: str, number: int, heads: int, tokens: int) -> None:
        shape = (number, tokens, heads, 64)
        q, k, v = (
            torch.randn(shape, dtype=dtype, device=campaign.device).transpose(1, 2).requires_grad_() for _ in range(3)
        )
        flops = 4e-9 * number * heads * tokens * tokens * 64
        forward = campaign.ms(lambda: F.scaled_dot_product_attention(q, k, v))
        both = campaign.ms(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
        campaign.note("kernels", f"attention, {name}", flops / forward, "TFLOP/s", forward_ms=forward, both_ms=both)

    def grouping() -> None:
        latent_BLC = torch.randn(1 if campaign.tiny else 64, 256, 32, device=campaign.device)
        rounds = campaign.ms(partial(merge_in_rounds, latent_BLC, 8), 5)
        campaign.note("kernels", "clustering of 64, rounds", rounds, "ms")
        if triton := clustering._merge_on_device(campaign.device):
            ms = campaign.ms(partial(triton, latent_BLC, 8), 20)
            campaign.note("kernels", "clustering of 64, Triton", ms, "ms")
            campaign.note("kernels", "clustering, rounds over Triton", rounds / ms, "x")

    campaign.attempt("copy", copying)
    shapes = {"8192": (8192, 8192, 8192), "content d16": (55512, 4096, 1024), "structure d16": (86184, 2048, 512)}
    for name, shape in shapes.items():
        shape = (256, 256, 256) if campaign.tiny else shape
        campaign.attempt(f"product {name}", partial(product, name, *shape))
    for name, number, heads, tokens in (("content d16", 216, 16, 257), ("structure d16", 168, 8, 513)):
        number, heads = (2, 2) if campaign.tiny else (number, heads)
        campaign.attempt(f"attention {name}", partial(attention, name, number, heads, tokens))
    campaign.attempt("clustering speed", grouping)


def train(campaign: Campaign) -> None:
    """Steps at the presets' micro batches, eager and compiled, most telling first; the same losses both ways."""
    third_losses: dict[tuple[str, int], float] = {}

    def steps(kind: str, depth: int, compiled: bool) -> None:
        torch.compiler.reset()
        number = 2 if campaign.tiny else MICRO_BATCH[depth]
        with campaign.device:  # weights are drawn there, in a tenth of the time
            network = built(
                kind, 2 if campaign.tiny else depth, campaign.device, **({"width": 64} if campaign.tiny else {})
            )
        if compiled:
            compile_blocks(network)
        objective = objective_of(kind, network, campaign.device).train()
        groups = parameter_groups(network, 0.05)
        optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=campaign.cuda)
        engine = PlainEngine(objective, optimizer, gradient_clipping=1.0)
        average, losses = Ema(network, half_life_images=5e6), []
        batch = batch_of(number, campaign.device)
        noise = [noise_of(objective, number, campaign.device, step) for step in range(3)]

        def step() -> None:
            with campaign.products("bf16"):
                loss, _ = engine(batch, noise[len(losses) % 3])
            engine.backward(loss)
            engine.step()
            average.update(network, num_images=number)
            losses.append(loss.detach())

        first_s = _first_seconds(campaign, step)
        speed = 1e3 * number / campaign.ms(step, 6, 2)
        name = torch.cuda.get_device_name(campaign.device) if campaign.cuda else "cpu"
        peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
        mfu = None if peak is None or campaign.tiny else speed * FLOPS[kind, depth] / peak
        third = float(losses[2])
        other = third_losses.setdefault((kind, depth), third)  # of the compiled network, which comes first
        campaign.note(
            "train", f"{kind} d{depth}, {'compiled' if compiled else 'eager'}", speed, "images/s", mfu=mfu,
            peak_gib=campaign.peak_gib(), first_step_s=first_s, loss=third, batch=number,
            passed=abs(third - other) <= 0.01 * abs(other),
        )  # fmt: skip

    for depth in campaign.depths:
        for kind in ("content", "structure"):
            for compiled in (True, False):
                if campaign.tiny and (compiled or depth != 16):
                    continue
                name = f"train {kind} d{depth}, {'compiled' if compiled else 'eager'}"
                campaign.attempt(name, partial(steps, kind, depth, compiled), needs_s=60 if compiled else 20)


@torch.no_grad()
def sample_part(campaign: Campaign) -> None:
    """Algorithm 2 at d16 by precision: a few flow steps are timed, 25 are told."""
    number, depth, steps = (1, 1, 1) if campaign.tiny else (64, 16, 3)
    sizes = {"width": 64} if campaign.tiny else {}
    drawn: dict[str, Any] = {}

    def draw_in(name: str) -> None:
        torch.compiler.reset()
        precision = name.split()[0]
        content, structure = (built(kind, depth, campaign.device, **sizes).eval() for kind in ("content", "structure"))
        quantizer, index_B = dequantizer(campaign.device), torch.arange(number)
        for network in (content, structure):
            network.trunk.matmul_dtype = torch.bfloat16 if precision == "bf16" else None
        if "compiled" in name:
            compile_blocks(content, structure)
        config = SamplingConfig(num_flow_steps=steps, gumbel_split=False)
        draw = partial(
            sample, content=content, structure=structure, dequantizer=quantizer, labels_B=index_B,
            sample_indices_B=index_B, seed=0, config=config,
        )  # fmt: skip
        labels_B = index_B.to(campaign.device)
        start_BLK = torch.randn(number, 256, 8, device=campaign.device)

        def flow(canvas_BLC: Tensor, maps_BL: Tensor, num_steps: int) -> Tensor:
            settings: dict[str, Any] = {"stage": 3, "guidance_scale": 1.7, "num_steps": num_steps}
            return integrate_flow(structure, start_BLK, canvas_BLC, maps_BL, labels_B, **settings)

        with campaign.products("tf32" if precision == "tf32" else "fp32"):
            drawn[name] = draw()
            canvas_BLC, maps_BL = drawn[name].canvases_BSLC[:, 3], drawn[name].structure_BL
            total_ms = campaign.ms(draw, 2, 0)
            step_ms = campaign.ms(partial(flow, canvas_BLC, maps_BL, 2), 3, 1) / 2
        # At stage 0 guidance is 1: 13 passes of the structure network a flow step, two of them in `flow`'s.
        whole_ms = total_ms + (FLOW_STEPS - steps) * 6.5 * step_ms
        first = drawn.get("fp32", drawn[name])
        same = float((drawn[name].content_ids_BT == first.content_ids_BT).float().mean())
        campaign.note(
            "sample", f"d16, 25 flow steps, {name}", 1e3 * number / whole_ms, "images/s", timed_ms=total_ms,
            hours_for_50000=50 * whole_ms / number / 3600, ids_of_fp32=same, peak_gib=campaign.peak_gib(),
        )  # fmt: skip

    for name in ("fp32", "tf32", "bf16", "bf16 compiled"):
        if not (campaign.tiny and name != "fp32"):
            campaign.attempt(f"sample {name}", partial(draw_in, name), needs_s=60)


@torch.no_grad()
def encode(campaign: Campaign) -> None:
    """Encoding, clustering and quantising, and the share of maps and ids that another precision changes."""
    config: dict[str, Any] = {}
    if campaign.tiny:
        config = {"image_size": 64, "base_width": 32, "width_multipliers": [1, 1, 2, 2, 2]}
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(**config)).to(campaign.device).eval()
    number = 2 if campaign.tiny else 64
    images = torch.rand(number, 3, tokenizer.config.image_size, tokenizer.config.image_size) * 2 - 1
    images = images.to(campaign.device)
    exact: list[tuple[Tensor, Tensor]] = []

    def encode_in(name: str) -> None:
        precision, _, layout = name.partition(" ")
        layout = torch.channels_last if layout else torch.contiguous_format
        tokenizer.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        given = images.contiguous(memory_format=layout)
        with campaign.products(precision):
            ms = campaign.ms(lambda: tokenizer.encode(given), 5, 2)
            latent_BLC = tokenizer.encode(given).float()
        maps_BL = cluster_latents(latent_BLC)
        ids_BT = quantize_ids(latent_BLC, maps_BL, tokenizer.dequantizer)
        exact.append((maps_BL, ids_BT))
        changed = float((ids_BT != exact[0][1]).float().mean())
        moved = float((maps_BL != exact[0][0]).any(1).float().mean())
        rest: dict[str, Any] = {
            "cluster_ms": campaign.ms(lambda: cluster_latents(latent_BLC), 5, 1),
            "quantise_ms": campaign.ms(lambda: quantize_ids(latent_BLC, maps_BL, tokenizer.dequantizer), 5, 1),
        }
        speed = 1e3 * number / ms
        campaign.note("encode", f"encode, {name}", speed, "images/s", ids_changed=changed, maps_changed=moved, **rest)

    for name in ("fp32",) if campaign.tiny else ("fp32", "tf32", "tf32 channels_last", "bf16"):
        campaign.attempt(f"encode {name}", partial(encode_in, name))
    campaign.attempt("tokenizer step", partial(_tokenizer_step, campaign, tokenizer.train(), images[:16]))


@torch.enable_grad()
def _tokenizer_step(campaign: Campaign, tokenizer: Tokenizer, images: Tensor) -> None:
    tokenizer.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    maps_BL = cluster_latents(tokenizer.encode(images))

    def step() -> None:
        settings: dict[str, Any] = {"commitment_weight": 0.25, "soft_assignment": False}
        with campaign.products("tf32"):
            quantized = quantize_for_training(tokenizer.encode(images), maps_BL, tokenizer.dequantizer, **settings)
            (F.l1_loss(tokenizer.decode(quantized.canvas_BLC), images) + quantized.loss).backward()

    speed = 1e3 * len(images) / campaign.ms(step, 5, 2)
    what = "tokenizer step without judges, tf32"
    campaign.note("encode", what, speed, "images/s", peak_gib=campaign.peak_gib())


def host(campaign: Campaign) -> None:
    """What the host does for a step of 768 images, on one thread, and the average of the weights on the device."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")

    def fastest_ms(call: Any) -> float:
        times = []
        for _ in range(1 if campaign.tiny else 5):
            began = time.perf_counter()
            call()
            wait_for(campaign.device)
            times.append(1e3 * (time.perf_counter() - began))
        return min(times)

    try:
        for kind in ("content", "structure"):
            objective = objective_of(kind, built(kind, 2, cpu, width=64), cpu)
            ms = fastest_ms(partial(objective.draw_noise, seed=0, step=1, global_batch=768))
            campaign.note("host", f"noise of 768 images, {kind}", ms, "ms")
        if campaign.cuda:
            pixels = torch.zeros(24, 3, 256, 256, dtype=torch.uint8)
            ms = fastest_ms(lambda: pixels.pin_memory().to(campaign.device, non_blocking=True))
            campaign.note("host", "24 images pinned and sent", ms, "ms")
        sizes = {"width": 64} if campaign.tiny else {}
        network = built("content", 2 if campaign.tiny else 16, campaign.device, **sizes)
        average = Ema(network, half_life_images=5e6)
        campaign.note(
            "host", "average of content d16", campaign.ms(lambda: average.update(network, num_images=1)), "ms"
        )
    finally:
        torch.set_num_threads(threads)
