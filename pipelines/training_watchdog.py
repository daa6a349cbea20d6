"""A rank that hangs is ended with its stack on disk, so that its launcher can start the job again."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


class Watchdog:
    """Ends this process when nothing has been heard of it for a time.

    The others of a job wait in a collective for a rank that hangs; each of them writes its stack too, and the one that
    waits for nobody is the culprit.

    Args:
        timeout_s: between two calls of `alive`; None never ends anything.
        file: open for the stacks of all threads.
    """

    def __init__(self, timeout_s: float | None, file: TextIO | None) -> None:
        self._timeout_s, self._file = timeout_s, file

    def alive(self) -> None:
        """Start the time anew (cheap, every step)."""
        if self._timeout_s is not None and self._file is not None:
            faulthandler.dump_traceback_later(self._timeout_s, file=self._file, exit=True)


@contextmanager
def watchdog(run_folder: Path, rank: int, timeout_s: float | None) -> Iterator[Watchdog]:
    """A watchdog of this rank, at rest again after the block; ``stacks-rank<N>.txt`` stays only if it was needed.

    Args:
        run_folder: where the stacks are written.
        rank: this rank.
        timeout_s: see :class:`Watchdog`.
    """
    if timeout_s is None:
        yield Watchdog(None, None)
        return
    path = run_folder / f"stacks-rank{rank}.txt"
    run_folder.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            yield Watchdog(timeout_s, file)
        finally:
            faulthandler.cancel_dump_traceback_later()
            path.unlink()  # a rank that was ended does not come here
