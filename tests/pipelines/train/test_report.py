"""Numbers of a training are the same however its batches are cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from golden_training import GoldenRunConfig, build_task
from torch import Tensor

from cluster.ranks import Ranks
from nvg.training import GeneratorLossConfig
from pipelines.train.report import averages

GLOBAL_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class OneOfSeveral(Ranks):
    """A rank whose words are kept, and that hears those of others."""

    others: list[Any] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        self.said.append(value)
        return [value, *self.others]


def metrics_of(kind: str, cuts: list[slice]) -> list[dict[str, Tensor]]:
    """Metrics of one step of few stages an image, for each of some parts of the batch."""
    task = build_task(GoldenRunConfig(kind=kind, run_folder=""))
    objective: Any = task.objective
    objective.eval()
    objective.config = GeneratorLossConfig(stages_per_image=2)
    batch = next(task.batches.batches(start_step=0, global_batch=GLOBAL_BATCH, seed=0, ranks=Ranks())).tensors
    noise = objective.draw_noise(seed=0, step=0, global_batch=GLOBAL_BATCH)
    with torch.no_grad():
        return [
            objective({k: v[cut] for k, v in batch.items()}, {k: v[cut] for k, v in noise.items()})[1] for cut in cuts
        ]


@pytest.mark.parametrize("kind", ["content", "structure"])
def test_numbers_of_a_stage_are_means_over_its_values_not_over_ranks(kind):
    whole, first, second = (
        [{"loss": torch.zeros(()), **metrics}] for metrics in metrics_of(kind, [slice(0, 8), slice(0, 4), slice(4, 8)])
    )
    averages(second, rank := OneOfSeveral())
    averages(first, other := OneOfSeveral(others=rank.said))
    counts = [{name: count for name, _, count in of_rank} for of_rank in (*rank.said, *other.said)]
    assert counts[0] != counts[1]  # of a stage
    assert averages(first, OneOfSeveral(others=rank.said)) == pytest.approx(averages(whole, Ranks()), rel=1e-5)
