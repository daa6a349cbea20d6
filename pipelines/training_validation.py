"""Loss of held-out images with fixed noise: the same images and noise at every call."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.batches.order import BatchSource
from pipelines.train.engine import TrainingEngine
from pipelines.training_feed import Feed

FIRST_STEP = 1 << 30  # noise of held-out batches is never that of a training step


@torch.no_grad()
def held_out_loss(engine: TrainingEngine, feed: Feed, source: BatchSource, max_images: int) -> float:
    """Mean loss over whole global batches, all ranks together (all ranks call, in evaluation mode).

    Args:
        engine: of the trained objective.
        feed: cuts the batches.
        source: held-out images.
        max_images: used of them, at least one global batch.
    """
    wanted = min(max_images, source.num_images)
    stream = source.batches(start_step=0, global_batch=feed.global_batch, seed=0, place=feed.place)
    losses: list[Tensor] = []
    for index in range(max(1, wanted // feed.global_batch)):
        for batch, noise in feed.micro_batches(next(stream), seed=0, step=FIRST_STEP + index):
            losses.append(engine.forward(batch, noise)[0])
    mean = torch.stack(losses).double().mean()
    if feed.place.world_size > 1:
        dist.all_reduce(mean)
        mean /= feed.place.world_size
    return float(mean)
