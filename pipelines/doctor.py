"""`nvg doctor`: what this machine has of what the project needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from packaging.requirements import InvalidRequirement, Requirement
from rich.console import Console
from rich.table import Table

from cluster.session import MAX_TMPDIR_BYTES
from pipelines.configuration import CONFIG_FOLDER

if TYPE_CHECKING:
    import torch  # loaded late: whether it loads is one of the questions

GIB = 2**30
_MIN_SHARED_MEMORY_BYTES = GIB  # Ray's object store and DeepSpeed's buffers of the demo
_MIN_FREE_DISK_BYTES = 2 * GIB
_MIN_MEMORY_BYTES = 6 * GIB  # the demo's processes together
_DRIVER_FILE = Path("/dev/nvidiactl")
_EXTRAS = ("", "train", "eval")  # what the commands need, see pyproject.toml
_INSTALL = 'pip install "nvg[train,eval]"'
_STYLES = {"ok": "green", "note": "yellow", "missing": "red"}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        verdict: "note" when something works less well, "missing" when the project cannot run.
        advice: what to change when the verdict is not "ok".
    """

    subject: str
    found: str
    verdict: Literal["ok", "note", "missing"] = "ok"
    advice: str = ""


def run_doctor(console: Console | None = None, folder: Path = Path()) -> int:
    """Print the report on the disk of `folder`, to which runs are written, and on the machine.

    Returns:
        Exit code: 1 when something needed is missing, else 0.
    """
    checks = list(_examine(folder))
    table = Table("what", "found", "", "advice", title="nvg doctor", title_justify="left")
    for check in checks:
        style = _STYLES[check.verdict]
        table.add_row(check.subject, check.found, f"[{style}]{check.verdict}[/]", check.advice)
    (console or Console()).print(table)
    return int(any(check.verdict == "missing" for check in checks))


def _examine(folder: Path) -> Iterator[Check]:
    """All checks, cheap ones first."""
    yield _python()
    yield from _packages()
    yield _compiler()
    yield _configs()
    yield _cores()
    yield _memory()
    yield _room("/dev/shm", Path("/dev/shm"), _MIN_SHARED_MEMORY_BYTES, "start the container with --shm-size=2g")
    yield _sockets()
    yield _room("disk here", folder, _MIN_FREE_DISK_BYTES, "free some space or run from another disk")
    yield from _devices()


def package_check(requirement_text: str) -> Check:
    """Compare a requirement as in pyproject.toml, "numpy>=2.0,<2.2", with what is installed."""
    requirement = Requirement(requirement_text)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, "not installed", "missing", f"{_INSTALL}, or `make setup` in a clone")
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, version, "missing", f"needs {requirement.specifier}; {_INSTALL}")
    return Check(requirement.name, version)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", f"{version} ({sys.executable})")


def _packages() -> Iterator[Check]:
    try:
        requirements = metadata.requires("nvg") or []
        yield Check("nvg", metadata.version("nvg"))
    except metadata.PackageNotFoundError:
        yield Check("nvg", "not installed", "missing", "run `make setup` in a clone")
        return
    wanted: dict[str, str] = {}  # some are named by several extras
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in _EXTRAS):
            wanted.setdefault(requirement.name, text)
    yield from map(package_check, wanted.values())


def _compiler() -> Check:
    if shutil.which("g++") is None:
        return Check("compiler", "none", "missing", "DeepSpeed asks for one; sudo apt-get install g++")
    output = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=False)
    return Check("compiler", f"g++ {output.stdout.strip()}")


def _configs() -> Check:
    count = len(list(CONFIG_FOLDER.rglob("*.yaml")))
    if not count:
        return Check("configs", "none", "missing", f"{CONFIG_FOLDER} is empty")
    return Check("configs", f"{count} files in {CONFIG_FOLDER}")


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        return Check("cores", str(cores), "note", "the demo is made for two or more")
    return Check("cores", str(cores))


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        total = min(total, int(limit.read_text()))
    found = f"{total / GIB:.1f} GiB"
    if total < _MIN_MEMORY_BYTES:
        return Check("memory", found, "note", f"the demo uses up to {_MIN_MEMORY_BYTES // GIB} GiB")
    return Check("memory", found)


def _room(subject: str, folder: Path, needed: int, advice: str) -> Check:
    if not folder.is_dir():
        return Check(subject, "no such folder", "missing", advice)
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
    if usage.free < needed:
        return Check(subject, found, "note", advice)
    return Check(subject, found)


