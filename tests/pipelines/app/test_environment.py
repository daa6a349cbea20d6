"""The environment of the page: what its lock names, over what the other one has; and the whole fits together."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from pipelines import app

pytestmark = pytest.mark.page


def pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_what_its_lock_names(repository):
    lines = (repository / "requirements-app.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert len(pins) > 10
    for pin in pins:
        if pin.marker is None or pin.marker.evaluate():
            assert pin.specifier.contains(metadata.version(pin.name)), pin


def test_what_it_holds_fits_together():
    assert pip("check").strip() == "No broken requirements found."


def test_the_extras_of_the_page_can_be_had_together(repository, tmp_path):
    """pip finds all of them in what is here, and asks no index: so it can in an empty environment, too."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, tmp_path)
    dry = ["install", "--dry-run", "--no-index", "--no-build-isolation", f"{tmp_path}[all]"]
    (would,) = [line for line in pip(*dry).splitlines() if line.startswith("Would install")]
    assert would.split()[2:] == [f"nvg-{metadata.version('nvg')}"]


def test_a_command_starts_again_there_once(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr("os.execv", lambda *command: started.append(command))
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "pipelines.cli", "app", "runs/x"])
    monkeypatch.setattr("sys.prefix", str(tmp_path / "mine"))
    app.enter_own_environment()
    other = tmp_path / "mine-app"
    site = other / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    app.enter_own_environment()
    assert started == []  # somebody's environment of that name
    (site / "beside_nvg.pth").write_text("")
    app.enter_own_environment()
    python = str(other / "bin" / "python")
    assert started == [(python, [python, "-m", "pipelines.cli", "app", "runs/x"])]
    monkeypatch.setattr("sys.prefix", str(other))
    app.enter_own_environment()
    assert len(started) == 1
