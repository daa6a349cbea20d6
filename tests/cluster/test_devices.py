"""One place decides the device: what the loop, DeepSpeed and Ray's workers are told agrees, or is refused by name."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny_training import build_task, tiny_config

from cluster.devices import (
    WITHOUT_GPU,
    choose_device,
    refuse_shared_gpus,
)
from cluster.ranks import Ranks, device_for_deepspeed
from cluster.session import ClusterError, free_port
from nvg.errors import UserError
from pipelines.run_folder import CHECKPOINTS_FOLDER
from pipelines.train.config import LaunchConfig
from pipelines.train.engine import advice_on_devices
from pipelines.train.launch import _worker_environment, run_training


def pretend_gpus(monkeypatch, number: int, capability: tuple[int, int] = (9, 0)) -> list[torch.device]:
    """So many GPUs for `torch.cuda`; returns the list of those made current."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    return current


def launched(local_rank: int, num_local: int, **variables: str) -> dict[str, str]:
    names = {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": num_local, "LOCAL_WORLD_SIZE": num_local}
    return {**{name: str(value) for name, value in names.items()}, **variables}


@pytest.mark.parametrize(
    ("gpus", "local_rank", "num_local", "wanted", "variable", "expected"),
    [
        (0, 0, 1, "auto", None, "cpu"),
        (8, 5, 8, "auto", None, "cuda:5"),
        (8, 1, 2, "auto", None, "cuda:1"),
        (1, 3, 8, "auto", None, "cuda:0"),  # each task sees one GPU, its own
        (8, 5, 8, "cuda", None, "cuda:5"),
        (8, 5, 8, "cpu", None, "cpu"),
        (8, 5, 8, "auto", "cpu", "cpu"),
        (1, 5, 8, "auto", "cpu", "cpu"),  # more ranks than GPUs are nothing to a CPU
        (2, 5, 8, "cpu", None, "cpu"),
    ],
)
def test_loop_and_deepspeed_get_the_same_device(monkeypatch, gpus, local_rank, num_local, wanted, variable, expected):
    current = pretend_gpus(monkeypatch, gpus)
    environment = launched(local_rank, num_local, **({"DS_ACCELERATOR": variable} if variable else {}))
    ranks = Ranks.read(environment, device=wanted)
    assert ranks.device == torch.device(expected)
    assert environment["DS_ACCELERATOR"] == ranks.device.type
    assert current == ([ranks.device] if ranks.device.type == "cuda" else [])
    assert device_for_deepspeed(ranks, 2).device_rank == (ranks.device.index if current else local_rank)
    assert Ranks.read(environment).device == ranks.device  # whoever asks again without the configuration


@pytest.mark.parametrize(
    ("gpus", "num_local", "wanted", "variable", "message"),
    [
        (2, 8, "auto", None, r"8 ranks run on this node .* see 2 GPUs; expected a GPU for each .* loop.device=cpu"),
        (0, 1, "cuda", None, r"loop.device is 'cuda' .* no GPU .* loop.device=cpu, .* launch.gpus_per_worker=1"),
        (0, 1, "auto", "cuda", r"DS_ACCELERATOR 'cuda'.*no GPU"),
        (1, 1, "cuda", "cpu", r"DS_ACCELERATOR is 'cpu' and loop.device is 'cuda'; .* unset DS_ACCELERATOR"),
        (1, 1, "cpu", "cuda", r"DS_ACCELERATOR is 'cuda' and loop.device is 'cpu'"),
        (1, 1, "auto", "xpu", r"DS_ACCELERATOR is 'xpu' .* expected cpu or cuda"),
    ],
)
def test_devices_that_are_not_there_or_contradict_are_refused(monkeypatch, gpus, num_local, wanted, variable, message):
    pretend_gpus(monkeypatch, gpus)
    environment = {"DS_ACCELERATOR": variable} if variable else {}
    with pytest.raises(ClusterError, match=message):
        choose_device(wanted, environment, local_rank=0, local_world_size=num_local)


def test_ranks_with_the_same_gpu_are_named():
    refuse_shared_gpus(["GPU-a", "GPU-b"])
    with pytest.raises(
        ClusterError, match=r"ranks 1 and 2 were given the same GPU \(GPU-b\); .*launch.gpus_per_worker"
    ):
        refuse_shared_gpus(["GPU-a", "GPU-b", "GPU-b"])


def test_zero_3_on_ranks_that_each_see_one_gpu_is_refused():
    rank = Ranks(rank=3, world_size=4, local_rank=3, local_world_size=4, device=torch.device("cuda", 0))
    assert device_for_deepspeed(rank, 2).device_rank == 0
    with pytest.raises(ClusterError, match=r"zero_stage is 3, .*--gpus-per-node instead of --gpus-per-task"):
        device_for_deepspeed(rank, 3)


def test_a_ray_worker_computes_on_what_it_reserves(tmp_path):
    config = tiny_config(tmp_path)
    assert WITHOUT_GPU.items() <= _worker_environment(config).items()
    on_gpu = replace(config, launch=LaunchConfig(launcher="ray", gpus_per_worker=0.5))
    environment = _worker_environment(on_gpu)
    assert environment["DS_ACCELERATOR"] == "cuda"
    assert "CUDA_VISIBLE_DEVICES" not in environment  # Ray's to say
    for refused in (tiny_config(tmp_path, device="cuda"), replace(on_gpu, loop=replace(on_gpu.loop, device="cpu"))):
        with pytest.raises(UserError, match=r"launch.gpus_per_worker is .*; expected .* loop.device=cpu"):
            _worker_environment(refused)


def test_the_key_reaches_the_training(monkeypatch, tmp_path):
    monkeypatch.delenv("DS_ACCELERATOR")
    pretend_gpus(monkeypatch, 0)
    with pytest.raises(ClusterError, match=r"loop.device is 'cuda'"):
        run_training(tiny_config(tmp_path / "run", device="cuda"), build_task)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("failure", [torch.AcceleratorError, dist.DistBackendError])
def test_a_device_that_is_lost_becomes_a_message_with_the_newest_checkpoint(tmp_path, failure):
    checkpoints = tmp_path / CHECKPOINTS_FOLDER
    with (
        pytest.raises(UserError, match="there is no checkpoint yet; start the same"),
        advice_on_devices("x", checkpoints),
    ):
        raise failure("CUDA error: unspecified launch failure\nCompile with ...")
    for step in (4, 8):
        (checkpoints / f"step-{step:08d}").mkdir(parents=True)
    message = (
        r"tiny: a device failed: CUDA error: unspecified launch failure\n.*step-00000008 is the newest .*nvidia-smi"
    )
    with pytest.raises(UserError, match=message) as caught, advice_on_devices("tiny", checkpoints):
        raise failure("CUDA error: unspecified launch failure\nCompile with ...")
    assert "Compile with" not in str(caught.value)


def test_a_run_whose_device_fails_in_mid_run_names_its_checkpoint_and_goes_on(monkeypatch, tmp_path):
    from tiny_training import TinyObjective

    forward, calls = TinyObjective.forward, []

    def failing(self: Any, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return forward(self, *given)

    monkeypatch.setattr(TinyObjective, "forward", failing)
    with pytest.raises(UserError, match=r"a device failed: CUDA error: device-side.*\n.*step-00000004 is the newest"):
        run_training(tiny_config(tmp_path), build_task)
    assert run_training(tiny_config(tmp_path), build_task).name == "step-00000012"


JOIN = """
import os, sys, torch
from datetime import timedelta
import torch.distributed as dist
import cluster.ranks as module
from cluster.ranks import Ranks
from cluster.session import ClusterError

rank, ports = int(sys.argv[1]), sys.argv[2:]

def join(port, device, identities=()):
    os.environ["MASTER_PORT"] = port
    module.gpu_identity = lambda device: identities[rank]
    ranks = Ranks(rank=rank, world_size=2, local_rank=rank, local_world_size=2, device=device, timeout_s=77)
    ranks.join()
    return ranks

real, gpu = dist.init_process_group, torch.device("cuda", 0)  # each sees one GPU
dist.init_process_group = lambda backend, **given: print(backend, given["device_id"], given["timeout"])
join(ports[0], gpu, ["GPU-a", "GPU-b"])
try:
    join(ports[1], gpu, ["GPU-a", "GPU-a"])
except ClusterError as error:
    print(error)

dist.init_process_group = real
ranks = join(ports[2], torch.device("cpu"))
dist.new_group([0, 1])  # what a library makes
ranks.any(False)
ranks.settle_timeouts()
for group in dist.distributed_c10d._world.pg_map:
    backend = group._get_backend(torch.device("cpu"))
    assert backend.options._timeout == timedelta(seconds=77), backend.options._timeout
assert ranks.gather(rank) == [0, 1]
ranks.barrier()
object.__setattr__(ranks, "device", gpu)  # as under Ray, which has made the group
try:
    module.gpu_identity = lambda device: "GPU-c"
    ranks.join()
except ClusterError as error:
    print(error)
dist.destroy_process_group()  # its threads do not outlive the interpreter
"""


@pytest.mark.slow
def test_two_ranks_meet_with_their_timeout_and_each_with_a_gpu_of_its_own(repository):
    ports = [str(free_port()) for _ in range(3)]
    ranks = []
    for rank in range(2):
        environment = {**os.environ, **launched(rank, 2), "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(repository)}
        command = [sys.executable, "-c", JOIN, str(rank), *ports]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    for rank in ranks:
        output, _ = rank.communicate(timeout=200)
        assert rank.returncode == 0
        lines = output.splitlines()
        assert lines[0] == "nccl cuda:0 0:01:17"
        assert lines[1].startswith("ranks 0 and 1 were given the same GPU (GPU-a); expected one for each")
        assert lines[2].startswith("ranks 0 and 1 were given the same GPU (GPU-c)")
