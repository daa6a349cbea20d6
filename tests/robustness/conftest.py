"""No trace for a user's mistake: bad inputs of every kind, in process, and a table of what was tried.

A module here tries one kind: it makes inputs, hands each to `tally.expect_refusal(area, name, run, …)` and ends with
`tally.check(area, at_least=…)`. What `make test` runs stays below a minute over all modules; matrices have the marker
`long`. Inputs come from a fixed seed.
"""

from __future__ import annotations

import pytest
from robustness import Tally

_TALLY = Tally()


@pytest.fixture(scope="session")
def tally() -> Tally:
    return _TALLY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of this session."""
    if _TALLY.areas:
        terminalreporter.section("bad inputs")
        terminalreporter.write_line(_TALLY.table())
