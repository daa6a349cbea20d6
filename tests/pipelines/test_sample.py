"""`nvg sample` with nothing given."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import save_generators, save_tokenizer
from typer.testing import CliRunner

from nvg.errors import UserError
from nvg.model import load
from nvg.sampling import SamplingConfig
from pipelines.cli.main import app
from pipelines.configuration import dump_config
from pipelines.evaluate.config import EvaluateConfig
from pipelines.sample import SampleConfig, sample_images
from pipelines.structure_control import ControlConfig


@pytest.fixture
def run(tmp_path):
    """Random networks as a run's folders, without records: classes are numbers."""
    save_tokenizer(tmp_path / "run" / "tokenizer")
    save_generators(tmp_path / "run")
    return tmp_path / "run"


def draw(run, output, **settings):
    config = SampleConfig(
        run=str(run), output=str(output), num_per_class=2, sampling=SamplingConfig(num_flow_steps=2), **settings
    )
    sample_images(config)
    return {path.name: np.asarray(Image.open(path)) for path in output.glob("[0-9]*.png")}


def test_an_image_depends_on_its_class_and_number_alone(run, tmp_path):
    every = draw(run, tmp_path / "every")
    one = draw(run, tmp_path / "one", classes=[3])
    assert sorted(one) == ["3-000.png", "3-001.png"]
    assert len(every) == 20
    for name, image in one.items():
        np.testing.assert_allclose(image.astype(int), every[name].astype(int), atol=1)  # batches of another size


def test_a_class_that_is_asked_for_twice_goes_on_with_other_images(run, tmp_path):
    twice = draw(run, tmp_path / "twice", classes=[3, 7, 3])
    assert sorted(twice) == ["3-000.png", "3-001.png", "3-002.png", "3-003.png", "7-000.png", "7-001.png"]
    assert len({image.tobytes() for image in twice.values()}) == 6


@pytest.mark.slow
def test_samples_take_the_place_of_those_before_and_of_nothing_else(run, tmp_path, capsys):
    folder = tmp_path / "samples"
    draw(run, folder, classes=[3, 4])
    (folder / "notes.txt").write_text("mine")
    assert sorted(draw(run, folder, classes=[4], seed=9)) == ["4-000.png", "4-001.png"]
    assert f"{folder}: removed 6 files of an earlier run" in capsys.readouterr().out
    assert (folder / "notes.txt").is_file()
    (folder / "mine.jpeg").touch()
    with pytest.raises(UserError, match=r"output is .*samples, which holds mine\.jpeg, .* change output, or empty"):
        draw(run, folder, classes=[5])
    assert sorted(path.name for path in folder.glob("*.png")) == ["4-000.png", "4-001.png", "grid.png", "stages.png"]


def test_what_cannot_be_given_costs_no_earlier_samples(run, tmp_path):
    draw(run, tmp_path / "samples", classes=[3])
    with pytest.raises(UserError):
        draw(run, tmp_path / "samples", classes=[3], control=ControlConfig(structure_from=str(tmp_path / "none.png")))
    assert (tmp_path / "samples" / "3-000.png").is_file()


def test_spatial_structure_needs_no_structure_generator(run, tmp_path):
    save_tokenizer(run / "tokenizer", structure="spatial")
    shutil.rmtree(run / "structure")
    assert len(draw(run, tmp_path / "samples", classes=[0, 7])) == 4


def test_a_device_that_is_not_there_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"device: found cuda, torch sees no GPU here; use auto or cpu"):
        draw(run, tmp_path / "samples", device="cuda")
    with pytest.raises(ValueError, match=r"device is 'tpu'; expected one of auto, cpu, cuda"):
        SampleConfig(device="tpu")  # pyright: ignore[reportArgumentType]


def test_settings_are_those_the_run_was_scored_with(run, tmp_path):
    def resolved(*arguments):
        result = CliRunner().invoke(app, ["sample", f"run={run}", "--dry-run", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert "content_guidance: 3.5" in resolved()
    (run / "configs").mkdir()
    scored_with = SamplingConfig(content_guidance=7.0, num_flow_steps=10)
    evaluation = EvaluateConfig(
        tokenizer="tokenizer", content="content", structure="structure", output="evaluation", sampling=scored_with
    )
    (run / "configs" / "evaluation.yaml").write_text(dump_config(evaluation))
    assert "content_guidance: 7.0" in resolved()
    one_value = resolved("sampling.content_guidance=2")
    assert "content_guidance: 2.0" in one_value
    assert "num_flow_steps: 10" in one_value
    assert "content_guidance: 3.5" in resolved("--sampling", "paper")
    own = tmp_path / "own.yaml"
    own.write_text("sampling: {top_p_last: 0.3}\n")
    assert "content_guidance: 3.5" in resolved("--config", str(own))


def test_an_exported_model_is_drawn_from_with_its_own_settings(run, tmp_path):
    model = load(run, settings=SamplingConfig(content_guidance=7.0, num_flow_steps=2), device="cpu")
    exported = model.save_pretrained(tmp_path / "exported")
    arguments = ["sample", f"run={exported}", f"output={tmp_path / 'out'}", "classes=[3]", "num_per_class=1"]
    result = CliRunner().invoke(app, [*arguments, "device=cpu"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = np.asarray(Image.open(tmp_path / "out" / "3-000.png"))
    assert np.array_equal(found, model.sample(3).images[0, ..., 0])
    (exported / "weights/structure/ema.safetensors").unlink()
    with pytest.raises(UserError, match=r"structure/ema\.safetensors is missing"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    (exported / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.json"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_files_are_called_by_label_and_number_whatever_the_classes_are_called(run, tmp_path, monkeypatch):
    names = ["crane", "dog", "crane", "x" * 252, "[red]a<b>&", "$\\foo$", "../CON", "猫", "é/e", "k\\udce4se"]
    monkeypatch.setattr("nvg.folders.run.read_manifest", lambda _folder: {"class_names": names})
    (run / "records").mkdir()
    drawn = draw(run, tmp_path / "samples", classes=list(range(7)))
    assert sorted(drawn) == [f"{label}-{number:03d}.png" for label in range(7) for number in range(2)]
    assert (tmp_path / "samples/grid.png").is_file()
