"""Where the time of a tokenizer step goes: every loss on, split by part.

    .venv/bin/python benchmarks/tokenizer_step.py --side 64 --batch 4
    python benchmarks/tokenizer_step.py --device cuda --side 256 --batch 16 --base-width 128

The parts are the calls of `TokenizerObjective` and `DiscriminatorObjective`, made one after the other with the device
waited for in between; the whole step, as training makes it, is timed in the same run. Judges have random weights,
which cost what trained ones do.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from device_clock import seconds_of
from torch import Tensor

from nvg.tokenizer import (
    DinoFeatures,
    Discriminator,
    PerceptualDistance,
    Tokenizer,
    TokenizerConfig,
    quantize_for_training,
)
from nvg.training import (
    DiscriminatorLossConfig,
    DiscriminatorObjective,
    TokenizerLossConfig,
    TokenizerObjective,
    parameter_groups,
)


def main() -> None:
    """Prints the table, one line a part, and the same as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", type=int, default=64, help="of the images")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--base-width", type=int, default=64)
    parser.add_argument("--codebook", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    step = Step(given)
    step.whole()  # warm-up
    whole = statistics.median(seconds_of(step.whole, step.device) for _ in range(given.repeats))
    parts: dict[str, list[float]] = {}
    for _ in range(given.repeats):
        for name, seconds in step.split().items():
            parts.setdefault(name, []).append(seconds)
    medians = {name: statistics.median(values) for name, values in parts.items()}
    for name, seconds in medians.items():
        sys.stdout.write(f"{name:32s} {1000 * seconds:10.1f} ms {seconds / sum(medians.values()):7.1%}\n")
    sys.stdout.write(f"{'sum of the parts':32s} {1000 * sum(medians.values()):10.1f} ms\n")
    sys.stdout.write(f"{'the whole step':32s} {1000 * whole:10.1f} ms {given.batch / whole:9.2f} images/s\n")
    device = torch.cuda.get_device_name() if given.device == "cuda" else platform.processor()
    facts = {**vars(given), "device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}
    sys.stdout.write(json.dumps({"settings": facts, "whole_s": whole, "parts_s": medians}) + "\n")


class Step:
    """A tokenizer, its judges and both optimizers."""

    def __init__(self, given: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device = torch.device(given.device)
        multipliers = [1, 2, 4, 4, 4] if given.side > 32 else [1, 2, 4]
        config = TokenizerConfig(
            image_size=given.side,
            image_channels=3,
            base_width=given.base_width,
            width_multipliers=multipliers,
            num_res_blocks=2,
            norm_groups=32,
            latent_channels=32,
            codebook_size=given.codebook,
        )
        self.perceptual = PerceptualDistance("vgg")
        self.discriminator = Discriminator(DinoFeatures())
        self.objective = TokenizerObjective(
            Tokenizer(config),
            TokenizerLossConfig(perceptual_weight=1.0, adversarial_weight=0.1),
            perceptual=self.perceptual,
            discriminator=self.discriminator,
        ).to(self.device)
        self.adversary = DiscriminatorObjective(self.discriminator, DiscriminatorLossConfig()).to(self.device)
        networks = (self.objective.network, self.discriminator)
        self.optimizers = [torch.optim.AdamW(parameter_groups(network, 0.0), lr=1e-4) for network in networks]
        images = torch.rand(given.batch, 3, given.side, given.side) * 2 - 1
        self.batch = {"image": images.to(self.device)}
        noise = self.objective.draw_noise(seed=0, step=0, global_batch=given.batch)
        self.noise = {name: value.to(self.device) for name, value in noise.items()}

    def whole(self) -> None:
        """One step as training makes it."""
        for loss, optimizer in ((self._tokenizer_loss, 0), (self._discriminator_loss, 1)):
            loss().backward()
            self._update(optimizer)

    def split(self) -> dict[str, float]:
        """Seconds of every part of one step."""
        seconds: dict[str, float] = {}
        network, images = self.objective.network, self.batch["image"]

        def timed(name: str, call: Callable[[], Any]) -> Any:
            found: list[Any] = []
            seconds[name] = seconds_of(lambda: found.append(call()), self.device)
            return found[0]

        latent = timed("encode", lambda: network.encode(images))
        structure = timed("cluster", lambda: network.structure_maps(latent))
        quantized = timed(
            "quantise (soft assignment)",
            lambda: quantize_for_training(
                latent, structure, network.dequantizer, commitment_weight=0.25, soft_assignment=True
            ),
        )
        reconstruction = timed("decode", lambda: network.decode(quantized.canvas_BLC))
        timed("watch the codebook", lambda: self.objective.watch.add(quantized.content_ids_BT))
        perceptual = timed("LPIPS", lambda: self.perceptual(reconstruction, images).mean())
        adversarial = timed(
            "discriminator, for the tokenizer", lambda: self.objective.adversarial_loss(reconstruction, self.noise)
        )
        loss = (reconstruction - images).abs().mean() + perceptual + 0.1 * adversarial + quantized.loss
        timed("backward", loss.backward)
        timed("clip and update", lambda: self._update(0))
        judged = timed("discriminator, real and fake", lambda: self._judge(reconstruction.detach()))
        timed("discriminator, backward", judged.backward)
        timed("discriminator, clip and update", lambda: self._update(1))
        return seconds

    def _tokenizer_loss(self) -> Tensor:
        return self.objective(self.batch, self.noise)[0]

    def _discriminator_loss(self) -> Tensor:
        return self._judge(self.objective.take_reconstruction())

    def _judge(self, reconstruction: Tensor) -> Tensor:
        return self.adversary({**self.batch, "reconstruction": reconstruction}, self.noise)[0]

    def _update(self, number: int) -> None:
        optimizer = self.optimizers[number]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
