"""Every fault of the table in docs/faults.md names tests, and these are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split(" | ")]
    for line in (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| F\d+ \|", line)
]


@cache
def functions_of(file: Path) -> frozenset[str]:
    """Names of the test functions of a file, read without running it."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def test_every_fault_has_one_row() -> None:
    assert [row[0] for row in ROWS] == [f"F{number}" for number in range(1, 26)]
    assert all(len(row) == 5 and all(row) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_tests_of_a_fault_are_there(row: list[str]) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", row[4])
    assert len(named) == row[4].count("`") // 2 > 0
    assert [f"{file}::{name}" for file, name in named if name not in functions_of(TESTS / file)] == []
