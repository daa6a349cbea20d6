"""In what precision networks compute on a device, and which devices can.

fp32   nothing is rounded
tf32   on a GPU: inputs of fp32 convolutions and matrix products are rounded to TF32, ten bits behind the comma
bf16   the matrix products of the generators' blocks are in bfloat16; all else stays fp32
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Literal, get_args

import torch

from nvg.bounds import refuse
from nvg.errors import UserError

Precision = Literal["fp32", "tf32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]
_LEAST_FOR_BF16 = (8, 0)  # compute capability of the first GPU (A100) with tensor cores for bfloat16 and TF32
_LEAST_FOR_TRITON = (7, 0)


def resolve_device(wanted: Device) -> str:
    """What a setting stands for in this machine, "cpu" or "cuda"; "auto" takes a GPU where there is one.

    Raises:
        UserError: a GPU is asked for, and there is none.
    """
    if wanted not in get_args(Device):
        raise refuse("device", wanted, f"one of {', '.join(get_args(Device))}")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device: found cuda, torch sees no GPU here; use auto or cpu")
    return "cpu" if wanted == "cpu" or not torch.cuda.is_available() else "cuda"


def resolve_precision(wanted: Precision | None, device: str, *, key: str = "precision") -> Precision:
    """What a setting stands for on a device: None is bf16 on a GPU and fp32 on a CPU.

    Args:
        wanted: the setting.
        device: "cpu" or "cuda"; it need not be in this machine.
        key: name of the setting, for the message.

    Raises:
        UserError: tf32 on a CPU, which would compute fp32 without a word.
    """
    if wanted is None:
        return "fp32" if device == "cpu" else "bf16"
    if wanted == "tf32" and device == "cpu":
        raise refuse(key, wanted, "fp32 or bf16 on a CPU, which has no TF32", f"set {key}=fp32, or compute on a GPU")
    return wanted


def settle_precision(precision: Precision, device: str | torch.device, *, key: str = "precision") -> None:
    """Have this whole process round to TF32 where the precision says so and nowhere else, on a device that can.

    Raises:
        UserError: this machine's GPU is too old for it; names the key.
    """
    place = torch.device(device)
    if precision != "fp32" and place.type == "cuda" and (old := too_old_for_bf16(place)):
        raise refuse(key, precision, f"fp32: {old}", f"set {key}=fp32, or take a newer GPU")
    round_to_tf32(precision == "tf32")


def too_old_for_bf16(device: torch.device) -> str | None:
    """Why a GPU has no bf16 and TF32 products, None where it has."""
    return _too_old(device, _LEAST_FOR_BF16, "bf16 and TF32")


def too_old_for_triton(device: torch.device) -> str | None:
    """Why Triton compiles nothing for a GPU, None where it does."""
    return _too_old(device, _LEAST_FOR_TRITON, "Triton")


def refused_by_triton(device: torch.device, trial: Callable[[torch.device], str | None]) -> str | None:
    """Why a kernel written in Triton cannot be used on a GPU, None where it can.

    Args:
        device: a GPU.
        trial: runs the kernel there once; None where its result is right, else what is wrong.
    """
    if find_spec("triton") is None:
        return "Triton is not installed"
    if old := too_old_for_triton(device):
        return old
    try:
        return trial(device)
    except (ImportError, OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:  # no driver
        return f"Triton does not work: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _too_old(device: torch.device, least: tuple[int, int], what: str) -> str | None:
    found = torch.cuda.get_device_capability(device)
    if found >= least:
        return None
    name, capability = torch.cuda.get_device_name(device), ".".join(map(str, found))
    return f"{name} has compute capability {capability}; {what} begin at {'.'.join(map(str, least))}"


def round_to_tf32(wanted: bool) -> None:
    """Whether a GPU rounds the inputs of fp32 convolutions and matrix products to TF32, in this whole process."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted


@contextmanager
def without_tf32() -> Iterator[None]:
    """True fp32 inside, whatever the process rounds to: features and distances that scores are made of."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    round_to_tf32(False)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Every operation in the dtype of its tensors inside, whatever the step rounds to: latents, canvases, distances."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
