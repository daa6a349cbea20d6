"""Epochs whose order is computed where it is asked for: the laws of those that are held in memory."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from cluster.ranks import Ranks
from pipelines.batches.order import ArraySource, ViewGrid

GRID = ViewGrid(num_images=50, num_views=3)


def rows_of(views: str, *, world_size: int = 1, start_step: int = 0, num_steps: int = 25, seed: int = 0) -> np.ndarray:
    """Rows of global batches of 10, (steps, 10), put together from all ranks."""

    def of_rank(rank: int) -> list[np.ndarray]:
        source = ArraySource(GRID, lambda rows: {"row": torch.from_numpy(rows)}, {}, views)
        ranks = Ranks(rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size)
        batches = source.batches(start_step=start_step, global_batch=10, seed=seed, ranks=ranks)
        return [batch.sample_ids for batch in islice(batches, num_steps)]

    return np.concatenate([of_rank(rank) for rank in range(world_size)], axis=1)


@pytest.mark.parametrize("views", ["one", "in_turn", "all"])
def test_an_epoch_shows_each_image_once_or_each_row(views):
    rows = rows_of(views).reshape(-1)
    if views == "all":
        assert np.array_equal(np.sort(rows[:150]), np.arange(150))
        return
    for epoch in range(3):
        shown = rows[50 * epoch : 50 * (epoch + 1)]
        assert np.array_equal(np.sort(shown // 3), np.arange(50))
        if views == "in_turn":
            assert set(shown % 3) == {epoch % 3}
    assert views == "in_turn" or set(rows[:50] % 3) == {0, 1, 2}


@pytest.mark.parametrize("views", ["one", "in_turn", "all"])
def test_ranks_are_disjoint_and_together_what_one_is(views):
    assert np.array_equal(rows_of(views, world_size=5), rows_of(views))


@pytest.mark.parametrize("views", ["one", "in_turn", "all"])
def test_a_resumed_run_reads_what_a_straight_one_does(views):
    assert np.array_equal(rows_of(views, start_step=13, num_steps=12), rows_of(views)[13:])


def test_epochs_and_seeds_have_other_orders():
    rows = rows_of("in_turn").reshape(-1) // 3
    assert not np.array_equal(rows[:50], rows[50:100])
    assert not np.array_equal(rows_of("in_turn", seed=1), rows_of("in_turn"))


def test_its_order_is_named_and_no_other_has_changed():
    def named(rows: np.ndarray | ViewGrid) -> str:
        return ArraySource(rows, lambda rows: {}, {}, "one").fingerprint["order"]

    assert named(GRID) == "feistel network of (seed, epoch)"
    assert named(np.arange(6).reshape(3, 2)) == "philox permutation of (seed, epoch)"
