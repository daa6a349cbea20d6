"""What the loop is given: an objective with its data, and the settings of optimizer, loop and engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.batches.order import BatchSource
from pipelines.train.config import OptimizerConfig, RunConfig
from pipelines.train.engine import TrainingEngine
from pipelines.train.state import flatten


class Objective(Protocol):
    """What the loop asks of an objective (an `nn.Module`)."""

    @property
    def network(self) -> Any:
        """The trained network (`nn.Module`)."""
        ...

    @property
    def host_noise(self) -> frozenset[str]:
        """Noise that decides what is computed: it stays on the host, so that no device is waited for."""
        ...

    def draw_noise(self, *, seed: int, step: int, global_batch: int, rows: slice) -> dict[str, Tensor]:
        """Random tensors of one step for these rows of the global batch, in any thread."""
        ...

    def to(self, device: torch.device) -> Any:
        """Move parameters and buffers."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Training or evaluation mode."""
        ...

    def __call__(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and named scalar numbers."""
        ...


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """A second network that learns against the first, after it in every step.

    Attributes:
        objective: module with `network` and a forward like the first one's.
        optimizer: its own learning rate, decay and clipping; batch and length are those of the run.
        seen: what the first network has just made, added to the batch.
    """

    objective: Any
    optimizer: OptimizerConfig
    seen: Callable[[], dict[str, Tensor]]


class SampleSheets(Protocol):
    """Draws pictures of samples now and then."""

    @property
    def every_steps(self) -> int:
        """Steps between two pictures."""
        ...

    def draw(self, weights: dict[str, Tensor], device: torch.device) -> bytes | None:
        """A PNG file of samples with these weights; None while something is still missing."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What is trained.

    Attributes:
        kind: "tokenizer", "content" or "structure": kind of the weights, and what the user is shown.
        objective: module with `network`, `draw_noise` and a forward that gives loss and named metrics.
        model_config: written beside the weights.
        batches: training data.
        loss_config: settings of the objective; compared when a run resumes.
        validation: held-out data, or None.
        adversary: the discriminator's side, or None.
        after_update: called after every update of the main network with its engine and the step's number (from 0), or
            None (every rank calls it).
        tokens_per_image: transformer tokens of an image in a step, or None.
        count_flops: operations of an image, forward and backward, counted when called; None where nobody counts.
        samples: pictures of samples, or None.
        training_keys: uint64, hashes of the names of the training images, kept with the weights; or None.
        init_from: where the first weights are from, or were asked to be; see `TrainerState`.
        window_numbers: further numbers of the steps since the last row of metrics (every rank calls it), or None.
    """

    kind: str
    objective: Objective
    model_config: dict[str, Any]
    batches: BatchSource
    loss_config: dict[str, Any] = field(default_factory=dict)
    validation: BatchSource | None = None
    adversary: Adversary | None = None
    after_update: Callable[[TrainingEngine, int], None] | None = None
    window_numbers: Callable[[], dict[str, float]] | None = None
    init_from: dict[str, str] = field(default_factory=dict)
    tokens_per_image: int | None = None
    count_flops: Callable[[], float] | None = None
    samples: SampleSheets | None = None
    training_keys: np.ndarray | None = None

    def settings(self, config: RunConfig) -> dict[str, Any]:
        """What must be equal for a run to go on; see `settings_of`."""
        adversary = None if self.adversary is None else self.adversary.optimizer
        return settings_of(config, self.kind, self.model_config, self.loss_config, adversary)


def settings_of(
    config: RunConfig, kind: str, model: dict[str, Any], loss: dict[str, Any], adversary: OptimizerConfig | None = None
) -> dict[str, Any]:
    """What must be equal for a run to go on: everything that moves a weight.

    Args:
        config: the run.
        kind, model, loss: of the task.
        adversary: its optimizer, where there is one.

    Returns:
        Flat dictionary of JSON values.
    """
    return flatten(
        {
            "kind": kind,
            "model": model,
            "loss": loss,
            "optimizer": _settings(config.optimizer),
            **({} if adversary is None else {"adversary": _settings(adversary)}),
            "loop": {"seed": config.loop.seed, "precision": config.loop.precision},
        }
    )


def _settings(optimizer: OptimizerConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(optimizer).items() if key != "micro_batch"}
