"""`nvg eval report`: results of any number of evaluations beside Table 1 of the paper."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.files import write_atomically
from eval.pages.published import ScoreRow, markdown_table, report_page, row_of_results
from eval.results import RESULTS_FILE
from nvg.errors import UserError
from pipelines.configuration import load_config

PUBLISHED = "published/imagenet256.yaml"
PAGE_FILE, TABLE_FILE = "report.html", "report.md"


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """The published rows, as `configs/published/imagenet256.yaml` holds them.

    Attributes:
        rows: see `eval.pages.published.ScoreRow`.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What is set side by side.

    Attributes:
        results: files `results.json`, or the folders they lie in.
        names: what the table calls them, in the same order; empty takes the names of the folders.
        output: folder for `report.html` and `report.md`.
    """

    results: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    output: str = ""

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("output: found nothing, expected a folder")
        if self.names and len(self.names) != len(self.results):
            raise ValueError(f"names: found {len(self.names)}, expected one for each of {len(self.results)} results")


def plan_report(config: ReportConfig) -> list[str]:
    """The steps, for a dry run: one line each."""
    return [
        f"read {len(config.results)} result(s) and the published rows of configs/{PUBLISHED}",
        f"write {PAGE_FILE} and {TABLE_FILE} in {config.output}",
    ]


def run_report(config: ReportConfig) -> Path:
    """Write the page and the table.

    Args:
        config: the results.

    Returns:
        The page.

    Raises:
        UserError: a result is missing or is none.
    """
    rows = published_rows()
    for number, name in enumerate(config.results):
        path = Path(name).expanduser()
        path = path / RESULTS_FILE if path.is_dir() else path
        title = config.names[number] if config.names else path.absolute().parent.name
        rows.append(_read_row(path, title))
    output = Path(config.output).expanduser().absolute()
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / TABLE_FILE, markdown_table(rows).encode())
    write_atomically(output / PAGE_FILE, report_page(rows).encode())
    return output / PAGE_FILE


def published_rows() -> list[ScoreRow]:
    """Table 1 of the paper."""
    return [ScoreRow(**row) for row in load_config(PublishedConfig, PUBLISHED).rows]


def _read_row(path: Path, title: str) -> ScoreRow:
    try:
        return row_of_results(title, json.loads(path.read_text()))
    except OSError:
        raise UserError(f"results: found no file {path}, expected a {RESULTS_FILE} of `nvg eval generator`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"results: {path} holds no scores of generated images ({error!r}), expected a {RESULTS_FILE} of "
            "`nvg eval generator` or `nvg eval images`"
        ) from error
