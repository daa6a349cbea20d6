"""Two warm ranks for the whole test session: the real deepspeed launcher starts them once, functions follow.

As a program it is one of these ranks. What is launched, killed or signalled itself starts a launcher of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from cluster.devices import WITHOUT_GPU
from cluster.session import free_port

NUM_RANKS = 2
TIMEOUT_S = 240.0
BIN = Path(sys.executable).parent
ADDRESS, KEY = "NVG_TEST_RANK_POOL", b"ranks"


class RankPool:
    """Ranks that wait for work; started with the first of it, and anew after one has failed.

    Args:
        repository: put on the ranks' path.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._launcher: subprocess.Popen[bytes] | None = None
        self._ranks: list[Connection] = []

    def run(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function of a module on every rank at once and wait.

        Raises:
            AssertionError: with the trace of the first rank that failed.
        """
        if self._launcher is None or self._launcher.poll() is not None:
            self._start()
        for rank in self._ranks:
            rank.send((function, arguments))
        failure = "the ranks say nothing"
        for rank in self._ranks:
            try:
                failure = rank.recv() if rank.poll(TIMEOUT_S) else failure
            except EOFError:
                failure = "a rank ended"
            if failure:  # the other one may wait for it in a collective: both are ended
                self.close()
                raise AssertionError(failure)

    def close(self) -> None:
        """End the ranks."""
        for rank in self._ranks:
            rank.close()
        self._ranks = []
        if self._launcher is not None:
            self._launcher.terminate()
            self._launcher.wait(30)
            self._launcher = None

    def _start(self) -> None:
        self.close()
        with tempfile.TemporaryDirectory() as folder, Listener(str(Path(folder) / "pool"), authkey=KEY) as listener:
            environment = {
                **os.environ,
                "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join([str(self._repository), str(Path(__file__).parent)]),
                "OMP_NUM_THREADS": "1",
                **WITHOUT_GPU,
                ADDRESS: str(listener.address),
            }
            command = [str(BIN / "deepspeed"), "--num_gpus", str(NUM_RANKS), "--master_port", str(free_port())]
            self._launcher = subprocess.Popen([*command, __file__], env=environment, cwd=self._repository)
            self._ranks = [listener.accept() for _ in range(NUM_RANKS)]


def _serve() -> None:
    """Body of one rank, until the pool hangs up."""
    with Client(os.environ[ADDRESS], authkey=KEY) as pool, suppress(EOFError, OSError):
        while True:
            function, arguments = pool.recv()
            answer = ""
            try:
                function(*arguments)
            except BaseException:
                answer = traceback.format_exc()
            pool.send(answer)


if __name__ == "__main__":
    _serve()
