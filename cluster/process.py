"""Ending a process that this one has started."""

import subprocess
from typing import Any


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
