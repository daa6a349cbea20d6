"""Ray actors that take units from a queue; a unit whose actor dies is given to another one.

Import this module only inside a cluster session: it imports ray.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from nvg.checkpoints import load_network
from nvg.errors import UserError
from nvg.tokenizer import Tokenizer
from pipelines.precompute.beside import open_repa_stream
from pipelines.precompute.config import PrecomputeConfig
from pipelines.precompute.plan import DatasetFolder
from pipelines.precompute.unit import encode_unit
from pipelines.sources import ImageSource

_MAX_START_FAILURES = 3


@dataclass(frozen=True)
class PoolEvent:
    """Something that happened to a unit.

    Attributes:
        kind: "started", "committed", "retried" (an attempt failed, the unit is queued again) or "failed".
        unit: Its number.
        pid: Process of the actor.
        reason: Why an attempt failed, else "".
        part: The part manifest of a committed unit.
    """

    kind: str
    unit: int
    pid: int
    reason: str = ""
    part: dict[str, Any] | None = None


class EncodingActor:
    """Holds the tokenizer and the index of the source, encodes one unit per call."""

    def __init__(
        self,
        *,
        tokenizer_folder: str,
        source: ImageSource,
        config: PrecomputeConfig,
        folder: DatasetFolder,
        plan_fingerprint: str,
    ) -> None:
        torch.set_num_threads(config.threads_per_actor)
        torch.backends.cudnn.deterministic = True  # the same bytes whoever encodes a unit
        tokenizer = load_network(Tokenizer, tokenizer_folder, name=config.tokenizer_weights)
        self._tokenizer = tokenizer.to(config.device).eval()
        self._repa = open_repa_stream(config.repa, config.device)
        self._source = source
        self._config = config
        self._folder = folder
        self._plan_fingerprint = plan_fingerprint

    def process_id(self) -> int:
        """Answers as soon as the actor is ready."""
        return os.getpid()

    def encode(self, unit: int, indices: np.ndarray) -> dict[str, Any]:
        """Encode and commit a unit; see `encode_unit`."""
        return encode_unit(
            unit,
            indices,
            source=self._source,
            tokenizer=self._tokenizer,
            config=self._config,
            folder=self._folder,
            plan_fingerprint=self._plan_fingerprint,
            repa=self._repa,
        )


@dataclass
class _Slot:
    """One actor and the call it is busy with: a unit, or its start (unit None)."""

    actor: Any
    call: Any
    pid: int = 0
    unit: int | None = None


class ActorPool:
    """Drives a queue of units over a fixed number of actors."""

    def __init__(
        self,
        units: Mapping[int, np.ndarray],
        *,
        make_actor: Callable[[], Any],
        num_actors: int,
        max_attempts: int,
        on_event: Callable[[PoolEvent], None],
    ) -> None:
        """
        Args:
            units: Source indices by unit number; worked on in this order.
            make_actor: Starts an `EncodingActor` and returns its handle.
            num_actors: Actors at the same time.
            max_attempts: Tries per unit.
            on_event: Called for every `PoolEvent`; an exception from it ends the run.
        """
        self._units = units
        self._queue = deque(units)
        self._make_actor = make_actor
        self._num_actors = min(num_actors, len(units))
        self._max_attempts = max_attempts
        self._on_event = on_event
        self._attempts: Counter[int] = Counter()
        self._start_failures = 0
        self._slots: list[_Slot] = []

    def run(self) -> dict[int, str]:
        """Work until every unit is committed or given up.

        Returns:
            Units given up after `max_attempts` tries, with the last reason.

        Raises:
            UserError: A part cannot be written, or actors cannot start.
        """
        failures: dict[int, str] = {}
        try:
            self._slots = [self._start() for _ in range(self._num_actors)]
            while self._queue or any(slot.unit is not None for slot in self._slots):
                busy = {slot.call: slot for slot in self._slots if slot.call is not None}
                done, _ = ray.wait(list(busy), num_returns=1)
                self._settle(busy[done[0]], failures)
        finally:
            for slot in self._slots:
                ray.kill(slot.actor)
        return failures

    def _start(self) -> _Slot:
        actor = self._make_actor()
        return _Slot(actor, actor.process_id.remote())

    def _settle(self, slot: _Slot, failures: dict[int, str]) -> None:
        """Take the result of a slot's call and give the slot its next unit."""
        call, unit = slot.call, slot.unit
        slot.call = slot.unit = None
        try:
            result: Any = ray.get(call)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from error
            if unit is None:
                raise
            self._give_back(unit, slot.pid, f"{type(cause).__name__}: {cause}", failures)
        except RayError as error:  # the actor, its process or its node is gone
            reason = f"the actor died ({str(error).splitlines()[0]})"
            self._replace(slot)
            if unit is None:
                self._count_start_failure(error)
            else:
                self._give_back(unit, slot.pid, reason, failures)
            return
        else:
            if unit is None:
                slot.pid = result
            else:
                self._on_event(PoolEvent("committed", unit, slot.pid, part=result))
        self._next_unit(slot)

    def _next_unit(self, slot: _Slot) -> None:
        if self._queue:
            slot.unit = self._queue.popleft()
            slot.call = slot.actor.encode.remote(slot.unit, self._units[slot.unit])
            self._on_event(PoolEvent("started", slot.unit, slot.pid))

    def _replace(self, slot: _Slot) -> None:
        ray.kill(slot.actor)
        fresh = self._start()
        slot.actor, slot.call = fresh.actor, fresh.call

    def _give_back(self, unit: int, pid: int, reason: str, failures: dict[int, str]) -> None:
        """Queue a unit again after a failed attempt, or give it up."""
        self._attempts[unit] += 1
        if self._attempts[unit] < self._max_attempts:
            self._queue.append(unit)
            self._on_event(PoolEvent("retried", unit, pid, reason))
        else:
            failures[unit] = reason
            self._on_event(PoolEvent("failed", unit, pid, reason))

    def _count_start_failure(self, error: RayError) -> None:
        self._start_failures += 1
        if self._start_failures > _MAX_START_FAILURES * self._num_actors:
            raise UserError(f"precompute actors do not start ({self._start_failures} attempts): {error}") from error


