"""Where mosaicml-streaming is not installed everything works but the reading of records in a store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHAIN = """
import importlib, importlib.metadata, pkgutil, sys
from pathlib import Path

folder, case_file = map(Path, sys.argv[1:])


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "streaming":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def installed(name, find=importlib.metadata.Distribution.from_name):
    if name == "mosaicml-streaming":
        raise importlib.metadata.PackageNotFoundError(name)
    return find(name)


sys.meta_path.insert(0, Absent())
importlib.metadata.Distribution.from_name = installed

for package in map(importlib.import_module, ("cluster", "eval", "pipelines")):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)

from dataclasses import replace

from record_training import losses, record_config

from nvg.errors import UserError
from pipelines.batches.config import DataConfig
from pipelines.precompute.verify import verify_records
from pipelines.sources import SourceConfig
from pipelines.train.generator import train_generator

spec = importlib.util.spec_from_file_location("case", case_file)
case = importlib.util.module_from_spec(spec)
spec.loader.exec_module(case)
records = case.Prepared(case.job(folder, source=SourceConfig(split="test"), images_per_unit=150)).run()
assert verify_records(str(records)).num_records == 297

config = record_config(records, folder / "run")
config = replace(config, loop=replace(config.loop, engine="plain", stop_after_steps=3))
train_generator(config)
assert len(losses(folder / "run")) == 3

far = DataConfig(path=str(folder / "copied"), remote=str(records), loader="streaming", views_per_epoch="all")
try:
    train_generator(replace(config, data=far, run_folder=str(folder / "far")))
except UserError as error:
    print(error)
assert not any(name.split(".")[0] == "streaming" for name in sys.modules)
"""


@pytest.mark.slow
def test_whole_chain_without_the_package(tmp_path):
    root = Path(__file__).parents[1]
    case = root / "tests/pipelines/precompute/conftest.py"
    found = subprocess.run(
        [sys.executable, "-c", CHAIN, str(tmp_path), str(case)],
        cwd=root,
        env={"PYTHONPATH": f"{root}:{root / 'tests/support'}", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert (
        "data.loader is 'streaming'; expected mosaicml-streaming to be installed; install it, or copy" in found.stdout
    )
