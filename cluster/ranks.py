"""Who am I among the ranks: one reading of the variables that each launcher sets differently.

Ray Train, the ``deepspeed`` launcher and torchrun all set RANK, LOCAL_RANK and WORLD_SIZE; the ``deepspeed``
launcher names the number of ranks on this node LOCAL_SIZE, the others LOCAL_WORLD_SIZE. StreamingDataset
reads LOCAL_WORLD_SIZE when it is built and takes every rank for a node leader when it is missing, so
entry points call ``normalise_rank_environment`` before anything else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from cluster.session import ClusterError


@dataclass(frozen=True, kw_only=True)
class RankEnvironment:
    """Place of this process in the job.

    Attributes:
        rank: global rank, 0 .. world_size - 1.
        world_size: number of ranks in the job.
        local_rank: rank on this node.
        local_world_size: ranks on this node.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0


def normalise_rank_environment(environ: MutableMapping[str, str] | None = None) -> RankEnvironment:
    """Read the launcher's variables and write the missing ones, so that every library sees the same job.

    Args:
        environ: variables to read and complete; ``os.environ`` when None.

    Returns:
        The place of this process; (0 of 1) when no launcher has set anything.

    Raises:
        ClusterError: the variables contradict each other.
    """
    environ = os.environ if environ is None else environ
    world_size = int(environ.get("WORLD_SIZE", "1"))
    rank = int(environ.get("RANK", "0"))
    local_rank = int(environ.get("LOCAL_RANK", "0"))
    local = environ.get("LOCAL_WORLD_SIZE") or environ.get("LOCAL_SIZE")
    if local is None and world_size > 1:
        raise ClusterError(
            f"WORLD_SIZE={world_size} but neither LOCAL_WORLD_SIZE nor LOCAL_SIZE is set; start with "
            "torchrun, the deepspeed launcher or Ray Train, or set LOCAL_WORLD_SIZE to "
            "the number of ranks on this node"
        )
    local_world_size = int(local or "1")
    if not 0 <= rank < world_size or not 0 <= local_rank < local_world_size or world_size % local_world_size:
        raise ClusterError(
            f"found RANK={rank}, WORLD_SIZE={world_size}, LOCAL_RANK={local_rank}, LOCAL_WORLD_SIZE="
            f"{local_world_size}; expected rank < world size and the same number of ranks on every node"
        )
    place = RankEnvironment(rank=rank, world_size=world_size, local_rank=local_rank, local_world_size=local_world_size)
    if not torch.cuda.is_available():
        environ.setdefault("DS_ACCELERATOR", "cpu")
    if world_size > 1:  # without a launcher nothing is set: children must not take themselves for ranks
        environ["LOCAL_WORLD_SIZE"] = str(local_world_size)
    return place


def local_device(place: RankEnvironment) -> torch.device:
    """The device of this rank: its own GPU when there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def round_to_tf32(wanted: bool) -> None:
    """Whether a GPU rounds the inputs of fp32 convolutions and matrix products to TF32, in this whole process."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted


def ensure_process_group(place: RankEnvironment, device: torch.device) -> None:
    """Join the job's process group unless that is done (Ray Train does it, or an earlier call has).

    The group stays for the life of the process: DeepSpeed keeps handles of it. One rank alone needs no
    port: it uses a store in its own memory.

    Args:
        place: this rank.
        device: decides between NCCL and gloo.
    """
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if place.world_size == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend)


def leave_process_group() -> None:
    """Leave the job's process group at the end of the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def agree(all_good: bool, device: torch.device) -> bool:
    """Whether every rank says yes; a rank that fails alone would leave the others waiting.

    Args:
        all_good: this rank's answer.
        device: where the collective runs.

    Returns:
        The logical and over all ranks.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return all_good
    answer = torch.tensor([int(all_good)], device=device)
    dist.all_reduce(answer, op=dist.ReduceOp.MIN)
    return bool(answer.item())


def any_rank(place: RankEnvironment) -> Callable[[bool], bool]:
    """A question to all ranks that no device is waited for (all ranks call, and then ask equally often).

    Args:
        place: this rank.

    Returns:
        Function that is true on every rank when its argument is true on one.
    """
    if place.world_size == 1:
        return lambda answer: answer
    group: Any = dist.new_group(backend="gloo")

    def ask(answer: bool) -> bool:
        answers = torch.tensor([int(answer)])
        dist.all_reduce(answers, op=dist.ReduceOp.MAX, group=group)
        return bool(answers.item())

    return ask


def from_main(value: Any, place: RankEnvironment, device: torch.device) -> Any:
    """The main rank's value on every rank (small Python objects)."""
    if place.world_size == 1:
        return value
    box = [value if place.is_main else None]
    dist.broadcast_object_list(box, src=0, device=device)
    return box[0]


def gather_objects(value: Any, place: RankEnvironment) -> list[Any]:
    """Every rank's value on every rank, this rank's own first (small Python objects)."""
    if place.world_size == 1:
        return [value]
    values: list[Any] = [None] * place.world_size
    dist.all_gather_object(values, value)
    return [value, *(other for rank, other in enumerate(values) if rank != place.rank)]


def barrier(place: RankEnvironment) -> None:
    """Wait for all ranks; nothing to do for one."""
    if place.world_size > 1:
        dist.barrier()
