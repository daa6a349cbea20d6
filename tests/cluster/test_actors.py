"""The pool of actors: every unit is committed or given up, whatever dies or fails on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cluster.actors import PoolEvent, UnitWorker, require_resources, run_units
from cluster.session import ClusterError

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]


def doubler() -> type[UnitWorker]:
    """A class of actors that double numbers; made here, since workers cannot import a test's module."""

    class Doubler(UnitWorker):
        def __init__(self, folder: Path, dies_at_start: bool = False) -> None:
            if dies_at_start:
                os.kill(os.getpid(), signal.SIGKILL)
            self.folder = folder

        def compute(self, unit: int, kind: str) -> int:
            attempts = len(list(self.folder.glob(f"{unit}-*")))
            (self.folder / f"{unit}-{attempts}").touch()
            if kind == "always dies" or (kind == "dies once" and attempts == 0):
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "refuses":
                raise LookupError(f"unit {unit} cannot be")
            if kind == "always fails" or (kind == "fails once" and attempts == 0):
                raise OSError("disk asleep")
            return 2 * unit

    return Doubler


def run(
    folder: Path, kinds: list[str], *, num_actors: int = 1, note: Callable | None = None, dies_at_start: bool = False
) -> list[PoolEvent]:
    units = {unit: (kind,) for unit, kind in enumerate(kinds)}
    found: list[PoolEvent] = []
    arguments = {"folder": folder, "dies_at_start": dies_at_start}
    events = run_units(
        doubler(), arguments, units, num_actors=num_actors, max_tries=2, fatal=LookupError, options={"num_cpus": 0.5}
    )
    with closing(events):
        for event in events:
            found.append(event)
            if note is not None:
                note(event)
    return found


def test_what_fails_or_dies_once_is_tried_again_and_the_rest_goes_on(tmp_path):
    events = run(tmp_path, ["good", "dies once", "fails once", "always fails", "good"])
    told = {kind: [event.unit for event in events if event.kind == kind] for kind in ("committed", "retried", "failed")}
    # After a death at once, after an error at the end.
    assert told == {"committed": [0, 1, 4, 2], "retried": [1, 2, 3], "failed": [3]}
    assert [event.result for event in events if event.kind == "committed"] == [0, 2, 8, 4]
    reasons = {event.unit: event.reason for event in events if event.reason}
    assert reasons[1].startswith("the actor died (The actor died unexpectedly")
    assert reasons[3] == "OSError: disk asleep"
    pids = [event.pid for event in events if event.kind == "started"]
    assert all(pids)
    assert len(set(pids)) == 2
    assert events[-1].num_deaths == 1


def test_a_unit_that_kills_every_actor_is_given_up(tmp_path):
    events = run(tmp_path, ["always dies", "good", "good"], num_actors=2)
    assert sorted(event.unit for event in events if event.kind == "committed") == [1, 2]
    (failed,) = [event for event in events if event.kind == "failed"]
    assert (failed.unit, failed.num_deaths) == (0, 2)


def test_an_error_for_the_user_ends_the_run_as_itself(tmp_path):
    with pytest.raises(LookupError, match=r"^unit 0 cannot be$"):
        run(tmp_path, ["refuses", "good"])
    assert not list(tmp_path.glob("1-*"))


def test_an_interrupted_run_leaves_no_actor(tmp_path):
    pids: list[int] = []

    def stop(event: PoolEvent) -> None:
        pids.append(event.pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ["good", "good"], note=stop)
    import ray
    from ray.util.state import list_actors

    mine = ray.get_runtime_context().gcs_address  # other tests start clusters of their own
    assert pids
    assert not list_actors(mine, filters=[("class_name", "=", "Doubler"), ("state", "=", "ALIVE")])


def test_actors_that_do_not_start_end_the_run_with_a_message(tmp_path):
    with pytest.raises(ClusterError, match=r"actors do not start \(4 attempts\)"):
        run(tmp_path, ["good"], dies_at_start=True)


def test_what_the_cluster_never_has_room_for_is_refused():
    each = {"CPU": ("cpus_per_actor", 2.0), "GPU": ("gpus_per_actor", 0.0)}
    require_resources(each)
    require_resources(each, "num_actors", 2)
    with pytest.raises(
        ClusterError, match=r"num_actors is 3, which takes 6 CPUs at cpus_per_actor 2; .* at most 4, all"
    ):
        require_resources(each, "num_actors", 3)
    with pytest.raises(ClusterError, match=r"gpus_per_actor is 0\.5; expected at most 0, the GPUs of the largest node"):
        require_resources({"GPU": ("gpus_per_actor", 0.5)})
