"""`nvg gallery`: which figures are drawn, that they are those of `nvg sample`, and what is refused."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_networks import FEW_STEPS, save_generators, save_tokenizer

from eval.pictures import paint_sequences
from nvg.errors import UserError
from pipelines.gallery import GalleryConfig, draw_gallery
from pipelines.sample import SampleConfig, sample_images
from pipelines.structure_control import ControlConfig


@pytest.fixture
def run(tmp_path):
    """Random networks as a run's folders; a run that was scored on digits."""
    save_tokenizer(tmp_path / "run" / "tokenizer")
    save_generators(tmp_path / "run")
    (tmp_path / "run" / "configs").mkdir()
    source = "source: {kind: digits, split: train, num_views: 9, view_policy: shift}\n"
    (tmp_path / "run" / "configs" / "evaluation.yaml").write_text(source)
    return tmp_path / "run"


def gallery(run, output, **settings):
    page = draw_gallery(
        GalleryConfig(run=str(run), output=str(output), sampling=FEW_STEPS, num_per_class=2, **settings)
    )
    return page.read_text(), sorted(path.name for path in output.glob("*.png"))


@pytest.mark.slow
def test_masks_and_held_out_images_without_being_asked(run, tmp_path):
    page, files = gallery(run, tmp_path / "gallery", num_classes=2)
    expected = {"masks": 3, "pictures": 2, "stages": 1, "stagewise": 2}
    assert files == sorted(f"{name}-{number}.png" for name, count in expected.items() for number in range(1, count + 1))
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles[0] == "Painted stage by stage"
    assert titles[-1] == "How well samples follow"
    assert page.count("<img") == 8
    agreement = json.loads((tmp_path / "gallery" / "gallery.json").read_text())["agreement"]
    assert {name: found["given"] for name, found in agreement.items()} == {
        "masks-1.png": "a circle", "masks-2.png": "a rectangle", "masks-3.png": "stripes",
        "pictures-1.png": "0, held out", "pictures-2.png": "1, held out",
    }  # fmt: skip
    assert agreement["masks-1.png"]["reconstruction"] is None
    assert 0.5 <= agreement["pictures-1.png"]["reconstruction"]["mean"] <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("text", [None, "", "title: x\n"])
def test_a_run_that_says_no_images_has_no_pictures_and_says_so(run, tmp_path, text, caplog):
    file = run / "configs" / "evaluation.yaml"
    file.unlink() if text is None else file.write_text(text)
    _, files = gallery(run, tmp_path / "gallery", classes=[3])
    assert files == ["masks-1.png", "masks-2.png", "masks-3.png", "stages-1.png"]
    assert "no held-out image is followed" in caplog.text
    gallery(run, tmp_path / "gallery", classes=[3])
    assert "removed 6 files of an earlier run" in caplog.text


@pytest.mark.slow
def test_a_held_out_image_that_cannot_be_read_is_passed_over(run, tmp_path, caplog):
    folder = tmp_path / "data"
    for part in ("train", "test"):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(np.full((16, 16), 90 + number, np.uint8)).save(folder / part / name / f"{number}.png")
    bad = folder / "test" / "a" / "0.png"
    bad.write_bytes(bad.read_bytes()[:40])
    source = f"source: {{kind: folder, path: {folder}, split_by: folders, image_size: 16, image_channels: 1}}\n"
    (run / "configs" / "evaluation.yaml").write_text(source)
    _, files = gallery(run, tmp_path / "gallery", classes=[0, 1])
    assert "pictures-2.png" in files
    assert "passed over" in caplog.text


@pytest.mark.slow
def test_figures_are_those_of_sample(run, tmp_path, monkeypatch):
    """A mask and a picture of one's own; one noise for one sample, whichever command draws it."""
    ramp = np.linspace(0, 255, 16, dtype=np.uint8)
    Image.fromarray(np.broadcast_to(ramp, (16, 16)).copy()).save(tmp_path / "picture.png")
    Image.fromarray(np.tri(32, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    painted: list[int] = []

    def noted(tokenizer, drawn, labels, *rest, **named):
        painted.extend(labels.tolist())
        return paint_sequences(tokenizer, drawn, labels, *rest, **named)

    monkeypatch.setattr("pipelines.gallery.paint_sequences", noted)
    mine = {"masks": [str(tmp_path / "mask.png")], "pictures": [str(tmp_path / "picture.png")]}
    _, files = gallery(run, tmp_path / "gallery", classes=[3], **mine)
    assert painted == [3]  # the first figure, too, is of the classes asked for
    assert files == ["masks-1.png", "pictures-1.png", "stages-1.png", "stagewise-1.png"]
    agreement = json.loads((tmp_path / "gallery" / "gallery.json").read_text())["agreement"]
    controls = {
        "mask": ControlConfig(structure_mask=str(tmp_path / "mask.png")),
        "picture": ControlConfig(structure_from=str(tmp_path / "picture.png")),
    }
    for (name, control), figure in zip(controls.items(), ("masks-1.png", "pictures-1.png"), strict=True):
        sample_images(
            SampleConfig(
                run=str(run), output=str(tmp_path / name), classes=[3], num_per_class=2, sampling=FEW_STEPS,
                control=control,
            )
        )  # fmt: skip
        alone = json.loads((tmp_path / name / "adherence.json").read_text())["agreement"]
        assert agreement[figure] == {"given": f"{name}.png", **alone}


@pytest.mark.slow
def test_files_of_one_name_are_two_figures_and_take_the_place_of_an_earlier_gallery(run, tmp_path):
    masks = [tmp_path / folder / "mask.png" for folder in ("a", "b")]
    for number, mask in enumerate(masks):
        mask.parent.mkdir()
        Image.fromarray(np.tri(32, k=8 * number, dtype=np.uint8) * 255).save(mask)
    shutil.rmtree(run / "configs")
    gallery(run, tmp_path / "gallery", num_classes=1)
    page, files = gallery(run, tmp_path / "gallery", num_classes=1, masks=[*map(str, masks)])
    assert files == ["masks-1.png", "masks-2.png", "stages-1.png"]
    agreement = json.loads((tmp_path / "gallery" / "gallery.json").read_text())["agreement"]
    assert [found["given"] for found in agreement.values()] == ["mask.png", "mask.png"]
    assert page.count(">mask.png<") == 2
    (tmp_path / "gallery" / "mine.jpeg").touch()
    with pytest.raises(UserError, match=r"which holds mine\.jpeg"):
        gallery(run, tmp_path / "gallery", num_classes=1)


def test_a_spatial_tokenizer_has_contents_to_go_on_from_and_no_structure(run, tmp_path):
    save_tokenizer(run / "tokenizer", structure="spatial")
    shutil.rmtree(run / "structure")
    page, files = gallery(run, tmp_path / "gallery", num_classes=1)
    assert files == ["stages-1.png", "stagewise-1.png"]
    assert "How well samples follow" not in page


def test_a_run_that_was_never_scored_shows_masks_alone(run, tmp_path):
    shutil.rmtree(run / "configs")
    assert gallery(run, tmp_path / "gallery", num_classes=1)[1] == [
        "masks-1.png", "masks-2.png", "masks-3.png", "stages-1.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pictures": ["none.png"]}, r"pictures: found no file none\.png"),
        ({"masks": ["none.png"]}, r"control\.structure_mask: found no file none\.png"),
        ({"classes": [10]}, r"classes: found \[10\]"),
    ],
)
def test_what_cannot_be_shown_is_named_before_anything_is_written(run, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        gallery(run, tmp_path / "gallery", **settings)
    assert not (tmp_path / "gallery").exists()
