"""Where there is no terminal a line is written when something has changed; in a terminal bars are drawn."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cluster.progress import ProgressBars


def test_without_a_terminal_only_changed_lines_are_written(capsys):
    console = Console(file=io.StringIO())
    totals, completed = {"content": 9, "structure": 5}, {"content": 2}
    with ProgressBars(totals, completed=completed, unit="steps", console=console, every_s=0) as bars:
        bars.update("content", 2)
        assert capsys.readouterr().err == ""
        bars.update("content", 3, "loss 1.5 [bf16]")
        bars.update("content", 3, "loss 1.5 [bf16]")
        bars.update("structure", 1)
        bars.update("structure", 1)
    assert capsys.readouterr().err.splitlines() == [
        "content 3/9 steps loss 1.5 [bf16] | structure 0/5 steps",
        "content 3/9 steps loss 1.5 [bf16] | structure 1/5 steps",
    ]


def test_lines_keep_their_distance_and_the_last_state_is_told(capsys):
    with ProgressBars({"a": 100}, console=Console(file=io.StringIO()), every_s=3600) as bars:
        for step in range(1, 8):
            bars.update("a", step)
    assert capsys.readouterr().err.splitlines() == ["a 1/100", "a 7/100"]


@pytest.mark.parametrize("unit", ["images", ""])
def test_a_terminal_shows_bars_before_a_speed_is_known(capsys, unit):
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=100)
    with ProgressBars({"sampling": 4}, unit=unit, console=console) as bars:
        bars.update("sampling", 4, "0 [skipped]")
    assert "4/4" in drawn.getvalue()
    assert "0 [skipped]" in drawn.getvalue()
    assert capsys.readouterr().err == ""
