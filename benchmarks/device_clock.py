"""Seconds of work on a device that may still compute when a call returns."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def wait_for(device: torch.device | str) -> None:
    """Wait until everything given to a GPU is done; a CPU has nothing pending."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], device: torch.device | str) -> float:
    """Seconds of a call, the device waited for before and after."""
    wait_for(device)
    began = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - began
