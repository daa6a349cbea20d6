"""Shared memory of StreamingDataset that killed trainings left behind on this node.

StreamingDataset passes over segments and lock files of others, dead ones too, and its own cleaning stops at the first
free number. So every training notes which it has taken; the next one to start removes those whose owner is dead.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")
LOCALS = "locals"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Segments of one process, all named ``<prefix>_…``.

    Attributes:
        prefix: six digits.
        locks: folder of the lock files of the same names.
        pid, started: the process, and when it began, since process ids come again.
        inode: of the first segment, since prefixes come again.
    """

    prefix: str
    locks: str
    pid: int
    started: float
    inode: int

    @property
    def is_dead(self) -> bool:
        """Whether its process is gone."""
        try:
            return psutil.Process(self.pid).create_time() != self.started
        except psutil.NoSuchProcess:
            return True


def claim(prefix: int, locks: str, claims: Path, shared_memory: Path = SHARED_MEMORY) -> None:
    """Note the segments of this process.

    Args:
        prefix: number that StreamingDataset has chosen.
        locks: folder of its lock files.
        claims: folder of the notes, of this node.
        shared_memory: where segments appear as files.
    """
    name = f"{prefix:06}"
    started = psutil.Process().create_time()
    inode = (shared_memory / f"{name}_{LOCALS}").stat().st_ino
    claims.mkdir(parents=True, exist_ok=True)
    note = Claim(prefix=name, locks=locks, pid=os.getpid(), started=started, inode=inode)
    (claims / f"{name}.json").write_text(json.dumps(asdict(note)))


def remove_dead(claims: Path, shared_memory: Path = SHARED_MEMORY) -> list[str]:
    """Remove segments and lock files of dead processes (one process of the node at a time).

    Args:
        claims: folder of the notes, of this node.
        shared_memory: where segments appear as files.

    Returns:
        Prefixes whose segments were removed.
    """
    removed: list[str] = []
    for file in sorted(claims.glob("*.json")):
        note = Claim(**json.loads(file.read_text()))
        if not note.is_dead:
            continue
        first = shared_memory / f"{note.prefix}_{LOCALS}"
        if first.exists() and first.stat().st_ino == note.inode:
            for folder in (shared_memory, Path(note.locks)):
                for path in folder.glob(f"{note.prefix}_*"):
                    path.unlink(missing_ok=True)
            removed.append(note.prefix)
        file.unlink()
    return removed
