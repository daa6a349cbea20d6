"""Wall time of the parts of an evaluation, and the thread count that makes the driver's numbers repeatable."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the body took, under a name."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """The same thread count as in a worker, so that the driver's numbers are as repeatable as theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
