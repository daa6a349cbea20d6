"""Ending a training early and in order: a signal or a file asks for it, the loop saves and stops.

Schedulers announce the end of a job with SIGTERM (Slurm also with SIGUSR1, where asked to) some seconds before they
kill it; a person presses Ctrl-C, and once more if the end is to come at once. A rank that gets the signal tells the
others; under Ray the driver gets it, and tells the ranks through the file `stop` in the run folder, which anybody may
also make by hand. A rank that hangs is ended with its stack on disk, so that its launcher can start the job again.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from cluster.ranks import Ranks  # loads torch, which `nvg --help` does without

STOP_FILE = "stop"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
POLL_S = 1.0
SAME_PRESS_S = 1.0  # launchers pass on a Ctrl-C that the terminal has sent to their ranks already


def stopped_text(name: str, step: int, num_steps: int, checkpoint: Path) -> str:
    """What to tell about a training that ended early, its newest checkpoint given."""
    return (
        f"{name}: stopped after step {step} of {num_steps}, as asked; {checkpoint} is whole. Start the same command "
        "again to go on"
    )


class StopRequest:
    """Whether somebody has asked this training to end early.

    Args:
        file: ends the training once it is there; the main rank looks for it.
        ranks: all of them end at the same step.
        left_over: which request lay there before the start, from `request_in`; not meant for this session.
    """

    def __init__(self, file: Path, ranks: Ranks, *, left_over: int | None = None) -> None:
        self._file, self._ranks, self._left_over = file, ranks, left_over
        self._signalled = False
        self._looked_at = -POLL_S

    def signalled(self, *_: object) -> None:
        """Note a signal; as a handler it must not do more."""
        self._signalled = True

    def forget_left_over(self) -> None:
        """Take away what an earlier session did not live to meet (main rank; only under the run folder's lock)."""
        if self._ranks.is_main and self._left_over is not None and request_in(self._file.parent) == self._left_over:
            self._file.unlink()

    def asked(self) -> bool:
        """Whether to end after this step, the same on all ranks (every rank calls, once a step)."""
        now = time.monotonic()
        if self._ranks.is_main and now - self._looked_at >= POLL_S:
            self._looked_at = now
            self._signalled = self._signalled or self._file.exists()
        return self._ranks.any(self._signalled)

    def done(self) -> None:
        """Take the file away: the request has been met (main rank)."""
        if self._ranks.is_main:
            self._file.unlink(missing_ok=True)


@contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call a handler on SIGTERM, SIGUSR1 and Ctrl-C inside the block; outside the main thread nothing changes.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed again.
    """
    if threading.current_thread() is not threading.main_thread():  # a Ray worker: its driver gets the signal
        yield
        return
    pressed: float | None = None

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        now = time.monotonic()
        if pressed is not None and now - pressed >= SAME_PRESS_S:
            raise KeyboardInterrupt
        if pressed is None:
            pressed = now
            with suppress(OSError):  # not through sys.stderr, which may be in the middle of a line
                os.write(2, b"\nCtrl-C: ends with a checkpoint after this step; press it again to end at once\n")
        handler(number, frame)

    handlers = dict.fromkeys(SIGNALS, handler) | {signal.SIGINT: on_interrupt}
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a script's job in the background: no Ctrl-C is meant for it
        del handlers[signal.SIGINT]
    before = {number: signal.signal(number, own) for number, own in handlers.items()}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def request_in(run_folder: Path) -> int | None:
    """Which request to stop lies in a run folder, told from a later one by its time in ns; None where there is none."""
    try:
        return (run_folder / STOP_FILE).stat().st_mtime_ns
    except OSError:
        return None


def ask_to_stop(run_folder: Path) -> None:
    """Ask the training in a run folder to save and end, from any process."""
    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / STOP_FILE).touch()


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
    """A watchdog of this rank, at rest again after the block; `stacks-rank<N>.txt` stays only if it was needed."""
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
