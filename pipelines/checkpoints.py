"""The commit protocol of checkpoints: a checkpoint is whole or it is not there.

    checkpoints/step-XXXXXXXX.tmp/   every rank writes its engine state, the main rank weights, trainer.json;
                                     each seals what it wrote (fsync, size, hash); then the marker COMPLETE
    checkpoints/step-XXXXXXXX/       renamed in one step
    checkpoints/latest               text file with the folder's name, moved last

What is whole, and is read again, `nvg.checkpoints.runs` says: it compares the hashes of the whole folder first, because
DeepSpeed's own files are pickles and are only trusted as our own, unchanged.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cluster.files import sync_path, write_atomically
from nvg.checkpoints import file_hash
from nvg.checkpoints.runs import MARKER_FILE, STEP_PREFIX, checkpoint_name, checkpoints_in, step_of

_LATEST = "latest"


def begin(checkpoints: Path, step: int) -> Path:
    """Make the temporary folder `step-XXXXXXXX.tmp` (main rank), removing what a killed run left."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    for left_over in checkpoints.glob(f"{STEP_PREFIX}*.tmp"):
        shutil.rmtree(left_over)
    temporary = temporary_folder(checkpoints, step)
    temporary.mkdir()
    return temporary


def temporary_folder(checkpoints: Path, step: int) -> Path:
    """Name of the folder that is written before the rename (all ranks)."""
    return checkpoints / f"{checkpoint_name(step)}.tmp"


def seal(temporary: Path, written: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Bring files to the disk and describe them (each rank, those that it wrote itself, all ranks at the same time).

    Returns:
        Name below the folder to size and hash, an entry of the marker each.
    """
    files: dict[str, dict[str, Any]] = {}
    for path in written:
        sync_path(path)
        files[path.relative_to(temporary).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    return files


def commit(temporary: Path, sealed: Sequence[dict[str, dict[str, Any]]] = ()) -> Path:
    """Turn a written folder into a checkpoint (main rank, after all ranks have written).

    Args:
        temporary: folder made by `begin` with all files in it.
        sealed: what each rank has sealed; the rest, if any, is sealed here.

    Returns:
        The final folder; `latest` points to it.
    """
    files = {name: entry for of_rank in sealed for name, entry in of_rank.items()}
    written = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
    files |= seal(temporary, [path for path in written if path.relative_to(temporary).as_posix() not in files])
    for folder in [temporary, *(path for path in temporary.rglob("*") if path.is_dir())]:
        sync_path(folder)
    write_atomically(temporary / MARKER_FILE, json.dumps({"files": files}, indent=1, sort_keys=True).encode())
    final = temporary.with_suffix("")
    if final.exists():  # a damaged one of the same step: set aside, not mixed
        _set_aside(final)
    os.replace(temporary, final)
    sync_path(final.parent)
    write_atomically(final.parent / _LATEST, f"{final.name}\n".encode())
    return final


def _set_aside(folder: Path) -> None:
    target = folder.with_name(f"{folder.name}.damaged")
    if target.exists():
        shutil.rmtree(target)
    os.replace(folder, target)


def set_aside_newer(checkpoint: Path) -> None:
    """Rename the damaged ones after the newest whole checkpoint to `….damaged`, so that nobody takes them up again.

    For whoever holds the run's lock and goes on from that checkpoint.
    """
    for folder in checkpoints_in(checkpoint.parent):
        if folder.name > checkpoint.name:
            _set_aside(folder)


def prune(checkpoints: Path, *, keep_last: int, keep_every_steps: int | None) -> None:
    """Delete old checkpoints (main rank, after a commit).

    Args:
        keep_last: newest that stay.
        keep_every_steps: those at multiples of this stay for good.
    """
    for folder in checkpoints_in(checkpoints)[keep_last:]:
        step = step_of(folder)
        if keep_every_steps is not None and step is not None and step % keep_every_steps == 0:
            continue
        # Renamed first: a delete that is cut off must not leave something that looks like a checkpoint.
        doomed = folder.with_name(folder.name + ".tmp")
        os.replace(folder, doomed)
        shutil.rmtree(doomed)


def is_out_of_space(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that disk, quota or file size limit is reached."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    while error is not None:
        text = str(error)
        if isinstance(error, OSError) and error.errno in codes:
            return True
        if "No space left on device" in text or "os error 28" in text or "File too large" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def require_space(checkpoints: Path, num_bytes: int) -> None:
    """Raises OSError (no space left) unless so many bytes fit on the disk of a folder that exists."""
    free = shutil.disk_usage(checkpoints).free
    if free < num_bytes:
        raise OSError(errno.ENOSPC, f"{num_bytes / 2**20:.0f} MiB are needed", str(checkpoints))


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def no_space_message(temporary: Path, reason: BaseException) -> str:
    """What to tell the user when a checkpoint could not be written."""
    free = shutil.disk_usage(temporary.parent).free
    return (
        f"checkpoint {temporary.name.removesuffix('.tmp')} could not be written: no space left in "
        f"{temporary.parent} ({free / 2**20:.0f} MiB free; {reason}). Older "
        "checkpoints are intact; free space "
        "and start the same command again to go on from the newest one"
    )
