"""Train the tokenizer: `python -m pipelines.train.tokenizer --config FILE key=value …`.

Also under `deepspeed --module` and `torchrun -m`; with `launch.launcher=ray` the ranks are Ray Train workers.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nvg.bounds import at_least, check_fields, positive
from nvg.checkpoints import load_dino_features, load_perceptual_distance
from nvg.errors import UserError
from nvg.tokenizer import Discriminator, Tokenizer, TokenizerConfig
from nvg.training import DiscriminatorLossConfig, DiscriminatorObjective, TokenizerLossConfig, TokenizerObjective
from pipelines.batches.config import ImageLoadingConfig, ViewsPerEpoch
from pipelines.batches.images import check_loading, image_source
from pipelines.sources import SourceConfig, open_source
from pipelines.train.config import RunConfig
from pipelines.train.engine import TrainingEngine
from pipelines.train.launch import command, run_training
from pipelines.train.task import Adversary, TrainingTask


@dataclass(frozen=True, kw_only=True)
class JudgesConfig:
    """Networks that judge reconstructions in training; read only where their loss weight is above 0.

    Attributes:
        vgg_weights: file of torchvision's VGG-16, the trunk of LPIPS.
        dino_weights: file of DINO's ViT-S/16, the trunk of the discriminator.
        lr: learning rate of the discriminator's heads at factor 1; their schedule is the tokenizer's.
        weight_decay: of the heads.
        gradient_clipping: largest 2-norm of the heads' gradient, apart from the tokenizer's.
        loss: loss of the heads.

    Paper: App. A.5
    """

    vgg_weights: str = ""
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
        judges: the networks of the perceptual and the adversarial loss.
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
    source, model = config.source, config.model
    found, expected = (source.image_size, source.image_channels), (model.image_size, model.image_channels)
    if found != expected:
        raise UserError(
            f"source.image_size, source.image_channels are {found}, model.image_size, "
            f"model.image_channels are {expected}; set them equal"
        )
    validation = None
    if config.validation_split is not None and config.loop.validate_every_steps is not None:
        held_out = dataclasses.replace(source, split=config.validation_split, num_views=1, view_policy="center")
        validation = image_source(open_source(held_out), "all", config.loading)
    perceptual = load_perceptual_distance(config.judges.vgg_weights) if config.loss.perceptual_weight > 0 else None
    discriminator = None
    if config.loss.adversarial_weight > 0:
        discriminator = Discriminator(load_dino_features(config.judges.dino_weights))
    objective = TokenizerObjective(Tokenizer(model), config.loss, perceptual=perceptual, discriminator=discriminator)
    return TrainingTask(
        kind="tokenizer",
        objective=objective,
        adversary=None if discriminator is None else _adversary(discriminator, objective, config),
        after_update=None if objective.revival is None else partial(_revive, objective, config),
        window_numbers=objective.watch.close,
        model_config=dataclasses.asdict(model),
        loss_config={**dataclasses.asdict(config.loss), "discriminator": dataclasses.asdict(config.judges.loss)},
        batches=image_source(open_source(source), config.views_per_epoch, config.loading),
        validation=validation,
    )


def _revive(objective: TokenizerObjective, config: TokenizerRunConfig, engine: TrainingEngine, step: int) -> None:
    """Put entries of the codebook that have been idle beside used ones."""
    assert objective.revival is not None
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
