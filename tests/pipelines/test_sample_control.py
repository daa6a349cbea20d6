"""`nvg sample` with an image, a mask or a map to follow: files, figures and every unusable input."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_networks import save_generators, save_tokenizer
from typer.testing import CliRunner

from nvg.checkpoints import load_network
from nvg.errors import UserError
from nvg.folders import cut_of
from nvg.granularity import spatial_structure
from nvg.tokenizer import Tokenizer
from pipelines.cli.main import app
from pipelines.configuration import load_config
from pipelines.sample import SampleConfig, plan_sample, sample_images
from pipelines.sources import SourceConfig
from pipelines.sources.views import make_view, make_views
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
    halves = np.zeros((32, 32), dtype=np.uint8)
    halves[:, 16:] = 1
    palette = Image.fromarray(halves, mode="P")
    palette.putpalette([10, 20, 30, 10, 20, 31])
    palette.save(tmp_path / "palette.png")
    palette.convert("RGB").save(tmp_path / "colours.png")
    palette.convert("RGB").save(tmp_path / "blended.jpg")
    Image.fromarray(halves.astype(np.uint16) * 300).save(tmp_path / "wide.png")
    Image.fromarray(halves * 255).convert("1").save(tmp_path / "one-bit.png")
    np.save(tmp_path / "labels.npy", halves.astype(np.int64) * 70_000 - 1)
    np.save(tmp_path / "many.npy", np.arange(1024).reshape(32, 32))
    np.save(tmp_path / "three.npy", np.zeros((32, 32, 2), dtype=np.int64))
    np.save(tmp_path / "empty.npy", np.zeros((0, 5), dtype=np.int64))
    with (tmp_path / "several.npy").open("wb") as several:
        np.savez(several, one=halves)
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_one_stage_of_contents_comes_with_the_first_split(run_folder, files):
    facts = draw(run_folder, files / "out", fix_content_from=str(files / "image.png"), stages=1)
    assert (facts["stages_of_contents_given"], facts["splits_given"]) == (1, 1)
    assert len(facts["agreement"]["samples"]["splits"]) == 1


def test_the_figure_of_stage_wise_control_from_the_command_line(run_folder, files):
    values = [f"run={run_folder}", "classes=[3, 7]", "num_per_class=1", f"output={files / 'out'}"]
    done = CliRunner().invoke(app, ["sample", *values, "--stagewise-from", str(files / "image.png")])
    assert done.exit_code == 0, done.output
    assert done.output.strip().endswith("stagewise.png")
    assert Image.open(files / "out" / "stagewise.png").size[0] > 500
    with pytest.raises(UserError, match="ask for 80 samples; expected at most 24"):
        sample_images(
            SampleConfig(
                run=str(run_folder),
                output=str(files / "out"),
                control=ControlConfig(stagewise_from=str(files / "image.png")),
            )
        )


def test_a_segmentation_from_the_command_line(run_folder, files):
    values = [f"run={run_folder}", "classes=[3]", "num_per_class=1", f"output={files / 'out'}"]
    done = CliRunner().invoke(app, ["sample", *values, "--structure-labels", str(files / "palette.png")])
    assert done.exit_code == 0, done.output
    assert "segmentation of 2 labels: 1 split(s)" in done.output
    assert "bent     0.0% of the positions lie with another label" in done.output
    facts = json.loads((files / "out" / "adherence.json").read_text())
    assert (facts["splits_given"], facts["label_bend"], facts["mask_bend"]) == (1, 0.0, None)


@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_a_region_is_kept_from_the_command_line(run_folder, files, suffix):
    keep = np.ones((64, 64), dtype=bool)
    keep[:32] = False
    Image.fromarray(keep).save(files / "keep.png")
    np.save(files / "keep.npy", keep)
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(files / "square.png")
    values = [f"run={run_folder}", "classes=[3]", "num_per_class=2", f"output={files / 'out'}"]
    command = ["sample", *values, "--from", str(files / "square.png"), "--keep", str(files / f"keep.{suffix}")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "kept     8 of 16 positions of an image; the rest is generated" in done.output
    facts = json.loads((files / "out" / "adherence.json").read_text())
    assert (facts["positions_kept"], facts["splits_given"], facts["agreement"]) == (8, 0, None)
    assert Image.open(files / "out" / "control.png").size[0] > 500


@pytest.mark.parametrize("name", ["palette.png", "colours.png", "wide.png", "labels.npy", "one-bit.png"])
def test_labels_are_the_values_as_stored(tokenizer, files, name):
    control = load_control(ControlConfig(structure_labels=str(files / name)), tokenizer)
    assert control.given.structure_BL is not None
    first = (control.given.structure_BL >> 3).view(4, 4)
    assert first[0].tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert (first == first[0]).all()


@pytest.mark.parametrize("policy", ["center", "crop"])
def test_a_segmentation_is_cut_as_its_image_is(tokenizer, files, policy):
    """Of 32 columns the left 17 have one label: the cut of 1.125 leaves out as much on both sides."""
    labels = np.zeros((32, 48), dtype=np.uint8)
    labels[:, 8 + 17 :] = 1
    Image.fromarray(labels).save(files / "oblong-labels.png")
    control = load_control(
        ControlConfig(structure_labels=str(files / "oblong-labels.png"), view_policy=policy), tokenizer
    )
    assert control.source_HWC is not None
    assert control.source_HWC.shape == (16, 16, 1)
    source = replace(SourceConfig(), view_policy=policy)
    cut = make_views(Image.fromarray(labels * 255), config=source, key="", views=[0], resample=Image.Resampling.NEAREST)
    assert np.array_equal(control.source_HWC, cut[0])


def test_images_are_cut_as_the_runs_images_were(tokenizer, files):
    picture, cuts = Image.open(files / "image.png"), []
    for policy in ("center", "crop"):
        control = load_control(ControlConfig(structure_from=str(files / "image.png")), tokenizer, cut=policy)
        expected = make_view(picture, config=replace(SourceConfig(), view_policy=policy), key="", view=0)
        assert control.image_HWC is not None
        assert np.array_equal(control.image_HWC, expected)
        cuts.append(expected)
    assert not np.array_equal(*cuts)
    own = ControlConfig(fix_content_from=str(files / "image.png"), stages=2, view_policy="center")
    image = load_control(own, tokenizer, cut="crop").image_HWC
    assert image is not None
    assert np.array_equal(image, cuts[0])


def test_a_small_image_keeps_its_pixels_where_the_runs_images_did(tokenizer, files):
    small_HW = np.arange(100, 244, dtype=np.uint8).reshape(12, 12)
    Image.fromarray(small_HW).save(files / "small.png")
    Image.fromarray(small_HW.repeat(2, 0)).save(files / "tall.png")
    small, tall = (ControlConfig(structure_from=str(files / name)) for name in ("small.png", "tall.png"))
    image = load_control(small, tokenizer, cut="pad").image_HWC
    assert image is not None
    assert np.array_equal(image[..., 0], np.pad(small_HW, 2))
    with pytest.raises(UserError, match=r"tall\.png.*too large to pad.*control\.view_policy"):
        load_control(tall, tokenizer, cut="pad")


@pytest.mark.parametrize(
    ("file", "content", "cut"),
    [
        ("trainer.json", '{"data": {"view_policy": "fresh_crop"}}', "crop"),
        ("trainer.json", '{"data": {"view_policy": "shift"}}', "center"),
        ("trainer.json", '{"data": {"view_policy": "shift", "fit": "pad"}}', "pad"),
        ("trainer.json", "{}", "center"),
        ("release.json", "{}", "crop"),
        ("ema.json", "{}", "center"),
    ],
)
def test_the_cut_is_found_beside_the_tokenizer(tmp_path, file, content, cut):
    (tmp_path / file).write_text(content)
    assert cut_of(tmp_path) == cut


@pytest.mark.parametrize(
    ("manifest", "cut"),
    [
        ({"view_policy": "random_crop"}, "crop"),
        ({"view_policy": "ten_crop"}, "crop"),
        ({"view_policy": "center"}, "center"),
        ({"view_policy": "shift"}, "center"),
        ({"view_policy": "shift", "fit": "pad"}, "pad"),
    ],
)
def test_the_cut_is_that_of_the_records_where_there_are_any(tmp_path, manifest, cut):
    (tmp_path / "trainer.json").write_text('{"data": {"view_policy": "fresh_crop"}}')
    assert cut_of(tmp_path, manifest) == cut


@pytest.mark.slow
def test_several_candidates_have_a_baseline_of_as_many_free_draws(run_folder, files):
    facts = draw(run_folder, files / "out", structure_mask=str(files / "mask.png"), num_candidates=3)
    agreement = facts["agreement"]
    assert agreement["free_best"]["mean"] >= agreement["free"]["mean"]


def test_the_foreground_can_be_either_child(tokenizer, files):
    one, other = (
        load_control(ControlConfig(structure_mask=str(files / "mask.png"), mask_foreground=child), tokenizer)
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
        ({"structure_from": "text.npy"}, "no .npy file that can be read"),
        ({"structure_from": "unbalanced.npy"}, "no balanced hierarchy"),
        ({"structure_from": "floats.npy"}, "holds float64"),
        ({"structure_from": "large.npy"}, "16 positions"),
        ({"structure_labels": "missing.png"}, "structure_labels: found no file"),
        ({"structure_labels": "text.png"}, "no image that can be read"),
        ({"structure_labels": "text.npy"}, "no .npy file that can be read"),
        ({"structure_labels": "floats.npy"}, "holds float64"),
        ({"structure_labels": "blended.jpg"}, "is a JPEG, which blends labels"),
        ({"structure_labels": "many.npy"}, r"\(32, 32\) and 1024 different values.*at most 256 labels"),
        ({"structure_labels": "three.npy"}, r"\(32, 32, 2\)"),
        ({"structure_labels": "empty.npy"}, r"\(0, 5\) and 0 different values"),
        ({"structure_labels": "several.npy"}, "is an .npz file; expected one array"),
        ({"structure_from": "several.npy"}, "is an .npz file; expected one array"),
        ({"structure_labels": "one-colour.png"}, "one label"),
        ({"structure_labels": "palette.png", "stages": 5}, "stages is 5.*1 to 4 splits"),
        ({"edit_from": "missing.png", "keep": "mask.png"}, "control.edit_from: found no file"),
        ({"edit_from": "mask.png", "keep": "missing.png"}, "control.keep: found no file"),
        ({"edit_from": "text.png", "keep": "mask.png"}, "control.edit_from: .*no image that can be read"),
        ({"edit_from": "mask.png", "keep": "text.png"}, "control.keep: .*no image that can be read"),
        ({"edit_from": "mask.png", "keep": "text.npy"}, "control.keep: .*no .npy file that can be read"),
        ({"edit_from": "mask.png", "keep": "one-colour.png"}, "control.keep: .*found one colour"),
        ({"edit_from": "mask.png", "keep": "oblong.png"}, "control.keep: .*pixels over a picture of 32x32"),
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
        load_control(config, tokenizer)


def test_spatial_structure_cannot_be_given(files):
    spatial = load_network(Tokenizer, save_tokenizer(files / "spatial", structure="spatial"))
    with pytest.raises(UserError, match="no structure to give"):
        load_control(ControlConfig(structure_mask=str(files / "mask.png")), spatial)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["structure_from=a", "structure_mask=b"], "structure_from and structure_mask"),
        (["stages=2"], "nothing to follow"),
        (["num_candidates=2"], "nothing to follow"),
        (["fix_content_from=a"], "control.stages is None; expected how many"),
        (["structure_labels=a", "stagewise_from=b"], "structure_labels and stagewise_from"),
        (["structure_mask=a", "edit_from=b", "keep=c"], "structure_mask and edit_from"),
        (["edit_from=a"], r"found one of edit_from \(--from\) and keep \(--keep\)"),
        (["keep=a"], r"found one of edit_from \(--from\) and keep \(--keep\)"),
        (["edit_from=a", "keep=b", "stages=2"], "control.stages is 2; expected null with edit_from"),
        (["edit_from=a", "keep=b", "num_candidates=2"], "control.num_candidates is 2; expected 1"),
        (["stagewise_from=a", "stages=2"], "control.stages is 2; expected null with stagewise_from"),
        (["stagewise_from=a", "num_candidates=2"], "control.num_candidates is 2; expected 1"),
        (["structure_labels=a", "view_policy=shift"], "control.view_policy is 'shift'"),
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
    plan = plan_sample(SampleConfig(control=ControlConfig(fix_content_from="digit.png", stages=3)))
    assert any("contents of 3 stage(s) of digit.png and the structure up to stage 3" in step for step in plan)
    plan = plan_sample(SampleConfig(control=ControlConfig(edit_from="digit.png", keep="left.png")))
    assert "keep of digit.png what is white in left.png" in plan
    assert "draw as many free ones" in plan
    plan = plan_sample(SampleConfig(control=ControlConfig(stagewise_from="digit.png")))
    assert "stagewise.png" in plan[-1]
