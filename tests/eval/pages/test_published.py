"""Results beside published ones: the rows are the paper's, and ours come out of results.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eval.pages.published import (
    ScoreRow,
    fid_plot,
    markdown_table,
    row_of_results,
    score_table,
    tokenizer_row_of_results,
)
from eval.pictures.plots import scatter
from eval.results import caveat
from nvg.errors import UserError
from pipelines.evaluate.table import ReportConfig, published_rows, published_tokenizers, run_report

RESULTS = {
    "scores": {
        "generated": {
            "num_images": 5000, "fid": 12.5, "sfid": 9.25, "inception_score": 88.0, "precision": 0.7, "recall": 0.4
        }
    },
    "not_comparable_because": ["5,000 samples; published scores use 50,000"],
    "protocol": {"model": {"parameters": {"content": 255_183_904, "structure": 64_369_672}, "stages": 9}},
}  # fmt: skip

TOKENIZER = {
    "scores": {
        "num_images": 50_000, "rfid": 0.743, "psnr_db": 20.0, "ssim": 0.6, "lpips_vgg": 0.1871,
        "codebook": {
            "size": 4096, "usage": 1.0,
            "stages": [{"tokens_per_image": 1 << stage, "usage": 0.6855} for stage in range(9)],
        },
    },
    "protocol": {
        "reference": {"kind": "imagenet", "view": "0 (crop)", "image_size": 256},
        "extractor": {"kind": "inception-v3-compat"},
    },
}  # fmt: skip


def test_published_tokenizers_are_those_of_table_3() -> None:
    rows = {row.model: row for row in published_tokenizers()}
    assert len(rows) == 9
    ours, pyramid = rows["NVG (paper)"], rows["VAR"]
    assert (ours.tokens, ours.ratio, ours.codebook, ours.usage) == (511, 16, 4096, 1)
    assert (ours.rfid, ours.lpips) == (0.74, 0.1875)
    assert (pyramid.tokens, pyramid.rfid, pyramid.lpips) == (680, 1.06, 0.1863)
    assert (ours.usage_of_stage_0, pyramid.usage_of_stage_0) == (0.6855, 0.2539)
    assert rows["MaskGIT"].lpips is None


def test_a_tokenizers_result_becomes_a_row_of_its_table() -> None:
    row = tokenizer_row_of_results("ours", TOKENIZER)
    cells = ["ours", "here", "511", "16", "4,096", "0.74", "0.1871", "100%", "68.55%", "50,000"]
    assert score_table([row])[1] == [cells]
    other = json.loads(json.dumps(TOKENIZER).replace("0 (crop)", "0 (center)").replace("lpips_vgg", "lpips_alex"))
    other["protocol"]["extractor"]["kind"], other["scores"]["num_images"] = "nvg-small-image", 100
    text = markdown_table([tokenizer_row_of_results("other", other)])
    other["caveats"] = [caveat(["rfid", "psnr_db"], ["reconstructions"], "12 of the images were trained on")]
    assert "12 of the images were trained on" in markdown_table([tokenizer_row_of_results("other", other)])
    for reason in ("features of nvg-small-image", "100 images", "0 (center)", "source.view_policy=crop", "no LPIPS"):
        assert reason in text


def test_tokenizers_have_a_report_of_their_own(tmp_path: Path) -> None:
    for name, results in (("tokenizer", TOKENIZER), ("generator", RESULTS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    page = run_report(ReportConfig(results=[str(tmp_path / "tokenizer")], output=str(tmp_path / "report")))
    text = page.read_text()
    assert "Table 3 of the paper" in text
    assert "Open-MAGVIT2" in text
    assert "BigGAN" not in text
    assert "<figure" not in text
    assert "| tokenizer | here | 511 |" in (tmp_path / "report" / "report.md").read_text()
    both = [str(tmp_path / name) for name in ("tokenizer", "generator")]
    with pytest.raises(UserError, match="1 of generators and 1 of tokenizers, expected one kind"):
        run_report(ReportConfig(results=both, output=str(tmp_path)))


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
    with pytest.raises(UserError, match=r"results\.json"):
        run_report(ReportConfig(results=[str(tmp_path / "nowhere")], output=str(tmp_path)))
    (tmp_path / "results.json").write_text('{"scores": {"rfid": 1}}')
    with pytest.raises(UserError, match="key scores"):
        run_report(ReportConfig(results=[str(tmp_path)], output=str(tmp_path)))
    with pytest.raises(ValueError, match="names is "):
        ReportConfig(results=["a"], names=["a", "b"], output="o")


def test_a_distance_in_other_features_stays_out_of_the_column_of_fid() -> None:
    named = {"kind": "efficientnet-lite0", "distance": "FD (EfficientNet-Lite0)"}
    results = {
        "scores": {"generated": {"num_images": 2000, "fd": 12.5, "precision": 0.7, "recall": 0.6}},
        "not_comparable_because": ["other features"],
        "caveats": [caveat(["fd"], ["generated"], "too few")],
        "protocol": {"extractor": named},
    }
    found = row_of_results("ours", results)
    assert found.fid is None
    assert found.remarks == (
        "other features", "FD (EfficientNet-Lite0) 12.50 in place of FID", "FD (EfficientNet-Lite0): too few"
    )  # fmt: skip
