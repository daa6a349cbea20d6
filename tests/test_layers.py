"""nvg is the method alone: it imports on a machine that has only torch, einops, numpy and safetensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

ABSENT = set(sys.argv[1].split(","))


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
import nvg

names = [module.name for module in pkgutil.walk_packages(nvg.__path__, "nvg.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
OURS = ("pipelines", "cluster", "eval")
OTHERS = (
    "deepspeed",
    "fsspec",
    "matplotlib",
    "omegaconf",
    "pandas",
    "PIL",
    "pyarrow",
    "ray",
    "rich",
    "sklearn",
    "scipy",
    "streaming",
    "timm",
    "torch_fidelity",
    "torchmetrics",
    "torchvision",
    "transformers",
    "typer",
    "wandb",
    "webdataset",
)


def import_nvg_without(names: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", IMPORT_EVERYTHING, ",".join(names)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_every_module_of_nvg_imports_without_the_rest():
    found = import_nvg_without((*OURS, *OTHERS))
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) == len(list((Path(__file__).parents[1] / "nvg").rglob("*.py"))) - 1


@pytest.mark.parametrize("needed", ["einops", "safetensors"])
def test_a_package_that_is_needed_would_be_missed(needed):
    found = import_nvg_without((needed,))
    assert found.returncode != 0
    assert f"No module named '{needed}" in found.stderr
