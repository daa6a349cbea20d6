"""Prints what pages say and the code does not: `python -m tools.pages [--sentences] [PAGE...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.pages import figures, names
from tools.pages.commands import commands, problem_of
from tools.pages.sentences import mean_length, sentence_lengths
from tools.pages.text import Page, pages

STRICT = ("docs/start/", "docs/tutorials/")  # every figure has a source, whether one has or not


def problems(page: Page) -> Iterator[str]:
    """`page:line: what` for everything that does not hold."""
    found = [(line, problem) for line, command in commands(page) if (problem := problem_of(command))]
    found += names.problems_of(page)
    found += figures.problems_of(page)
    if figures.is_sourced(page) or page.name.startswith(STRICT):
        found += figures.unsourced(page)
    yield from (f"{page.name}:{line}: {problem}" for line, problem in sorted(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the problems; 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m tools.pages", description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="all of the repository's where none is named")
    parser.add_argument("--sentences", action="store_true", help="print the mean length of sentences instead")
    options = parser.parse_args(arguments)
    chosen = [Page(path.resolve()) for path in options.pages] or pages()
    if options.sentences:
        for page in chosen:
            sys.stdout.write(
                f"{mean_length(page):5.1f} words, {len(sentence_lengths(page)):4} sentences  {page.name}\n"
            )
        return 0
    found = [problem for page in chosen for problem in problems(page)]
    sys.stdout.writelines(f"{problem}\n" for problem in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
