"""The one pool of Ray actors: units of work go to actors until each is committed or has failed too often.

A unit's result is a file (or folder) that its actor commits by renaming, so a unit done twice does no harm: what a
killed actor leaves undone, another one does again, and a run that was stopped goes on with the missing ones.
`max_restarts` and `max_task_retries` of Ray stay 0: it would restart in silence, and neither say which unit an actor
died of, nor ever give one up that kills them all.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter, deque
from collections.abc import Generator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.session import ClusterError

_MAX_START_FAILURES = 3  # for each actor that is wanted


class UnitWorker:
    """Base of what lives in an actor; a subclass has `compute(unit, *arguments)`, which commits the unit."""

    def process_id(self) -> int:
        """Answers as soon as the actor is ready."""
        return os.getpid()


@dataclass(frozen=True, kw_only=True)
class PoolEvent:
    """Something that happened to a unit.

    Attributes:
        kind: an actor has "started" or "committed" it; an attempt failed and it is queued again ("retried") or given
            up ("failed").
        unit: its number.
        pid: process of the actor.
        reason: why an attempt failed, else "".
        result: what `compute` returned for a committed unit.
        num_deaths: actors of this run that have died so far, those that were only starting among them.
    """

    kind: Literal["started", "committed", "retried", "failed"]
    unit: int
    pid: int
    reason: str = ""
    result: Any = None
    num_deaths: int = 0


def run_units(
    worker: type[UnitWorker],
    arguments: Mapping[str, Any],
    units: Mapping[int, tuple[Any, ...]],
    *,
    num_actors: int,
    max_tries: int,
    fatal: type[Exception],
    options: Mapping[str, Any],
) -> Generator[PoolEvent, None, None]:
    """Work on units with actors of the connected cluster until each is committed or given up.

    Args:
        worker: class of the actors.
        arguments: of its constructor; sent to the cluster once, whatever the number of actors.
        units: number to the further arguments of `compute`; begun in this order.
        num_actors: actors at the same time; those for which there is no room yet wait for it.
        max_tries: attempts per unit. After a death a unit is tried again next, after an error it is tried last.
        fatal: an exception of this kind from a unit ends the run; any other one fails the attempt.
        options: Ray's options of an actor, such as `num_cpus`.

    Yields:
        Events as they happen. Closing the generator (`contextlib.closing`) ends the actors.

    Raises:
        ClusterError: actors die before they are ready, again and again.
    """
    import ray  # reads its environment when it is imported

    remote: Any = ray.remote(worker)
    remote = remote.options(**options, max_restarts=0)
    shared = {name: ray.put(value) for name, value in arguments.items()}
    pool = _Pool(lambda: remote.remote(**shared), units, min(num_actors, len(units)), max_tries, fatal)
    try:
        yield from pool.events()
    finally:
        for actor in pool.actors:
            ray.kill(actor.handle)


@dataclass(eq=False)
class _Actor:
    """An actor and the unit it works on; None while it starts or waits."""

    handle: Any
    pid: int = 0
    unit: int | None = None


class _Pool:
    def __init__(self, make: Any, units: Mapping[int, Any], num_actors: int, max_tries: int, fatal: Any) -> None:
        self.make, self.units, self.num_actors = make, units, num_actors
        self.max_tries, self.fatal = max_tries, fatal
        self.queue = deque(units)
        self.tries: Counter[int] = Counter()
        self.num_deaths = self.num_start_failures = 0
        self.actors: list[_Actor] = []
        self.idle: list[_Actor] = []
        self.busy: dict[Any, _Actor] = {}  # by the call it has to answer

    def events(self) -> Generator[PoolEvent, None, None]:
        import ray

        for _ in range(self.num_actors):
            self.start()
        while self.queue or any(actor.unit is not None for actor in self.busy.values()):
            while self.queue and self.idle:
                actor, unit = self.idle.pop(), self.queue.popleft()
                actor.unit = unit
                self.busy[actor.handle.compute.remote(unit, *self.units[unit])] = actor
                yield self.event("started", actor, unit)
            done, _ = ray.wait(list(self.busy), num_returns=1)
            event = self.settle(done[0], self.busy.pop(done[0]))
            if event is not None:
                yield event

    def start(self) -> None:
        actor = _Actor(self.make())
        self.actors.append(actor)
        self.busy[actor.handle.process_id.remote()] = actor

    def settle(self, call: Any, actor: _Actor) -> PoolEvent | None:
        """Take the answer of an actor, which is free then, or replaced where it has died."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        unit, actor.unit = actor.unit, None
        try:
            result: Any = ray.get(call)
        except RayTaskError as error:
            if unit is None or isinstance(error.cause, self.fatal):
                raise error.cause from error
            self.idle.append(actor)
            return self.failed(actor, unit, f"{type(error.cause).__name__}: {error.cause}")
        except RayError as error:  # the actor, its process or its node is gone
            self.num_deaths += 1
            self.actors.remove(actor)
            ray.kill(actor.handle)
            self.start()
            if unit is not None:
                return self.failed(actor, unit, f"the actor died ({_shortened(error)})", at_once=True)
            self.num_start_failures += 1
            if self.num_start_failures > _MAX_START_FAILURES * self.num_actors:
                raise ClusterError(
                    f"actors do not start ({self.num_start_failures} attempts): {error}; look for a lack of memory or "
                    "for files that other machines do not see"
                ) from error
            return None
        self.idle.append(actor)
        if unit is None:
            actor.pid = result
            return None
        return self.event("committed", actor, unit, result=result)

    def failed(self, actor: _Actor, unit: int, reason: str, *, at_once: bool = False) -> PoolEvent:
        """Queue a unit again after a failed attempt, or give it up."""
        self.tries[unit] += 1
        if self.tries[unit] >= self.max_tries:
            return self.event("failed", actor, unit, reason=reason)
        # An error may be gone after a while; of deaths one wants to know soon whether the unit causes them.
        (self.queue.appendleft if at_once else self.queue.append)(unit)
        return self.event("retried", actor, unit, reason=reason)

    def event(self, kind: Any, actor: _Actor, unit: int, **values: Any) -> PoolEvent:
        return PoolEvent(kind=kind, unit=unit, pid=actor.pid, num_deaths=self.num_deaths, **values)


