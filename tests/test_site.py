"""The documentation site builds without a warning, and its parts hold what pages and docstrings say."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.pages.text import ROOT

DOCS = ROOT / "docs"
pytestmark = pytest.mark.timeout(900)  # under a minute of a quiet core; machines under tests are slower


@pytest.fixture(scope="module")
def conf():
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--nitpicky", "--fail-on-warning", "--keep-going", "--quiet"]
    command += ["-b", "html", "-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=880)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_holds_every_page(site: Path) -> None:
    pages = [page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md") if "_build" not in page.parts]
    assert len(pages) > 40
    assert [str(page) for page in pages if not (site / page).exists()] == []


@pytest.mark.slow
def test_an_equation_leads_to_its_function(site: Path) -> None:
    html = (site / "method.html").read_text(encoding="utf-8")
    row = re.search(r"<tr[^>]*><td><p>Eq\. \(6\)</p></td>.*?</tr>", html, re.DOTALL)
    assert row
    target = "reference/generated/nvg.granularity.stages.html#nvg.granularity.stages.structure_embedding"
    assert target in row[0]
    page = (site / target.partition("#")[0]).read_text(encoding="utf-8")
    assert 'id="nvg.granularity.stages.structure_embedding"' in page
    assert "Paper: Eq. (6)" in page


@pytest.mark.slow
def test_the_site_asks_no_other_host_for_anything(site: Path) -> None:
    for page in ("index.html", "method.html", "start/demo.html"):
        html = (site / page).read_text(encoding="utf-8")
        assert re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"https?:[^\"]*\"", html) == []


@pytest.mark.parametrize(
    ("link", "led"),
    [
        ("[`sample`](../nvg/sampling/sampler.py)", "{py:obj}`sample <nvg.sampling.sampler.sample>`"),
        ("[`Model.edit`](../nvg/model.py)", "{py:obj}`Model.edit <nvg.model.Model.edit>`"),
        ("[`_turn`](../nvg/layers/triton_heads.py)", "{py:obj}`_turn <nvg.layers.triton_heads>`"),
        ("[`nvg/pixels.py`](../nvg/pixels.py)", "{py:obj}`nvg/pixels.py <nvg.pixels>`"),
        ("[how](../CONTRIBUTING.md#a-release)", "[how](contributing.md#a-release)"),
        ("[recipes](../cluster)", "recipes (`cluster`)"),
        ("[`_stagewise`](../pipelines/gallery.py)", "`_stagewise`"),
        ("[demo](results/demo.md)", "[demo](results/demo.md)"),
    ],
)
def test_links_to_the_repository_lead_into_the_site(conf, link: str, led: str) -> None:
    assert conf.lead_inward("method", f"See {link}.") == f"See {led}."


def test_links_of_pages_in_folders_are_counted_from_there(conf) -> None:
    assert conf.lead_inward("results/demo", "[x](../control.md)") == "[x](../control.md)"
    assert conf.lead_inward("results/demo", "[x](../../README.md)") == "[x](../index.md)"


def test_docstrings_become_restructured_text(conf) -> None:
    lines = ["Takes `x`, *args and a_ name.", "", "    an example", "", "Args:", "    x: a `list`."]
    found = conf.to_restructured(lines)
    assert found[0] == r"Takes ``x``, \*args and a\_ name."
    assert "::" in found
    assert found[-1] == "    x: a ``list``."
