"""A session starts a cluster, joins one, and ends only its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile

import pytest

from cluster.session import (
    ClusterError,
    SessionConfig,
    _resolve_address,
    cluster_session,
    session_environment,
    settle_temporary_folder,
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


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "http://127.0.0.1:8265",
            r"the address of a job server; .* 127\.0\.0\.1:6379 .* nvg submit --address http://127",
        ),
        ("https://head/x", r"the address of a job server; expected that of the cluster, head:6379 or ray://head:10001"),
        ("localhost", "expected HOST:PORT of the head"),
        ("10.0.0.5", "expected HOST:PORT of the head"),
        ("10.0.0.5:port", "expected HOST:PORT of the head"),
        ("ray://head", "expected HOST:PORT of the head"),
        ("tcp://head:6379", "expected HOST:PORT of the head"),
        ("head:6379/", "expected HOST:PORT of the head"),
    ],
)
def test_what_is_no_address_of_a_cluster_is_told_apart(address, message, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=f"^RAY_ADDRESS is '{re.escape(address)}'"):
        _resolve_address(SessionConfig())
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ClusterError, match=message):
        _resolve_address(SessionConfig(address=address))


@pytest.mark.parametrize(
    "address", ["auto", "local", "10.0.0.5:6379", "ray://head:10001", "[::1]:6379", "head.x.org:1"]
)
def test_addresses_of_clusters_pass(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert _resolve_address(SessionConfig()) == address
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert _resolve_address(SessionConfig()) == "local"


def test_sockets_go_below_tmp_where_tmpdir_is_too_long(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("t" * 135)))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    settle_temporary_folder()
    assert os.environ["TMPDIR"] == "/tmp"
    assert tempfile.gettempdir() == "/tmp"
    assert "too many for the names of sockets (at most 36); /tmp is used" in capsys.readouterr().err
    settle_temporary_folder()
    assert not capsys.readouterr().err
    monkeypatch.setenv("RAY_TMPDIR", "/" + "ü" * 30)
    with pytest.raises(ClusterError, match=r"RAY_TMPDIR has 61 bytes; expected at most 36, .* set session\.temp_dir"):
        settle_temporary_folder()


@pytest.mark.cluster
def test_a_cluster_starts_with_the_tmpdir_of_a_batch_system(tmp_path):
    folder = tmp_path / ("t" * 60) / ("u" * 60)
    folder.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    start = "cluster_session(SessionConfig(address='local', num_cpus=1))"
    program = f"from cluster.session import *\nwith {start} as session: print(session.num_cpus)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"
    assert "/tmp is used" in done.stderr


def test_a_node_that_is_too_slow_to_start_is_one_message(monkeypatch):
    """Ray raises no class of its own for it; a mistake of ours goes through as it is."""
    import ray

    def slow(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup.")

    def mistaken(*_: object, **__: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", slow)
    said = "timed out during startup.*start the same command again"
    with pytest.raises(ClusterError, match=said), cluster_session(SessionConfig(address="local")):
        pass
    monkeypatch.setattr(ray, "init", mistaken)
    with pytest.raises(KeyError), cluster_session(SessionConfig(address="local")):
        pass


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
