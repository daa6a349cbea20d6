"""Train the tokenizer: `python -m pipelines.train.tokenizer --config FILE key=value …`.

Also under `deepspeed --module` and `torchrun -m`; with `launch.launcher=ray` the ranks are Ray Train workers.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.ranks import Ranks
from nvg.bounds import at_least, check_fields, positive
from nvg.checkpoints import load_dino_features, load_feature_distance, load_perceptual_distance
from nvg.errors import UserError
from nvg.tokenizer import Discriminator, Tokenizer, TokenizerConfig
from nvg.training import DiscriminatorLossConfig, DiscriminatorObjective, TokenizerLossConfig, TokenizerObjective
from pipelines.batches.config import ImageLoadingConfig, ViewsPerEpoch
from pipelines.batches.images import LazyImageSource, check_loading, image_source
from pipelines.sources import ImageSource, SourceConfig, open_source
from pipelines.sources.keys import hash_names
from pipelines.train.config import RunConfig
from pipelines.train.engine import TrainingEngine
from pipelines.train.launch import command, run_training
from pipelines.train.saving import refuse_changed
from pipelines.train.task import Adversary, TrainingTask, settings_of

_KIND = "tokenizer"


@dataclass(frozen=True, kw_only=True)
class JudgesConfig:
    """Networks that judge reconstructions in training; read only where their loss weight is above 0.

    Attributes:
        vgg_weights: file of torchvision's VGG-16, the trunk of LPIPS.
        feature_weights: file of EfficientNet-Lite0, of the feature loss; empty takes that of the installed package.
        dino_weights: file of DINO's ViT-S/16, the trunk of the discriminator.
        lr: learning rate of the discriminator's heads at factor 1; their schedule is the tokenizer's.
        weight_decay: of the heads.
        gradient_clipping: largest 2-norm of the heads' gradient, apart from the tokenizer's.
        loss: loss of the heads.

    Paper: App. A.5
    """

    vgg_weights: str = ""
    feature_weights: str = ""
    dino_weights: str = ""
    lr: float = positive(1e-4)
    weight_decay: float = at_least(0, 5e-4)
    gradient_clipping: float = at_least(0, 1.0)
    loss: DiscriminatorLossConfig = field(default_factory=DiscriminatorLossConfig)

    def __post_init__(self) -> None:
        check_fields(self, "judges")


@dataclass(frozen=True, kw_only=True)
class TokenizerRunConfig(RunConfig):
    """A tokenizer training.

    Attributes:
        source: training images; `image_size` and `image_channels` also fix the model's.
        views_per_epoch: "one" random view of each image per epoch, one after the other "in_turn", or "all".
        loading: images held in memory, or decoded batch by batch.
        validation_split: split of the same source for the validation loss (centred view), or null.
        model: architecture.
        loss: loss weights.
        judges: the networks of the perceptual, the feature and the adversarial loss.
    """

    run_folder: str = "runs/tokenizer"
    source: SourceConfig = field(default_factory=SourceConfig)
    views_per_epoch: ViewsPerEpoch = "one"
    loading: ImageLoadingConfig = field(default_factory=ImageLoadingConfig)
    validation_split: str | None = None
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    loss: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)
    judges: JudgesConfig = field(default_factory=JudgesConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        check_loading(self.source, self.loading)
        self.source.keep_apart("run_folder", self.run_folder)
        at_zero_3 = self.loop.engine == "deepspeed" and self.deepspeed.zero_stage == 3
        if self.loss.revive_after_images is not None and at_zero_3:
            raise UserError(
                f"loss.revive_after_images is {self.loss.revive_after_images} at deepspeed.zero_stage=3, where no rank "
                "holds the codebook whole; use 0, 1 or 2, or set it to null"
            )


def build_task(config: TokenizerRunConfig) -> TrainingTask:
    """Objective and images of a tokenizer training.

    Raises:
        UserError: the source's images are not what the model takes, or cannot be read.
    """
    objective, adversary = players(config)
    source, validation, is_main = config.source, None, Ranks.read().is_main
    if config.validation_split is not None and config.loop.validate_every_steps is not None:
        held_out = dataclasses.replace(source, split=config.validation_split, num_views=1, view_policy="center")
        validation = image_source(open_source(held_out, tell=is_main), "all", config.loading)
    images = open_source(source, tell=is_main)
    return TrainingTask(
        kind=_KIND,
        objective=objective,
        adversary=adversary,
        after_update=partial(_after_update, objective, config),
        window_numbers=objective.watch.close,
        model_config=dataclasses.asdict(config.model),
        loss_config=_loss_config(config),
        batches=image_source(images, config.views_per_epoch, config.loading),
        training_keys=np.sort(hash_names(images.keys)),
        validation=validation,
    )


def check_start(config: TokenizerRunConfig, images: ImageSource | None = None) -> int:
    """Every comparison of a start that needs no image, for a dry run: the tokenizer has no storage, nothing is written.

    Args:
        images: the opened source; None compares settings alone.

    Returns:
        The step that the run would go on from, 0 for a new one.

    Raises:
        Changed, UserError: what `build_task` and going on from the newest checkpoint would say.
    """
    _, adversary = players(config, device="meta")
    optimizer = None if adversary is None else adversary.optimizer
    model = dataclasses.asdict(config.model)
    data = {} if images is None else LazyImageSource(images, config.views_per_epoch, config.loading).fingerprint
    settings = settings_of(config, _KIND, model, _loss_config(config), optimizer)
    return refuse_changed(config, settings, data, {}, set())


def _loss_config(config: TokenizerRunConfig) -> dict[str, Any]:
    return {**dataclasses.asdict(config.loss), "discriminator": dataclasses.asdict(config.judges.loss)}


def players(config: TokenizerRunConfig, device: str = "cpu") -> tuple[TokenizerObjective, Adversary | None]:
    """The tokenizer's objective, and the discriminator's side of a training that has one."""
    source, model = config.source, config.model
    found, expected = (source.image_size, source.image_channels), (model.image_size, model.image_channels)
    if found != expected:
        raise UserError(
            f"source.image_size, source.image_channels are {found}, model.image_size, "
            f"model.image_channels are {expected}; set them equal"
        )
    perceptual = load_perceptual_distance(config.judges.vgg_weights) if config.loss.perceptual_weight > 0 else None
    feature = None
    if config.loss.feature_weight > 0:
        feature = load_feature_distance(config.judges.feature_weights, model.image_size)
    discriminator = None
    if config.loss.adversarial_weight > 0:
        discriminator = Discriminator(load_dino_features(config.judges.dino_weights))
    with torch.device(device):
        network = Tokenizer(model)
    objective = TokenizerObjective(
        network, config.loss, perceptual=perceptual, feature=feature, discriminator=discriminator
    )
    return objective, None if discriminator is None else _adversary(discriminator, objective, config)


def _after_update(objective: TokenizerObjective, config: TokenizerRunConfig, engine: TrainingEngine, step: int) -> None:
    """Close the step's count, and put entries of the codebook that have been idle beside used ones."""
    objective.watch.end_step()
    if objective.revival is None:
        return
    codebook = objective.network.dequantizer.codebook
    revived = objective.revival.revive(
        codebook.detach(), seed=config.loop.seed, step=step, num_images=config.optimizer.global_batch
    )
    if revived is not None:
        engine.set_parameter(codebook, revived)


def _adversary(discriminator: Discriminator, objective: TokenizerObjective, config: TokenizerRunConfig) -> Adversary:
    """The discriminator's turn: the tokenizer's batch, length and schedule, its own rate, decay and clipping."""
    judges = config.judges
    optimizer = dataclasses.replace(
        config.optimizer,
        lr=judges.lr,
        lr_factors={},
        weight_decay=judges.weight_decay,
        gradient_clipping=judges.gradient_clipping,
    )
    return Adversary(
        objective=DiscriminatorObjective(discriminator, judges.loss),
        optimizer=optimizer,
        seen=lambda: {"reconstruction": objective.take_reconstruction()},
    )


def train_tokenizer(config: TokenizerRunConfig) -> Path:
    """Train, or go on where an earlier call stopped; see `run_training`."""
    return run_training(config, build_task)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return command(TokenizerRunConfig, train_tokenizer, "Train the tokenizer.", arguments)


if __name__ == "__main__":
    # Under its importable name: Ray workers look classes and functions up by module.
    from pipelines.train.tokenizer import main as entry

    sys.exit(entry())