def encode_units(
    units: Mapping[int, np.ndarray],
    *,
    source: ImageSource,
    tokenizer_folder: str,
    config: PrecomputeConfig,
    folder: DatasetFolder,
    plan_fingerprint: str,
    on_event: Callable[[PoolEvent], None],
) -> dict[int, str]:
    """Encode units on actors of the connected cluster.

    Args:
        units: Source indices by unit number.
        source: Opened source; sent to the actors once, so that it is indexed once.
        tokenizer_folder: Folder of the tokenizer's weights.
        config: The job.
        folder: The data set.
        plan_fingerprint: Of the job.
        on_event: Called for every event.

    Returns:
        Units given up, with reasons.

    Raises:
        UserError: The cluster is too small, or a part cannot be written.
    """
    _require_resources(config)
    actor_class: Any = ray.remote(EncodingActor)
    actor_class = actor_class.options(num_cpus=config.cpus_per_actor, num_gpus=config.gpus_per_actor)
    shared = ray.put(source)

    def make_actor() -> Any:
        return actor_class.remote(
            tokenizer_folder=tokenizer_folder,
            source=shared,
            config=config,
            folder=folder,
            plan_fingerprint=plan_fingerprint,
        )

    pool = ActorPool(
        units,
        make_actor=make_actor,
        num_actors=config.num_actors,
        max_attempts=config.max_attempts,
        on_event=on_event,
    )
    return pool.run()


def _require_resources(config: PrecomputeConfig) -> None:
    largest: Counter[str] = Counter()
    for node in ray.nodes():
        if node["Alive"]:
            for name in ("CPU", "GPU"):
                largest[name] = max(largest[name], node["Resources"].get(name, 0))
    for name, wanted in (("CPU", config.cpus_per_actor), ("GPU", config.gpus_per_actor)):
        if wanted > largest[name]:
            raise UserError(
                f"{name.lower()}s_per_actor: found {wanted}, but the largest node of the cluster has "
                f"{largest[name]:g}; lower it or use a larger cluster"
            )