def _shortened(error: Exception) -> str:
    """The first line of Ray's message, which says what happened, and the last, which guesses why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(dict.fromkeys([lines[0], lines[-1]])) if lines else type(error).__name__


def require_resources(each: Mapping[str, tuple[str, float]], num_key: str = "", num: int = 1) -> None:
    """Refuse what the connected cluster never has room for: Ray itself would wait for ever.

    Args:
        each: what one worker takes, by Ray's name of it: key of the setting and its value, such as
            `{"CPU": ("cpus_per_actor", 2.0)}`.
        num_key: setting of how many workers there must be at the same time; "" where fewer do as well.
        num: its value.

    Raises:
        ClusterError: one worker is larger than every node, or all together are larger than the cluster.
    """
    import ray

    if not ray.is_initialized():
        raise ClusterError("found no Ray session, expected one; open it with cluster.session.cluster_session")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, (key, share) in each.items():
        there = [node.get(name, 0.0) for node in nodes]
        if share > max(there, default=0.0):
            raise ClusterError(
                f"{key} is {share:g}; expected at most {max(there, default=0.0):g}, the {name}s of the largest node "
                "of the Ray cluster; lower it or use a larger cluster"
            )
        if share * num > sum(there) + 1e-9:
            raise ClusterError(
                f"{num_key} is {num}, which takes {share * num:g} {name}s at {key} {share:g}; expected at most "
                f"{sum(there):g}, all of the Ray cluster; lower one of them or use a larger cluster"
            )


def require_shared(key: str, path: Path, *, written: bool = True) -> None:
    """Refuse a folder that a node of the connected cluster does not see as this process does.

    Args:
        key: its setting.
        path: made where it is missing; what is only read and not there (a URL, a pattern) is passed over.
        written: whether all nodes write to it: then they are asked for a file in it, which is there for a moment, else
            for the path alone.

    Raises:
        ClusterError: names the nodes.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    if len(nodes) == 1 or not (written or path.exists()):
        return
    path = path.expanduser().absolute()
    if written:
        path.mkdir(parents=True, exist_ok=True)
    exists: Any = ray.remote(num_cpus=0)(os.path.exists)
    blind: list[str] = []
    with tempfile.NamedTemporaryFile(prefix=".seen-", dir=path) if written else nullcontext(path) as mark:
        wanted = mark.name if written else str(path)
        asked = [exists.options(scheduling_strategy=On(node, soft=False)).remote(wanted) for node in nodes]
        for node, answer in zip(nodes.values(), asked, strict=True):
            with suppress(RayError):  # who is lost meanwhile is looked after by others
                blind += [] if ray.get(answer) else [f"{node['NodeName']} ({node['NodeManagerAddress']})"]
    if blind:
        raise ClusterError(
            f"{key} is {path}; {len(blind)} of the {len(nodes)} nodes of the Ray cluster do not see it: "
            f"{', '.join(blind)}; expected that all of them see it under this path; mount it there, or change {key}"
        )
