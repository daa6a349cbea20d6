"""Who am I among the ranks, read once from the variables that each launcher sets differently; what ranks say together.

Ray Train, the `deepspeed` launcher and torchrun all set RANK, LOCAL_RANK and WORLD_SIZE; the `deepspeed` launcher names
the number of ranks on this node LOCAL_SIZE, the others LOCAL_WORLD_SIZE. StreamingDataset reads LOCAL_WORLD_SIZE when
it is built and takes every rank for a node leader when it is missing, so entry points call `Ranks.read` before anything
else and hand its result down: nothing below them looks at the environment again.

What DeepSpeed takes from this process as a whole (variables and operators) is set here too.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, PrefixStore
from torch.distributed.rendezvous import rendezvous

from cluster.devices import DeviceName, choose_device, gpu_identity, refuse_shared_gpus
from cluster.session import ClusterError, settle_temporary_folder

FOR_EVER_S = 365 * 24 * 3600.0
_MEETING_S = 1800.0  # for ranks that never come
_LAUNCHERS_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Place of this process in the job, and the collectives: every rank calls them, and equally often.

    Attributes:
        rank: global rank, 0 .. world_size - 1.
        world_size: number of ranks in the job.
        local_rank: rank on this node.
        local_world_size: ranks on this node.
        device: the rank's own GPU, or the CPU.
        timeout_s: how long a rank waits for the others in a collective; None waits for ever.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timeout_s: float | None = None

    @classmethod
    def read(
        cls,
        environ: MutableMapping[str, str] | None = None,
        *,
        device: DeviceName = "auto",
        timeout_s: float | None = None,
    ) -> Ranks:
        """Read the launcher's variables and write the missing ones, so that every library sees the same job.

        Args:
            environ: variables to read and complete; `os.environ` when None.
            device: see `choose_device`.

        Returns:
            The place of this process; (0 of 1) when no launcher has set anything.

        Raises:
            ClusterError: the variables contradict each other or the devices of this node.
        """
        environ = os.environ if environ is None else environ
        settle_temporary_folder(for_ray=False)
        world_size = _count(environ, "WORLD_SIZE", "1")
        rank = _count(environ, "RANK", "0")
        local_rank = _count(environ, "LOCAL_RANK", "0")
        local = environ.get("LOCAL_WORLD_SIZE") or environ.get("LOCAL_SIZE")
        if local is None and world_size > 1:
            raise ClusterError(
                f"WORLD_SIZE={world_size} but neither LOCAL_WORLD_SIZE nor LOCAL_SIZE is set; start with "
                "torchrun, the deepspeed launcher or Ray Train, or set LOCAL_WORLD_SIZE to "
                f"the number of ranks on this node; {_left_over_advice(environ)}"
            )
        local_world_size = _count(environ, "LOCAL_WORLD_SIZE" if environ.get("LOCAL_WORLD_SIZE") else "LOCAL_SIZE", "1")
        if not 0 <= rank < world_size or not 0 <= local_rank < local_world_size or world_size % local_world_size:
            raise ClusterError(
                f"found RANK={rank}, WORLD_SIZE={world_size}, LOCAL_RANK={local_rank}, LOCAL_WORLD_SIZE="
                f"{local_world_size}; expected rank < world size and the same number of ranks on every node; "
                f"{_left_over_advice(environ)}"
            )
        own = choose_device(device, environ, local_rank=local_rank, local_world_size=local_world_size)
        if world_size > 1:  # without a launcher nothing is set: children must not take themselves for ranks
            environ["LOCAL_WORLD_SIZE"] = str(local_world_size)
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=local_world_size,
            device=own,
            timeout_s=timeout_s,
        )

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    def join(self) -> None:
        """Join the job's process group unless that is done (Ray Train does it, or an earlier call has).

        The group stays for the life of the process: DeepSpeed keeps handles of it. One rank alone needs no port: it
        uses a store in its own memory.

        Raises:
            ClusterError: the others did not come, or the launcher's variables do not say where to meet.
        """
        if dist.is_initialized():
            if self.device.type == "cuda" and self.world_size > 1:
                identities: list[Any] = [None] * self.world_size
                dist.all_gather_object(identities, gpu_identity(self.device), group=self._host_group)
                refuse_shared_gpus(identities)
            return
        on_gpu = self.device.type == "cuda"
        group: dict[str, Any] = {"timeout": self._timeout, **({"device_id": self.device} if on_gpu else {})}
        backend = "nccl" if on_gpu else "gloo"
        if self.world_size == 1:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, **group)
            return
        if self.local_rank == 0:
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            sys.stderr.write(f"nvg: rank {self.rank} waits at {place} for the other {self.world_size - 1}\n")
        try:
            meeting = min(self._timeout, timedelta(seconds=_MEETING_S))
            store, rank, world_size = next(rendezvous("env://", timeout=meeting))
            if on_gpu:  # before NCCL meets the same GPU twice
                store.set(f"gpu{rank}", gpu_identity(self.device))
                found = store.multi_get([f"gpu{number}" for number in range(world_size)])
                store.set(f"read{rank}", "")
                if rank == 0:  # whose process holds the store
                    store.wait([f"read{number}" for number in range(world_size)])
                refuse_shared_gpus(identity.decode() for identity in found)
            store = PrefixStore("ranks", store)
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, **group)
        except ClusterError:
            raise
        except (dist.DistError, ValueError) as error:
            raise ClusterError(
                f"The {self.world_size} ranks did not find each other: {str(error).strip().splitlines()[0]}. Check "
                f"MASTER_ADDR and MASTER_PORT; {_left_over_advice(os.environ)}"
            ) from error

    def settle_timeouts(self) -> None:
        """Give every process group the timeout of these ranks: those that libraries make have PyTorch's own."""
        world = dist.distributed_c10d
        settle = getattr(dist, "set_timeout", None) or world._set_pg_timeout  # the name before PyTorch 2.14
        for group in list(world._world.pg_map):
            settle(self._timeout, group)

    @property
    def _timeout(self) -> timedelta:
        return timedelta(seconds=self.timeout_s or FOR_EVER_S)

    def barrier(self) -> None:
        """Wait for all ranks; nothing to do for one."""
        if self.world_size > 1:
            dist.barrier(device_ids=None if self.device.index is None else [self.device.index])

    def from_main(self, value: Any) -> Any:
        """The main rank's value on every rank (small Python objects)."""
        if self.world_size == 1:
            return value
        box = [value if self.is_main else None]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value on every rank, in the order of ranks (small Python objects)."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def mean(self, value: Tensor) -> Tensor:
        """A scalar's mean over ranks."""
        if self.world_size == 1:
            return value
        dist.all_reduce(value)
        return value / self.world_size

    def agree(self, all_good: bool) -> bool:
        """Whether every rank says yes; a rank that fails alone would leave the others waiting."""
        if self.world_size == 1:
            return all_good
        answer = torch.tensor([int(all_good)], device=self.device)
        dist.all_reduce(answer, op=dist.ReduceOp.MIN)
        return bool(answer.item())

    def any(self, answer: bool) -> bool:
        """Whether a rank says yes; a question that no device is waited for."""
        if self.world_size == 1:
            return answer
        answers = torch.tensor([int(answer)])
        dist.all_reduce(answers, op=dist.ReduceOp.MAX, group=self._host_group)
        return bool(answers.item())

    @cached_property
    def _host_group(self) -> Any:
        """The ranks on gloo, whatever the device; made at the first question."""
        return dist.new_group(backend="gloo", timeout=self._timeout)


