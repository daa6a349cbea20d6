"""Tables of scores: in the terminal, and of any evaluations beside the paper's tables (`nvg eval report`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from cluster.files import write_atomically
from eval.pages.page import time_text
from eval.pages.published import (
    ScoreRow,
    TokenizerRow,
    markdown_table,
    report_page,
    row_of_results,
    tokenizer_row_of_results,
)
from eval.results import RESULTS_FILE, is_of_tokenizer, read_results
from nvg.bounds import check_fields, refuse
from nvg.errors import UserError
from nvg.json_files import make
from pipelines.configuration import load_config
from pipelines.evaluate.config import make_folder, require

_PUBLISHED, _PUBLISHED_TOKENIZERS = "published/imagenet256.yaml", "published/tokenizers256.yaml"
Row = TypeVar("Row", ScoreRow, TokenizerRow)
PAGE_FILE, TABLE_FILE = "report.html", "report.md"


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """The published rows (`ScoreRow`, `TokenizerRow`), as the files of `configs/published` hold them."""

    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What is set side by side.

    Attributes:
        results: files `results.json`, or the folders they lie in: all of generators, or all of tokenizers.
        names: what the table calls them, in the same order; empty takes the names of the folders.
        output: folder for `report.html` and `report.md`.
    """

    results: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    output: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self, "a folder", "output")
        if self.names and len(self.names) != len(self.results):
            raise refuse("names", list(self.names), f"one for each of {len(self.results)} results")


def plan_report(config: ReportConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    return [
        f"read {len(config.results)} result(s) and the published rows of configs/{_PUBLISHED}, for tokenizers of "
        f"configs/{_PUBLISHED_TOKENIZERS}",
        f"write {PAGE_FILE} and {TABLE_FILE} in {config.output}",
    ]


def run_report(config: ReportConfig) -> Path:
    """Write the page and the table.

    Returns:
        The page.

    Raises:
        UserError: a result is missing or is none.
    """
    found: list[ScoreRow | TokenizerRow] = []
    for number, name in enumerate(config.results):
        path = Path(name).expanduser()
        path = path / RESULTS_FILE if path.is_dir() else path
        title = config.names[number] if config.names else path.absolute().parent.name
        found.append(_read_row(path, title))
    tokenizers = [row for row in found if isinstance(row, TokenizerRow)]
    generators = [row for row in found if isinstance(row, ScoreRow)]
    if tokenizers and generators:
        raise UserError(
            f"results: found {len(generators)} of generators and {len(tokenizers)} of tokenizers, expected one kind: "
            "their tables differ; make two reports"
        )
    rows = [*published_tokenizers(), *tokenizers] if tokenizers else [*published_rows(), *generators]
    output = make_folder(config.output)
    write_atomically(output / TABLE_FILE, markdown_table(rows).encode())
    write_atomically(output / PAGE_FILE, report_page(rows).encode())
    return output / PAGE_FILE


def published_rows() -> list[ScoreRow]:
    """Table 1 of the paper."""
    return _published(ScoreRow, _PUBLISHED)


def published_tokenizers() -> list[TokenizerRow]:
    """Table 3 of the paper."""
    return _published(TokenizerRow, _PUBLISHED_TOKENIZERS)


def _published(form: type[Row], name: str) -> list[Row]:
    rows = load_config(PublishedConfig, name).rows
    return [make(form, row, f"{name}, row {number}", "change that file") for number, row in enumerate(rows, start=1)]


def _read_row(path: Path, title: str) -> ScoreRow | TokenizerRow:
    results = read_results(path)
    return (tokenizer_row_of_results if is_of_tokenizer(results["scores"]) else row_of_results)(title, results)


def print_table(
    console: Console,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    first: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Print a table under an empty line, all columns but the first aligned right.

    Args:
        console: where to.
        head: a name for each column; all empty shows none.
        rows: of texts.
        first: style of the first row, such as `bold`.
        notes: lines below it.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=any(head))
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for number, row in enumerate(rows):
        table.add_row(*row, style=first if number == 0 else None)
    console.print()
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def print_not_comparable(console: Console, results: dict[str, Any]) -> None:
    """Print what keeps scores from being set beside published ones, where anything does."""
    if reasons := results.get("not_comparable_because"):
        console.print("\nNot to be set beside published scores:", style="bold")
        for reason in reasons:
            console.print(f"· {reason}", highlight=False, soft_wrap=True)


def print_file(console: Console, name: str, path: Path, remark: str = "") -> None:
    """Print where a file is, on one line however long."""
    console.print(f"{name}  {path}{remark}", highlight=False, markup=False, soft_wrap=True)


def print_time(console: Console, results: dict[str, Any]) -> None:
    """Print how long an evaluation took in all."""
    console.print(f"evaluated in {time_text(sum(results['seconds'].values()))}", highlight=False)
