"""A session starts a cluster, joins one, and ends only its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cluster.session import (
    ClusterError,
    SessionConfig,
    cluster_session,
    session_environment,
    worker_environment,
)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"address": ""}, "address"),
        ({"num_cpus": 0}, "num_cpus"),
        ({"num_gpus": -1}, "num_gpus"),
        ({"object_store_memory_bytes": 10}, "object_store_memory_bytes"),
        ({"temp_dir": "relative"}, "temp_dir"),
        ({"temp_dir": "/" + "x" * 60}, "temp_dir"),
        ({"threads_per_worker": 0}, "threads_per_worker"),
        ({"auth_mode": "open"}, "auth_mode"),
    ],
)
def test_impossible_values_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        SessionConfig(**change)


def test_environment_already_set_wins(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    environment = session_environment(SessionConfig(auth_mode="disabled"))
    assert "RAY_AUTH_MODE" not in environment
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_worker_threads_come_from_the_config():
    environment = worker_environment(SessionConfig(threads_per_worker=3, env_vars={"A": "b"}), "10.0.0.1:6379")
    assert environment == {
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "RAY_ADDRESS": "10.0.0.1:6379",
        "A": "b",
    }


@pytest.mark.cluster
def test_started_session_runs_work_with_its_threads(ray_session):
    import ray

    @ray.remote
    def threads() -> str | None:
        import os

        return os.environ.get("OMP_NUM_THREADS")

    assert ray_session.started
    assert ray_session.num_cpus == 4
    assert ray_session.dashboard_url.startswith("http://127.0.0.1:")
    assert ray.get(threads.remote()) == "1"


@pytest.mark.cluster
def test_workers_ask_their_own_cluster_when_another_was_started_later(ray_session, two_node_environment):
    """Ray Train's watchdog asks so whether its controller lives, and frees the training's resources if not."""
    import ray

    @ray.remote
    class Asker:
        def own_state(self) -> str | None:
            from ray.util.state import get_actor

            found = get_actor(str(ray.get_runtime_context().get_actor_id()), timeout=60)
            return getattr(found, "state", None)

    asker = Asker.remote()
    assert ray.get(asker.own_state.remote()) == "ALIVE"


@pytest.mark.cluster
def test_inner_session_leaves_the_outer_one_running(ray_session):
    import ray

    with cluster_session(SessionConfig(address="auto")) as inner:
        assert not inner.started
        assert inner.address == ray_session.address
    assert ray.is_initialized()


JOIN = """
from cluster.session import SessionConfig, cluster_session
with cluster_session(SessionConfig()) as session:
    import ray
    print(session.started, session.num_cpus, len([node for node in ray.nodes() if node["Alive"]]))
"""


@pytest.mark.cluster
@pytest.mark.slow
def test_auto_joins_a_cluster_of_two_nodes(two_node_environment, repository):
    done = subprocess.run(
        [sys.executable, "-c", JOIN],
        env=two_node_environment,
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "4", "2"]


REFUSED = """
from cluster.session import ClusterError, SessionConfig, cluster_session
try:
    with cluster_session(SessionConfig(address="127.0.0.1:1")):
        pass
except ClusterError as error:
    print("127.0.0.1:1" in str(error), "RAY_AUTH_MODE" in str(error))
"""


@pytest.mark.cluster
@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_clear_error(repository):
    assert issubclass(ClusterError, ValueError)
    done = subprocess.run(
        [sys.executable, "-c", REFUSED],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["True", "True"], done.stderr
