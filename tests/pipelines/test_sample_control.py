"""`nvg sample` with an image, a mask or a map to follow: files, figures and every unusable input."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_networks import save_generators, save_tokenizer

from nvg.checkpoints import load_network
from nvg.errors import UserError
from nvg.granularity import spatial_structure
from nvg.tokenizer import Tokenizer
from pipelines.configuration import load_config
from pipelines.sample import SampleConfig, plan_sample, sample_images
from pipelines.structure_control import ControlConfig, load_control


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    save_tokenizer(root / "tokenizer")
    save_generators(root)
    return root


@pytest.fixture(scope="module")
def tokenizer(run_folder):
    return load_network(Tokenizer, run_folder / "tokenizer")


@pytest.fixture
def files(tmp_path):
    """An image, a mask whose upper quarter is white, a map, and files that are none of these."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.full((32, 32), 200, dtype=np.uint8)).save(tmp_path / "one-colour.png")
    Image.fromarray(mask[:, :20]).save(tmp_path / "oblong.png")
    Image.fromarray(mask[6:9, :3]).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no image")
    np.save(tmp_path / "map.npy", spatial_structure(16).view(4, 4).numpy())
    np.save(tmp_path / "unbalanced.npy", np.zeros((4, 4), dtype=np.int64))
    np.save(tmp_path / "floats.npy", np.arange(16.0))
    np.save(tmp_path / "large.npy", np.arange(64))
    (tmp_path / "text.npy").write_text("no map")
    return tmp_path


def draw(run_folder, output, **control):
    config = SampleConfig(
        run=str(run_folder),
        classes=[3, 7],
        num_per_class=2,
        output=str(output),
        control=ControlConfig(**control),
    )
    sample_images(config)
    return json.loads((output / "adherence.json").read_text())


