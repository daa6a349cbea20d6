"""An objective in front of one of whose steps something happens to a rank, once."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch.distributed as dist

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}


def fail_once(objective: Any, *, step: int, fault: str, marker: Path) -> None:
    """Make the last rank meet a fault at the start of a step; a run that was started again meets it no more.

    Args:
        objective: of a training whose steps have one micro batch.
        step: counted from 1 and from the start of the first session.
        fault: "kill", "term", "int" (the signals), "hang", or "stop" (somebody makes the file).
        marker: file that is there once it has happened; holds the rank's process id.
    """
    num_steps = 0

    def watch(module: Any, _: Any) -> None:
        nonlocal num_steps
        num_steps += module.training
        is_last = not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1
        if module.training and num_steps == step and is_last and not marker.exists():
            marker.write_text(str(os.getpid()))
            _happen(fault, marker.parent)

    objective.register_forward_pre_hook(watch)


def _happen(fault: str, run_folder: Path) -> None:
    if fault == "hang":
        threading.Event().wait()
    elif fault == "stop":
        (run_folder / "stop").touch()
    else:
        os.kill(os.getpid(), SIGNALS[fault])
