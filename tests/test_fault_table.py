"""Every fault of docs/faults.md and every case of docs/results/cases.md names tests, and these are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def rows_of(page: str, first: str) -> list[list[str]]:
    """Cells of each row of a page's tables whose first cell matches."""
    return [
        [cell.strip() for cell in line.strip("|\n").split(" | ")]
        for line in (TESTS.parent / "docs" / page).read_text(encoding="utf-8").splitlines()
        if re.match(rf"\| {first} \|", line)
    ]


FAULTS = rows_of("faults.md", r"F\d+")
CASES = rows_of("results/cases.md", r"[A-D]\d+(\.\d+)?")


@cache
def functions_of(file: Path) -> frozenset[str]:
    """Names of the test functions of a file, read without running it."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def test_every_fault_has_one_row() -> None:
    assert [row[0] for row in FAULTS] == [f"F{number}" for number in range(1, 27)]
    assert all(len(row) == 5 and all(row) for row in FAULTS)


def test_every_case_has_a_row() -> None:
    kinds = {*(f"A{n}" for n in range(1, 8)), *(f"B{n}" for n in range(1, 12)), *(f"C{n}" for n in range(1, 12))}
    kinds |= {f"D{n}" for n in range(1, 14)}
    assert {row[0].partition(".")[0] for row in CASES} == kinds


@pytest.mark.parametrize("row", FAULTS + CASES, ids=lambda row: row[0])
def test_the_tests_of_a_row_are_there(row: list[str]) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", row[-1])
    assert len(named) == row[-1].count("`") // 2 > 0
    assert [f"{file}::{name}" for file, name in named if name not in functions_of(TESTS / file)] == []