def run_nvg_sample(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", "sample", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_end_to_end(run_folder, files):
    values = [f"run={run_folder}", "classes=[3]", "num_per_class=2", f"output={files / 'out'}"]
    done = run_nvg_sample(*values, "sampling.num_flow_steps=2", "--structure-mask", str(files / "mask.png"))
    assert done.returncode == 0, done.stderr
    assert "25.0% of the positions changed side" in done.stdout
    assert "free samples" in done.stdout
    for name in ("3-000.png", "3-001.png", "grid.png", "stages.png", "control.png"):
        assert Image.open(files / "out" / name).size[0] > 0
    facts = json.loads((files / "out" / "adherence.json").read_text())
    assert (facts["mask_bend"], facts["splits_given"], facts["samples"]) == (0.25, 1, 2)
    assert 0.5 <= facts["agreement"]["samples"]["mean"] <= 1
    assert 0.5 <= facts["agreement"]["free"]["mean"] <= 1


def test_a_mistake_is_one_block_and_exit_code_2(run_folder, files):
    mask = str(files / "one-colour.png")
    done = run_nvg_sample(f"run={run_folder}", f"output={files / 'out'}", "--structure-mask", mask)
    assert done.returncode == 2
    assert "all one colour (200)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("stages", "splits"), [(None, 4), (1, 1), (4, 4)])
def test_structure_of_an_image(run_folder, files, stages, splits):
    facts = draw(run_folder, files / "out", structure_from=str(files / "image.png"), stages=stages)
    assert facts["splits_given"] == splits
    assert len(facts["agreement"]["samples"]["splits"]) == min(splits, 3)
    assert facts["agreement"]["reconstruction"] is not None
    assert facts["mask_bend"] is None


def test_structure_of_a_map_file(run_folder, files):
    facts = draw(run_folder, files / "out", structure_from=str(files / "map.npy"))
    assert facts["splits_given"] == 4
    assert facts["agreement"]["reconstruction"] is None


def test_all_contents_of_an_image_give_its_reconstruction(run_folder, files):
    facts = draw(run_folder, files / "out", fix_content_from=str(files / "image.png"), stages=5)
    assert (facts["stages_of_contents_given"], facts["splits_given"]) == (5, 4)
    assert facts["agreement"]["samples"] == facts["agreement"]["reconstruction"]
    one, other = (np.asarray(Image.open(files / "out" / name)) for name in ("3-000.png", "7-001.png"))
    assert np.array_equal(one, other)


def test_one_stage_of_contents_needs_no_structure_and_measures_none(run_folder, files):
    facts = draw(run_folder, files / "out", fix_content_from=str(files / "image.png"), stages=1)
    assert (facts["stages_of_contents_given"], facts["splits_given"], facts["agreement"]) == (1, 0, None)


def test_several_candidates_have_a_baseline_of_as_many_free_draws(run_folder, files):
    facts = draw(run_folder, files / "out", structure_mask=str(files / "mask.png"), num_candidates=3)
    agreement = facts["agreement"]
    assert agreement["free_best"]["mean"] >= agreement["free"]["mean"]


def test_the_foreground_can_be_either_child(tokenizer, files):
    one, other = (
        load_control(
            ControlConfig(structure_mask=str(files / "mask.png"), mask_foreground=child), tokenizer, spatial=False
        )
        for child in (1, 0)
    )
    assert one.given.structure_BL is not None
    assert other.given.structure_BL is not None
    assert (one.given.structure_BL >> 3).tolist() == [[1] * 8 + [0] * 8]
    assert (other.given.structure_BL >> 3).tolist() == [[0] * 8 + [1] * 8]


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"structure_mask": "missing.png"}, "found no file"),
        ({"structure_mask": "text.png"}, "no image that can be read"),
        ({"structure_mask": "one-colour.png"}, "all one colour"),
        ({"structure_mask": "oblong.png"}, r"\(32, 20\).*square"),
        ({"structure_mask": "small.png"}, r"\(3, 3\).*at least 4×4"),
        ({"structure_mask": "mask.png", "stages": 5}, "stages is 5.*1 to 4 splits"),
        ({"structure_from": "missing.png"}, "found no file"),
        ({"structure_from": "text.png"}, "no image that can be read"),
        ({"structure_from": "image.png", "stages": 5}, "stages is 5.*1 to 4 splits"),
        ({"structure_from": "missing.npy"}, "found no file"),
        ({"structure_from": "text.npy"}, "no .npy file of numbers"),
        ({"structure_from": "unbalanced.npy"}, "no balanced hierarchy"),
        ({"structure_from": "floats.npy"}, "holds float64"),
        ({"structure_from": "large.npy"}, "16 positions"),
        ({"fix_content_from": "text.png", "stages": 2}, "no image that can be read"),
        ({"fix_content_from": "image.png", "stages": 6}, "stages is 6.*1 to 5 stages of contents"),
    ],
)
def test_unusable_files_are_refused(tokenizer, files, control, message):
    overrides = [
        f"control.{key}={files / value if isinstance(value, str) else value}" for key, value in control.items()
    ]
    config = load_config(SampleConfig, None, overrides).control
    with pytest.raises(UserError, match=message):
        load_control(config, tokenizer, spatial=False)


def test_spatial_structure_cannot_be_given(tokenizer, files):
    with pytest.raises(UserError, match="no structure to give"):
        load_control(ControlConfig(structure_mask=str(files / "mask.png")), tokenizer, spatial=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["structure_from=a", "structure_mask=b"], "structure_from and structure_mask"),
        (["stages=2"], "nothing to follow"),
        (["num_candidates=2"], "nothing to follow"),
        (["fix_content_from=a"], "control.stages is None; expected how many"),
        (["structure_from=a", "stages=0"], "control.stages is 0"),
        (["structure_mask=a", "mask_foreground=2"], "control.mask_foreground is 2"),
        (["structure_mask=a", "num_candidates=0"], "control.num_candidates is 0"),
    ],
)
def test_settings_that_contradict_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(SampleConfig, None, [f"control.{text}" for text in overrides])


def test_the_plan_says_what_is_given():
    plan = plan_sample(SampleConfig(control=ControlConfig(structure_from="digit.png", stages=2)))
    assert any("give 2 split(s) of digit.png" in step for step in plan)
    assert "adherence.json" in plan[-1]
    assert "adherence.json" not in plan_sample(SampleConfig())[-1]