def _sockets() -> Check:
    """Whether the names of sockets fit below the folder for temporary files."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "")
    folder = os.environ.get(name, "/tmp")
    num_bytes = len(os.fsencode(folder))
    found = f"{name or 'TMPDIR unset'}: {folder if num_bytes <= 60 else f'{num_bytes} bytes'}"
    if num_bytes <= MAX_TMPDIR_BYTES:
        return Check("Ray's sockets", found)
    if name == "TMPDIR":
        return Check(
            "Ray's sockets", found, "note", "too long for sockets: /tmp is used; RAY_TMPDIR=… chooses a folder"
        )
    return Check("Ray's sockets", found, "missing", f"at most {MAX_TMPDIR_BYTES} bytes: shorten RAY_TMPDIR or unset it")


def _devices() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:  # a torch whose libraries do not load
        yield Check("devices", "torch does not load", "missing", str(error))
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield from _gpu(torch.device("cuda", index))
        yield _nccl(torch.device("cuda", 0))
        return
    found = f"CPU only, torch uses {torch.get_num_threads()} threads"
    hidden = "CUDA_VISIBLE_DEVICES" in os.environ
    if _DRIVER_FILE.exists() and not hidden:
        yield Check("devices", found, "note", "there is a GPU; torch and its driver do not fit: see `nvidia-smi`")
    else:
        yield Check("devices", found)


def _gpu(device: torch.device) -> Iterator[Check]:
    """What a GPU is, what it is too old for, and whether it computes."""
    import torch

    from nvg.precision import too_old_for_bf16, too_old_for_triton

    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    about = f"compute capability {capability}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    name, old = str(device), too_old_for_bf16(device)
    advice = f"{old}; loop.precision=fp32" if old else ""
    yield Check(name, f"{torch.cuda.get_device_name(device)}, {about}", "note" if old else "ok", advice)
    old = too_old_for_triton(device) or (None if find_spec("triton") else "Triton is not installed")
    part = f"{name} Triton"
    yield Check(part, "no", "note", f"{old}; set compute.compile=false") if old else Check(part, "ok")
    yield _tried(f"{name} bf16 product", lambda: _product(device), "reinstall torch for this driver: `nvidia-smi`")
    advice = "a cuDNN of the system before torch's own? unset LD_LIBRARY_PATH"
    yield _tried(f"{name} attention", lambda: _attention(device), advice)


def _nccl(device: torch.device) -> Check:
    """A process group of one rank."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    def group() -> None:
        dist.init_process_group("nccl", store=HashStore(), rank=0, world_size=1, device_id=device)
        try:
            _require(torch.ones(8, device=device), dist.all_reduce, expected=1.0)
        finally:
            dist.destroy_process_group()

    return _tried("NCCL", group, "training on several GPUs needs it: NCCL_DEBUG=INFO says more; look at /dev/shm")


def _product(device: torch.device) -> None:
    """256 x 256 x 256 ones in bf16: each sum is exact."""
    import torch

    ones = torch.ones(256, 256, device=device, dtype=torch.bfloat16)
    _require(ones, lambda value: value.copy_(value @ value), expected=256.0)


def _attention(device: torch.device) -> None:
    """Forward and backward at a length that is no multiple of 8, as sequences with a class token have."""
    import torch

    query = torch.ones(2, 8, 257, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    attended = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    attended.sum().backward()  # all keys are alike: the values' gradients alone are left, 1 for each query
    assert query.grad is not None
    _require(attended.detach().float(), lambda value: value, expected=1.0)
    _require(query.grad.float(), lambda value: value, expected=1.0)


def _require(value: torch.Tensor, change: Callable[[torch.Tensor], object], *, expected: float) -> None:
    """Raises ValueError unless all elements of a tensor that is changed in place are then as expected."""
    change(value)
    worst = float((value - expected).abs().max())
    if not worst <= 0.02 * expected:
        raise ValueError(f"wrong numbers: off by {worst:g} of {expected:g}")


def _tried(subject: str, attempt: Callable[[], None], advice: str) -> Check:
    try:
        attempt()
    except (RuntimeError, ValueError) as error:  # CUDA's, cuDNN's and NCCL's errors are RuntimeErrors
        return Check(subject, str(error).strip().splitlines()[0], "missing", advice)
    return Check(subject, "works")
