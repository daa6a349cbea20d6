"""A small convolutional network trained on labelled images, whose inner layers are used as features.

Inception knows photographs and nothing of an 8x8 digit, so small data sets bring their own feature
space: this network, trained with a fixed seed on the same images the generators were trained on.
Shapes: images_BHWC uint8, features_BF float32, logits_BV float32.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from eval.image_sets import check_labels
from nvg.bounds import at_least, check_fields, positive
from nvg.checkpoints import load_weights, save_weights
from nvg.checkpoints.networks import build_network
from nvg.json_files import make
from nvg.pixels import ImageArray, check_images, scale_levels

_KIND = "feature-extractor"
WEIGHTS_NAME = "model"


@dataclass(frozen=True, kw_only=True)
class FeatureNetworkConfig:
    """Architecture of the network.

    Attributes:
        image_size: side S the network works at, in pixels; other sizes are resized to it.
        num_classes: classes it is trained to tell apart.
        width: channels of the first block; every halving of the side doubles it up to 4x.
        num_features: F, size of the penultimate layer.
    """

    image_size: int = at_least(4)
    image_channels: Literal[1, 3]
    num_classes: int = at_least(2)
    width: int = at_least(4, 24)
    num_features: int = at_least(2, 64)

    def __post_init__(self) -> None:
        check_fields(self, "feature_network")


@dataclass(frozen=True, kw_only=True)
class FeatureTrainingConfig:
    """How the network is trained.

    Attributes:
        seed: fixes initial weights, order and shifts.
        num_steps: optimiser steps.
        batch_size: images per step.
        max_shift: largest random shift in pixels per 16 pixels of side, in each direction.
        learning_rate: peak of a one-cycle schedule.
        weight_decay: AdamW's.
    """

    seed: int = 20250601
    num_steps: int = at_least(1, 300)
    batch_size: int = at_least(2, 64)
    max_shift: int = at_least(0, 1)
    learning_rate: float = positive(3e-3)
    weight_decay: float = at_least(0, 0.05)

    def __post_init__(self) -> None:
        check_fields(self, "feature_training")


class FeatureNetwork(nn.Module):
    """Three stages of two convolutions, a global pool over a 2x2 grid, one hidden layer, a linear head."""

    def __init__(self, config: FeatureNetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width, 2 * config.width, 4 * config.width]
        blocks: list[nn.Module] = []
        previous = config.image_channels
        for width in widths:
            blocks += [
                nn.Conv2d(previous, width, 3, padding=1),
                nn.GroupNorm(4, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
                nn.AvgPool2d(2, ceil_mode=True),
            ]
            previous = width
        self.trunk = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.hidden = nn.Linear(4 * previous, config.num_features)
        self.head = nn.Linear(config.num_features, config.num_classes)

    def prepare(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Bring uint8 images of any side, grey or colour, to the range ([-1, 1]), side and channels of the network."""
        images = scale_levels(images_BCHW)
        if images.shape[1] != self.config.image_channels:
            mean = images.mean(dim=1, keepdim=True)
            images = mean if self.config.image_channels == 1 else mean.expand(-1, 3, -1, -1)
        side = self.config.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        return images

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, F) of the penultimate layer and logits (B, V), float32, of what `prepare` returned."""
        features_BF = F.silu(self.hidden(self.trunk(images_BCHW)))
        return features_BF, self.head(features_BF)


def _shift_images(images_BCHW: torch.Tensor, max_shift: int, generator: torch.Generator) -> torch.Tensor:
    """Shift every image by its own random whole number of pixels in each direction, repeating the border."""
    if max_shift == 0:
        return images_BCHW
    num_images, _, height, width = images_BCHW.shape
    padded = F.pad(images_BCHW, (max_shift,) * 4, mode="replicate")
    draw_B2 = torch.randint(0, 2 * max_shift + 1, (num_images, 2), generator=generator)
    rows_BH = draw_B2[:, :1] + torch.arange(height)
    columns_BW = draw_B2[:, 1:] + torch.arange(width)
    picks = (torch.arange(num_images)[:, None, None], slice(None), rows_BH[:, :, None], columns_BW[:, None, :])
    return padded[picks].permute(0, 3, 1, 2).contiguous()


def train_feature_network(
    images_BHWC: ImageArray,
    labels_B: NDArray[np.integer],
    *,
    config: FeatureNetworkConfig,
    training: FeatureTrainingConfig | None = None,
) -> FeatureNetwork:
    """Train the network on labelled images, on the CPU, from a fixed seed.

    Args:
        images_BHWC: uint8 images, any side.
        labels_B: integer classes.
        config: architecture.
        training: schedule and seed; its defaults take seconds on a thousand digits.

    Returns:
        The network in evaluation mode. The same data, configuration, thread count and machine give the
        same weights.

    Raises:
        ValueError: images or labels do not fit.
    """
    training = training or FeatureTrainingConfig()
    check_images(images_BHWC, "feature network images")
    check_labels(labels_B, len(images_BHWC), config.num_classes, "feature network labels")
    generator = torch.Generator().manual_seed(training.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = FeatureNetwork(config)
    inputs_BCHW = torch.cat(
        [
            network.prepare(torch.from_numpy(images_BHWC[start : start + 256].copy()).permute(0, 3, 1, 2))
            for start in range(0, len(images_BHWC), 256)
        ]
    )
    targets_B = torch.from_numpy(labels_B.astype(np.int64))
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=training.learning_rate, total_steps=training.num_steps + 1
    )
    max_shift = training.max_shift * max(1, config.image_size // 16)
    network.train()
    for _ in range(training.num_steps):
        rows_N = torch.randint(0, len(targets_B), (training.batch_size,), generator=generator)
        batch = _shift_images(inputs_BCHW[rows_N], max_shift, generator)
        loss = F.cross_entropy(network(batch)[1], targets_B[rows_N], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def save_feature_network(network: FeatureNetwork, folder: Path) -> None:
    """Write `model.safetensors` and its JSON into a folder, which is created where missing."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    save_weights(folder, tensors, asdict(network.config), kind=_KIND, name=WEIGHTS_NAME)


def load_feature_network(folder: Path) -> FeatureNetwork:
    """Read a network that `save_feature_network` wrote, in evaluation mode.

    Raises:
        ValueError: the folder holds no feature network, another kind of weights, or tensors that do not fit.
    """
    tensors, config = load_weights(folder, kind=_KIND, name=WEIGHTS_NAME)
    described = make(FeatureNetworkConfig, config, str(folder), "give the folder of a feature network")
    where = f"{folder}/{WEIGHTS_NAME}.safetensors"
    return build_network(FeatureNetwork, described, tensors, where).requires_grad_(False)
