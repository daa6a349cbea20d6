"""Which device this process computes on.

The one answer for the loop, for DeepSpeed, which reads DS_ACCELERATOR, and for what Ray starts without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Literal

import torch

from cluster.session import ClusterError

DeviceName = Literal["auto", "cpu", "cuda"]
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}  # environment of a process that takes none


def choose_device(
    wanted: DeviceName, environ: MutableMapping[str, str], *, local_rank: int, local_world_size: int
) -> torch.device:
    """The device of one rank; made the current one, and DeepSpeed is told through `environ`.

    Args:
        wanted: value of `loop.device`.
        environ: DS_ACCELERATOR decides where `wanted` leaves it open, and is written.
        local_rank: the number of its GPU where every rank of the node sees them all.
        local_world_size: ranks on this node. More than GPUs are right only where each sees one of its own.

    Raises:
        ClusterError: there is no such device, or `wanted` and DS_ACCELERATOR contradict each other.
    """
    accelerator = environ.get("DS_ACCELERATOR", wanted if wanted != "auto" else "")
    if accelerator not in ("", "cpu", "cuda") or wanted not in ("auto", accelerator):
        raise ClusterError(
            f"DS_ACCELERATOR is {accelerator!r} and loop.device is {wanted!r}; expected cpu or cuda, the same of both; "
            "unset DS_ACCELERATOR or change loop.device"
        )
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator == "cpu" or (not accelerator and not there):
        environ["DS_ACCELERATOR"] = "cpu"
        return torch.device("cpu")
    if not there:
        raise ClusterError(
            f"loop.device is {wanted!r} (DS_ACCELERATOR {accelerator!r}); found no GPU that torch can use "
            f"(CUDA_VISIBLE_DEVICES {environ.get('CUDA_VISIBLE_DEVICES', 'unset')!r}); set loop.device=cpu, under Ray "
            "launch.gpus_per_worker=1, or ask `nvg doctor`"
        )
    if local_world_size > there > 1:
        raise ClusterError(
            f"{local_world_size} ranks run on this node (LOCAL_WORLD_SIZE) and see {there} GPUs; expected a GPU for "
            "each rank, or that each sees one alone; start fewer ranks, or train on the CPU with loop.device=cpu"
        )
    environ["DS_ACCELERATOR"] = "cuda"
    device = torch.device("cuda", local_rank if local_world_size <= there else 0)
    torch.cuda.set_device(device)
    return device


def gpu_identity(device: torch.device) -> str:
    """What tells a GPU from all others, whatever number a process sees it under."""
    return str(torch.cuda.get_device_properties(device).uuid)


def refuse_shared_gpus(identities: Iterable[str]) -> None:
    """Refuse ranks that were given the same GPU: NCCL takes each once.

    Args:
        identities: `gpu_identity` of every rank, in the order of ranks.

    Raises:
        ClusterError: names two of the ranks.
    """
    seen: dict[str, int] = {}
    for rank, identity in enumerate(identities):
        if identity in seen:
            raise ClusterError(
                f"ranks {seen[identity]} and {rank} were given the same GPU ({identity}); expected one for each; start "
                "fewer ranks, give each a GPU of its own (Slurm: --gpus-per-task=1, Ray: launch.gpus_per_worker=1), or "
                "train on the CPU with loop.device=cpu"
            )
        seen[identity] = rank
