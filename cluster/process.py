"""Ending a process that this one has started; the memory of this one."""

import ctypes
import subprocess
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES = 1 << 30


def stop_process(process: "subprocess.Popen[Any]", timeout_s: float) -> None:
    """Ask a process to end, and kill it when it has not within a time; returns when it is gone.

    Args:
        process: running or already ended.
        timeout_s: seconds it has for ending by itself.
    """
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def keep_freed_memory() -> bool:
    """Have this process keep what it frees for what it allocates next, up to 1 GiB; returns whether it will.

    A step on a CPU takes and frees the same tens of MB again and again. glibc gives much of it back to the system in
    between, and every page that comes again is a fault: some hundred of them a step. Other C libraries have no such
    setting.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return all(set_option(option, _KEPT_BYTES) == 1 for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))