def _left_over_advice(environ: Mapping[str, str]) -> str:
    """What to do where no launcher was meant and an earlier one left its variables behind."""
    found = [name for name in _LAUNCHERS_VARIABLES if name in environ]
    return f"without a launcher: unset {' '.join(found)}" if found else "start with a launcher"


def _count(environ: Mapping[str, str], name: str, default: str) -> int:
    text = environ.get(name, default)
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ClusterError(f"{name} is {text!r}; expected a whole number; {_left_over_advice(environ)}")
    return int(text)


def leave_process_group() -> None:
    """Leave the job's process group at the end of the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def settle_deepspeed(ranks: Ranks) -> None:
    """Tell DeepSpeed what it takes from the process and has no argument for; before `deepspeed.initialize`."""
    import deepspeed

    if ranks.device.type == "cpu":
        # Its own CPU all-reduce is compiled for up to a minute at the first start and leaves shared memory behind;
        # gloo, to which it falls back, is as fast at the sizes that a CPU trains. Only this table keeps it from it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It reads LOCAL_RANK, at ZeRO-3 in every step; without a launcher nobody sets it.
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))


def device_for_deepspeed(ranks: Ranks, zero_stage: int) -> SimpleNamespace:
    """The argument that makes DeepSpeed take the rank's device: it would take the GPU numbered LOCAL_RANK.

    Raises:
        ClusterError: ZeRO-3 has no such argument, and each rank sees a GPU of its own.
    """
    index = ranks.device.index
    if zero_stage == 3 and index not in (None, ranks.local_rank):
        raise ClusterError(
            f"deepspeed.zero_stage is 3, and rank {ranks.local_rank} of this node sees one GPU alone; DeepSpeed takes "
            "the GPU numbered LOCAL_RANK there: let each rank see all GPUs of its node (Slurm: --gpus-per-node instead "
            "of --gpus-per-task), or choose 0, 1 or 2"
        )
    return SimpleNamespace(device_rank=ranks.local_rank if index is None else index)


def environment_of_no_rank(**variables: str) -> dict[str, str]:
    """This process's environment for a child that is no rank of the job, with some variables set besides."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RANK", "LOCAL_", "WORLD_"))}
    return {**own, **variables}
