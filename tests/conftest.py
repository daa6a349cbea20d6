"""Fixtures of the whole suite: one Ray cluster for all tests, and one of two nodes where nodes matter."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rank_pool import RankPool

REPOSITORY = Path(__file__).resolve().parents[1]

# Before torch is imported anywhere: tests share few cores with the processes they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The suite computes on the CPU on every machine, two ranks on one GPU would not do; tests marked gpu take the variable
# away again.
os.environ.setdefault("DS_ACCELERATOR", "cpu")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a CUDA device where there is none."""
    import torch

    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not torch.cuda.is_available():
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of pyproject.toml."""
    return REPOSITORY


@pytest.fixture
def a_terminal() -> Iterator[None]:
    """Ctrl-C does something, as at a terminal: a job in the background of a script begins with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def ray_session():
    """A local Ray cluster of 4 logical CPUs that lives as long as the test session.

    Yields:
        `cluster.session.ClusterSession`; code under test that opens its own session joins this one.
    """
    from cluster.session import SessionConfig, cluster_session

    config = SessionConfig(
        address="local", num_cpus=4, num_gpus=0, object_store_memory_bytes=200 * 2**20, threads_per_worker=1
    )
    with cluster_session(config) as session:
        yield session


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[RankPool]:
    """Two ranks under the real deepspeed launcher that live as long as the test session."""
    from rank_pool import RankPool

    pool = RankPool(REPOSITORY)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def two_node_environment(ray_session) -> Iterator[dict[str, str]]:
    """Two Ray nodes of 2 logical CPUs each on this machine, beside `ray_session`, which starts first.

    Yields:
        The environment for `subprocess.run(..., env=...)`; a program started with it joins the two nodes.
    """
    from simulated_cluster import simulated_cluster

    with simulated_cluster(num_nodes=2, num_cpus_per_node=2) as environment:
        yield environment
