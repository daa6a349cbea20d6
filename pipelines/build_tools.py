"""What DeepSpeed needs to compile at run time, and what to do on a machine that lacks it."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path


def missing_build_tools() -> list[str]:
    """Debian packages of a compiler and of Python's headers that this machine lacks.

    Returns:
        Package names, such as ["g++", "python3.11-dev"]; empty when DeepSpeed can compile.
    """
    missing = [] if shutil.which("g++") else ["g++"]
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        missing.append(f"python{sys.version_info.major}.{sys.version_info.minor}-dev")
    return missing


def skip_uncompilable_collectives() -> bool:
    """Keep DeepSpeed from compiling its shared-memory all-reduce where it cannot, so that gloo is used.

    To be called in each rank before `deepspeed.init_distributed` or `deepspeed.initialize`. DeepSpeed asks
    its own table of compatible operators before it compiles; the table is told that this one is not.

    Returns:
        True when the operator was switched off.
    """
    if not missing_build_tools():
        return False
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return True
