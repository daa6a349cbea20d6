"""Batches of another source, in front of one of which something happens to the rank that asked, once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.ranks import Ranks
from pipelines.batches.order import Batch, BatchSource

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}


@dataclass(frozen=True, kw_only=True)
class FaultySource:
    """The last rank meets a fault before one step; a run that was started again meets it no more.

    Attributes:
        source: the batches.
        step: the step in front of which it happens, counted from 1.
        fault: "kill", "term", "int" (the signals), "hang", or "stop" (somebody makes the file).
        marker: file that is there once it has happened; holds the rank's process id.
    """

    source: BatchSource
    step: int
    fault: str
    marker: Path

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.source.fingerprint

    @property
    def num_images(self) -> int:
        return self.source.num_images

    def batches(self, *, start_step: int, global_batch: int, seed: int, ranks: Ranks) -> Iterator[Batch]:
        stream = self.source.batches(start_step=start_step, global_batch=global_batch, seed=seed, ranks=ranks)
        for step, batch in enumerate(stream, start=start_step + 1):
            if step == self.step and ranks.rank == ranks.world_size - 1 and not self.marker.exists():
                self.marker.write_text(str(os.getpid()))
                self._happen()
            yield batch

    def _happen(self) -> None:
        if self.fault == "hang":
            threading.Event().wait()
        elif self.fault == "stop":
            (self.marker.parent / "stop").touch()
        else:
            os.kill(os.getpid(), SIGNALS[self.fault])
