"""Two ranks with half a batch each are one rank with the whole batch."""

from __future__ import annotations

import pytest
import torch
from batch_norm_ranks import SHAPE, batch, rank_main, run
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(rank_main, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_outputs_and_running_statistics_are_those_of_the_whole_batch(ranks):
    whole = run(batch())
    torch.testing.assert_close(torch.cat([rank["out"] for rank in ranks]), whole["out"], rtol=1e-5, atol=1e-5)
    for rank in ranks:
        torch.testing.assert_close(rank["running_mean"], whole["running_mean"])
        torch.testing.assert_close(rank["running_var"], whole["running_var"])


def test_gradients_averaged_over_ranks_are_those_of_the_whole_batch(ranks):
    whole = run(batch())
    mean_over_ranks = (ranks[0]["weight_gradient"] + ranks[1]["weight_gradient"]) / 2
    torch.testing.assert_close(mean_over_ranks, whole["weight_gradient"], rtol=1e-5, atol=1e-6)
    joined = torch.cat([rank["input_gradient"] for rank in ranks]) / 2
    torch.testing.assert_close(joined, whole["input_gradient"], rtol=1e-4, atol=1e-6)


def test_one_rank_is_plain_batch_norm():
    torch.manual_seed(1)
    plain = nn.BatchNorm1d(SHAPE[1], eps=1e-6)
    nn.init.normal_(plain.weight)
    assert torch.equal(run(batch())["out"], plain(batch()).detach())
