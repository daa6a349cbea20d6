"""Engine states for another number of ranks: DeepSpeed's universal checkpoints, made when they are needed.

The conversion takes ZeRO 1 to 3 apart into one file per parameter and moment, which any number of ranks can read. It
runs in a process of its own, on the CPU, and its result is used once: the next checkpoint is an ordinary one again.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from nvg.errors import UserError

NUM_PROCESSES = 4
NUM_LINES = 8


def universal_folder(checkpoint: Path) -> Path:
    """Where the converted states of a checkpoint lie, beside it under a name that the next save clears away."""
    return checkpoint.with_name(f"{checkpoint.name}.universal.tmp")


def convert(checkpoint: Path) -> Path:
    """Convert every engine's states of a checkpoint.

    Args:
        checkpoint: whole; it stays as it is. Needs as much space again on the disk.

    Returns:
        Folder with one folder per engine, named as in the checkpoint.

    Raises:
        UserError: the conversion failed; says with which command and what it printed last.
    """
    output = universal_folder(checkpoint)
    shutil.rmtree(output, ignore_errors=True)
    for engine in sorted(path for path in checkpoint.iterdir() if path.is_dir()):
        _convert_engine(engine, output / engine.name)
    return output


def _convert_engine(source: Path, target: Path) -> None:
    processes = str(min(NUM_PROCESSES, os.cpu_count() or 1))
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(source), "--output_folder", str(target)]
    command += ["--num_extract_workers", processes, "--num_merge_workers", processes]
    # Not a rank of the job that waits for it, and no user of its devices.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RANK", "LOCAL_", "WORLD_"))
    }
    done = subprocess.run(
        command, env={**environment, "DS_ACCELERATOR": "cpu"}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = "\n  ".join((done.stdout + done.stderr).splitlines()[-NUM_LINES:])
        raise UserError(
            f"the optimizer states in {source} could not be converted for another number of ranks:\n  {last}\n"
            f"start with as many ranks as before, or convert by hand to see more: {shlex.join(command)}"
        )
