"""A model of random networks as a run's folder, for all tests of the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_networks import save_generators, save_tokenizer

from nvg.model import Model, load


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and generators, nothing else: classes are numbers."""
    folder = tmp_path_factory.mktemp("page") / "run"
    save_tokenizer(folder / "tokenizer")
    save_generators(folder)
    return folder


@pytest.fixture(scope="session")
def model(run: Path) -> Model:
    """The model in it, on the CPU."""
    return load(run, device="cpu")
