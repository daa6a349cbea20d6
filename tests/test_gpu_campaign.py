"""The campaign for the first GPU runs to its end without one, with what `nvg/` needs and nothing else."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
CAMPAIGN = REPOSITORY / "benchmarks" / "gpu_campaign.py"

WITHOUT_THE_REST = """
import importlib.util, runpy, sys

ABSENT = {"ray", "deepspeed", "streaming", "numba", "omegaconf", "torchvision", "timm", "pipelines", "cluster", "eval"}
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ABSENT else find_spec(name, package)

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("gpu_campaign", CAMPAIGN)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.modules["gpu_campaign"] = loaded
    spec.loader.exec_module(loaded)
    yield loaded
    sys.path[:] = before
    del sys.modules["gpu_campaign"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_runs_with_pytorch_alone(tmp_path):
    words = [CAMPAIGN, "--device", "cpu", "--tiny", "--output", tmp_path / "found.json"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_REST, *map(str, words)], capture_output=True, text=True, timeout=880
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["errors"] == {}
    assert found["left_out"] == []
    assert {row["part"] for row in found["rows"]} == {"parity", "kernels", "train", "sample", "encode", "host"}
    judged = [row["passed"] for row in found["rows"] if row["passed"] is not None]
    assert len(judged) > 10
    assert all(judged)
    assert "| part | what | measured | predicted |" in done.stdout


def test_a_measurement_that_fails_costs_no_other_and_is_told(module, monkeypatch, tmp_path, capsys):
    def parts(campaign):
        campaign.attempt("broken", lambda: 1 / 0)
        campaign.attempt("long", lambda: pytest.fail("there was no time for it"), needs_s=1e9)
        campaign.attempt("fine", lambda: campaign.note("host", "average of content d16", 2.0, "ms"))
        campaign.note("parity", "maps", 0.5, "equal", passed=False)

    monkeypatch.setattr(module, "_run", lambda part, campaign: parts(campaign))
    status = module.main(["--device", "cpu", "--parts", "host", "--output", str(tmp_path / "found.json")])
    said, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert status == 1
    assert "FAILED broken: ZeroDivisionError" in said
    assert "left out for want of time: long" in said
    assert "| host | average of content d16 | 2 ms | 1 ms |" in said
    assert "| parity | maps | 0.5 equal | – | **FAILED** |" in said
    assert list(found["errors"]) == ["broken"]
    assert found["left_out"] == ["long"]
    assert json.loads(said.splitlines()[-1])["failed"] == ["parity, maps"]


def test_what_it_cannot_do_is_refused_by_name(module, monkeypatch, capsys):
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    for words, message in ((["--parts", "train,speed"], "names ['speed']; expected some of parity"), ([], "no CUDA")):
        with pytest.raises(SystemExit) as error:
            module.main(words)
        assert error.value.code == 2
        assert message in capsys.readouterr().err


def test_operations_are_those_that_a_training_counts(module):
    from nvg.models import ContentGeneratorConfig, StructureGeneratorConfig
    from pipelines.train.costs import flops_per_image
    from pipelines.train.devices import peak_flops

    speed = importlib.import_module("gpu_speed")
    for (kind, depth), flops in speed.FLOPS.items():
        make = ContentGeneratorConfig if kind == "content" else StructureGeneratorConfig
        assert flops == pytest.approx(flops_per_image(make(depth=depth), None), rel=2e-3)
    assert all(peak_flops(name) == peak for name, peak in speed.PEAK_FLOPS.items())


def test_the_page_holds_every_prediction(module):
    page = (REPOSITORY / "docs" / "results" / "gpu.md").read_text()
    for row in module.predicted_rows():
        assert f"| {row.part} | {row.what} |" in page
        assert f"| {row.predicted:.3g} {row.unit} |" in page


def test_the_page_and_the_presets_hold_what_was_measured(module):
    """Each number of the file stands in its row of the page; the presets' hours follow from the last speed."""
    page = (REPOSITORY / "docs" / "results" / "gpu.md").read_text()
    last = {}
    for column, run in enumerate(json.loads((REPOSITORY / "docs" / "results" / "gpu.json").read_text())["runs"]):
        for row in run["rows"]:
            assert row["passed"] is not False, row["what"]
            last[row["part"], row["what"]] = row["value"]
            if row["part"] != "parity":
                cells = page.partition(f"| {row['part']} | {row['what']} |")[2].partition("\n")[0].split("|")
                assert cells[column].strip() == module._number(row["value"], row["unit"])
    for kind in ("content", "structure"):
        for depth, epochs in ((16, 200), (20, 250), (24, 350)):
            speed = last["train", f"{kind} d{depth}, compiled"]
            head = (REPOSITORY / "configs" / kind / f"d{depth}.yaml").read_text()
            hours = epochs * 1_281_167 / speed / 3600
            assert f"{speed:.3g} images/s" in head
            assert f"which is {hours:,.0f} hours" in head
