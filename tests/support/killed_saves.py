"""A training killed at every place of a save, then started again; prints one JSON line a place.

Every training is forked from this process, which itself only waits: python killed_saves.py FOLDER
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tiny_training import build_task, tiny_config

from nvg.checkpoints import runs
from pipelines import checkpoints
from pipelines.train import saving
from pipelines.train.launch import run_training

STEP = 8
NAME = runs.checkpoint_name(STEP)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(module: Any, name: str, when: Callable[..., bool]) -> Any:
    """Patch that dies in front of the first call of a function that fits."""
    real = getattr(module, name)

    def dying(*given: Any, **named: Any) -> Any:
        if when(*given):
            kill()
        return real(*given, **named)

    return mock.patch.object(module, name, dying)


def at_step(*given: Any) -> bool:
    return any(NAME in str(word) or getattr(word, "step", None) == STEP for word in given)


PLACES = {
    "before the folder": before(checkpoints, "begin", lambda _, step: step == STEP),
    "before the weights": before(saving, "_write_weights", at_step),
    "before the marker": before(checkpoints, "commit", at_step),
    "before the rename": before(os, "replace", lambda old, new: Path(new).name == NAME),
    "before latest": before(checkpoints, "write_atomically", lambda path, _: path.name == "latest" and saved(path)),
    "while pruning": before(shutil, "rmtree", lambda path, *_: str(path).endswith("00000004.tmp")),
}


def saved(latest: Path) -> bool:
    return latest.with_name(NAME).is_dir()


def train(folder: Path, patch: Any = None) -> int:
    """Exit code of a training in a fork."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with patch or mock.patch.dict({}):
        run_training(tiny_config(folder, keep_last=1), build_task)
    os._exit(0)


def main(root: Path) -> None:
    assert train(root / "straight") == 0
    last = Path("checkpoints", runs.checkpoint_name(12))
    for place, patch in PLACES.items():
        folder = root / place.replace(" ", "-")
        killed = train(folder, patch) == -signal.SIGKILL
        newest = runs.newest_valid(folder / "checkpoints", print)
        again = train(folder)
        files = ("model.safetensors", "ema.safetensors")
        same = all(
            (folder / last / name).read_bytes() == (root / "straight" / last / name).read_bytes() for name in files
        )
        left = sorted(path.name for path in (folder / "checkpoints").iterdir())
        found = {"killed": killed, "newest": newest and newest.name, "again": again, "same": same, "left": left}
        sys.stdout.write(json.dumps({"place": place, **found}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
