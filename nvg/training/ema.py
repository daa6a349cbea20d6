"""Exponential moving average of weights, its memory stated in images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nvg.errors import UserError


class Ema:
    """Float32 averages of a network's parameters; buffers are copied as they are.

    The decay of an update that saw n images is 0.5^(n / half_life_images), so the batch size does not change what is
    averaged. 0.9999 a step at batch 768 is a half-life of 5.3 million images.

    Args:
        network: whose weights are averaged.
        half_life_images: above 0.
        ramp: early on the half-life is at most this share of the images seen; 0 never limits it.

    DEVIATION: early on the half-life is limited to a share of the images seen (`optimizer.ema_ramp`, by default a
    tenth), so that the average forgets the initial weights in short trainings too; the published presets set 0.

    Release: 0.9999 a step
    """

    def __init__(self, network: nn.Module, *, half_life_images: float, ramp: float = 0.1) -> None:
        if half_life_images <= 0:
            raise UserError(f"ema_half_life_images is {half_life_images}; a positive number of images is needed")
        if not 0 <= ramp <= 1:
            raise UserError(f"ema_ramp is {ramp}; expected a share of the images seen, from 0 to 1; 0 does without")
        self.half_life_images, self.ramp = half_life_images, ramp
        self.images_seen = 0
        self.tensors = {key: tensor.detach().float().clone() for key, tensor in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, *, num_images: int) -> None:
        """Moves the averages towards the weights after a step that saw `num_images` images."""
        self.images_seen += num_images
        half_life = min(self.half_life_images, self.ramp * self.images_seen or self.half_life_images)
        weight = 1.0 - 0.5 ** (num_images / half_life)
        averages = list(self.tensors.values())
        current = [parameter.detach().float() for _, parameter in network.named_parameters()]
        torch._foreach_lerp_(averages, current, weight)  # pyright: ignore[reportPrivateImportUsage]  no public name

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """State dict of the network with its parameters replaced by the averages."""
        return {**network.state_dict(), **self.tensors}

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by parameter name, and the number of images seen."""
        return {**self.tensors, "images_seen": torch.tensor(self.images_seen)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores `state_dict`. Raises UserError when the names are those of another network."""
        averages = {key: tensor for key, tensor in state.items() if key != "images_seen"}
        if averages.keys() != self.tensors.keys():
            odd = sorted(averages.keys() ^ self.tensors.keys())[:5]
            raise UserError(f"the stored averages belong to another network: they differ in {odd}")
        self.images_seen = int(state["images_seen"])
        for key, tensor in averages.items():
            self.tensors[key].copy_(tensor)
