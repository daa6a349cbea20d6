"""The notebook docs/tour.py runs and shows its figures; the page made of it says what the notebook says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_networks import save_generators, save_tokenizer

pytest.importorskip("jupytext", reason="pip install '.[notebook]'")

from tools.tour_page import FIGURES, PAGE, RUN, figures, page_of, read_notebook, run_notebook, texts

WITHOUT_FIGURE = {1, 3}  # the model in a line; ids as numbers


@pytest.mark.slow
def test_it_runs_and_shows_its_figures(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / RUN / "tokenizer")
    save_generators(tmp_path / RUN)
    notebook = run_notebook(tmp_path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = {number: figures(cell) for number, cell in enumerate(cells, 1)}
    assert {number for number, pictures in shown.items() if not pictures} == WITHOUT_FIGURE
    assert all(len(pictures) <= 1 and all(one[1:4] == b"PNG" for one in pictures) for pictures in shown.values())
    assert texts(cells[0]).startswith("<nvg.Model: 10 classes, 16×16 grey, 5 stages")
    assert [len(line.split(":")[1].split()) for line in texts(cells[2]).splitlines()] == [1, 2, 4, 8, 16]
    page, pictures = page_of(notebook)
    assert sorted(pictures) == [f"tour-{number:02d}.png" for number in range(1, 11) if number not in WITHOUT_FIGURE]
    assert all(f"](results/{name})" in page for name in pictures)


def test_it_has_ten_cells_each_with_its_say() -> None:
    cells = read_notebook().cells
    assert [cell.cell_type for cell in cells] == ["markdown", "code"] * 10
    for number, cell in enumerate(cells[::2], 1):
        assert re.search(rf"^\*\*{number}\. .+\.\*\*", cell.source, re.MULTILINE), number


def test_the_page_says_what_the_notebook_says() -> None:
    """Apart from what a run has shown: `python -m tools.tour_page runs/demo` writes it anew."""
    page = PAGE.read_text(encoding="utf-8")
    for cell in read_notebook().cells:
        assert cell.source in page, f"docs/tour.md lacks {cell.source[:60]!r}; run python -m tools.tour_page runs/demo"
    named = re.findall(r"\]\(results/(tour-\d+\.png)\)", page)
    assert len(named) == 8
    assert all((FIGURES / name).exists() for name in named)
