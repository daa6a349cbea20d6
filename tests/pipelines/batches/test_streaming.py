"""The streaming loader's rows sit where their noise is, on any number of nodes and ranks."""

from types import SimpleNamespace

import numpy as np
import pytest

from cluster.ranks import Ranks
from pipelines.batches.streaming import _global_rows


@pytest.mark.slow
@pytest.mark.parametrize(("num_nodes", "ranks_per_node"), [(1, 1), (1, 4), (2, 2), (4, 1)])
@pytest.mark.parametrize("workers_per_rank", [1, 2])
@pytest.mark.parametrize("start_step", [0, 3])
def test_ranks_together_hold_the_global_batches_of_one_rank(num_nodes, ranks_per_node, workers_per_rank, start_step):
    from streaming.base.partition import get_partitions  # heavy import

    sizes = SimpleNamespace(records=160, batch=16, canonical_nodes=8)

    def batches(nodes, ranks, workers):
        share = sizes.batch // (nodes * ranks)
        parts = get_partitions(
            "relaxed",
            sizes.records,
            sizes.canonical_nodes,
            nodes,
            ranks,
            workers,
            share,
            start_step * sizes.batch,
            nodes,
        )  # (nodes, ranks, workers, batches per worker, share); a loader takes its workers' batches in turns
        return parts.transpose(0, 1, 3, 2, 4).reshape(nodes, ranks, -1, share)

    [[whole]] = batches(1, 1, 1)
    parts = batches(num_nodes, ranks_per_node, workers_per_rank)
    found = np.full_like(whole, -1)
    world_size = num_nodes * ranks_per_node
    for rank in range(world_size):
        node, local_rank = divmod(rank, ranks_per_node)
        ranks = Ranks(rank=rank, world_size=world_size, local_rank=local_rank, local_world_size=ranks_per_node)
        found[:, _global_rows(ranks)] = parts[node, local_rank, : len(found)]
    np.testing.assert_array_equal(found, whole)
