"""The README and the questions are short, and their Python runs. What else they say: tests/tools/test_pages.py."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_networks import save_generators, save_tokenizer

import nvg
from tools.pages.sentences import mean_length
from tools.pages.text import ROOT, Page

README, QUESTIONS = Page(ROOT / "README.md"), Page(ROOT / "docs" / "faq.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where there is a `runs/demo`."""
    folder = tmp_path_factory.mktemp("reader")
    save_tokenizer(folder / "runs/demo/tokenizer")
    save_generators(folder / "runs/demo")
    return folder


def test_the_readme_is_two_screens() -> None:
    assert len(README.source.splitlines()) <= 120


@pytest.mark.parametrize("page", [README, QUESTIONS], ids=lambda page: page.path.stem)
def test_sentences_are_short(page: Page) -> None:
    assert mean_length(page) <= 18


def python_of(page: Page) -> str:
    return "\n".join(block.text for block in page.blocks if block.language == "python")


def test_the_five_lines_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    text = python_of(README)
    lines = [line for line in text.splitlines() if line and not line.startswith("import")]
    assert len(lines) == 5
    found: dict[str, object] = {}
    exec(text, found)
    drawn, again = found["drawn"], found["again"]
    assert isinstance(drawn, nvg.Samples)
    assert isinstance(again, nvg.Samples)
    assert str(drawn.images.shape) == re.search(r"uint8 (\(.*?\))\n", text)[1]  # pyright: ignore[reportOptionalSubscript]
    assert (again.structure == drawn.structure[:1]).all()
    assert isinstance(found["stages"], np.ndarray)
    assert isinstance(found["parts"], nvg.Sequences)


def test_the_python_of_the_questions_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found: dict[str, object] = {"nvg": nvg}
    exec(python_of(QUESTIONS), found)
    assert isinstance(found["again"], nvg.Model)


def test_each_of_fifteen_questions_has_a_command_and_a_figure() -> None:
    """In the order of the issues; a figure has a source behind it."""
    parts = re.split(r"^## (\d+)\. .+$", QUESTIONS.source, flags=re.MULTILINE)[1:]
    numbers, answers = parts[::2], parts[1::2]
    assert [int(number) for number in numbers] == list(range(1, 16))
    for number, answer in zip(numbers, answers, strict=True):
        assert re.search(r"^    (nvg|python) ", answer, re.MULTILINE), number
        assert re.search(r"\d.*<!-- \S+: .+? -->|\d[\d,]* (of them|bytes)", answer), number
