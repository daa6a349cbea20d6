"""Results beside published ones: the rows are the paper's, and ours come out of results.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eval.pages.published import ScoreRow, fid_plot, markdown_table, row_of_results, score_table
from eval.pictures.plots import scatter
from eval.results import caveat
from nvg.errors import UserError
from pipelines.evaluate.table import ReportConfig, published_rows, run_report

RESULTS = {
    "scores": {
        "generated": {
            "num_images": 5000, "fid": 12.5, "sfid": 9.25, "inception_score": 88.0, "precision": 0.7, "recall": 0.4
        }
    },
    "not_comparable_because": ["5,000 samples; published scores use 50,000"],
    "protocol": {"model": {"parameters": {"content": 255_183_904, "structure": 64_369_672}, "stages": 9}},
}  # fmt: skip


def test_published_rows_hold_the_numbers_to_reproduce() -> None:
    rows = {row.model: row for row in published_rows()}
    assert len(rows) == 33
    expected = {"d16": (3.03, 279.2, 0.82, 0.54), "d20": (2.44, 310.4, 0.80, 0.60), "d24": (2.06, 317.0, 0.79, 0.61)}
    for depth, numbers in expected.items():
        row = rows[f"NVG-{depth} (paper)"]
        assert (row.fid, row.inception_score, row.precision, row.recall) == numbers
    assert rows["CDM"].precision is None
    assert rows["CDM"].parameters is None


def test_a_result_becomes_a_row_with_its_remarks() -> None:
    row = row_of_results("ours", RESULTS)
    assert row.parameters == pytest.approx(319.55, abs=0.01)
    assert (row.fid, row.sfid, row.steps, row.num_images) == (12.5, 9.25, 9, 5000)
    head, cells = score_table([row])
    assert cells[0] == ["ours *", "here", "12.50", "9.25", "88.0", "0.70", "0.40", "320 M", "9", "5,000"]
    assert len(head) == len(cells[0])
    text = markdown_table([row, ScoreRow(type="GAN", model="other", fid=3.0)])
    assert "| other | GAN | 3.00 |  |" in text
    assert "ours: 5,000 samples; published scores use 50,000." in text
    caveats = [caveat(["fid"], ["generated"], "too few"), caveat(["fid"], ["held_out"], "of no row here")]
    assert row_of_results("ours", {**RESULTS, "caveats": caveats}).remarks == (*row.remarks, "FID: too few")


def test_plots_show_what_has_both_numbers() -> None:
    rows = [*published_rows(), row_of_results("ours", RESULTS)]
    picture = fid_plot(rows, "steps")
    assert picture.light[:4] == b"\x89PNG"
    assert picture.light != picture.dark
    with pytest.raises(ValueError, match="no point"):
        scatter([], "x", "y")


def test_the_report_needs_no_other_file(tmp_path: Path) -> None:
    folder = tmp_path / "d16" / "eval"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    page = run_report(ReportConfig(results=[str(folder)], names=["<ours>"], output=str(tmp_path / "report")))
    text = page.read_text()
    assert "&lt;ours&gt; *" in text
    assert "NVG-d24 (paper)" in text
    assert not re.findall(r'(?:src|href|srcset)="(?!data:)', text)
    assert text.count("<figure") == 2
    table = (tmp_path / "report" / "report.md").read_text()
    assert "| <ours> * | here | 12.50 |" in table


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no file .*results\.json"):
        run_report(ReportConfig(results=[str(tmp_path / "nowhere")], output=str(tmp_path)))
    (tmp_path / "results.json").write_text('{"scores": {"rfid": 1}}')
    with pytest.raises(UserError, match="holds no scores of generated images"):
        run_report(ReportConfig(results=[str(tmp_path)], output=str(tmp_path)))
    with pytest.raises(ValueError, match="names is "):
        ReportConfig(results=["a"], names=["a", "b"], output="o")
