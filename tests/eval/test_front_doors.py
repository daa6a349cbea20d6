"""The front doors: each names every room behind it, and a light one stays light."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = [
    "eval",
    "eval.features",
    "eval.scores",
    "eval.pictures",
    "eval.pages",
    "pipelines.evaluate",
    "pipelines.ablate",
]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_front_door_names_every_room(name: str) -> None:
    package = importlib.import_module(name)
    folder = Path(str(package.__file__)).parent
    rooms = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert {room for room in rooms - {"__init__"} if room not in str(package.__doc__)} == set()


def test_the_package_and_the_look_of_pages_load_neither_torch_nor_matplotlib() -> None:
    code = "import sys, eval, eval.pages.page; sys.exit(str({'torch', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == "set()"
