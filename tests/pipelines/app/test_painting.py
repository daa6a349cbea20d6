"""What the page paints is what the command line draws; what it takes in is checked. No browser, no Gradio."""

from __future__ import annotations

import base64
import io
import shutil
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hub_stand_in import WRITER, taken_for_the_hub
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_networks import save_tokenizer
from typer.testing import CliRunner

from nvg.errors import UserError
from nvg.model import load
from nvg.sampling import SamplingConfig
from pipelines.app.cards import archive, data_url, empty_html, painting_html
from pipelines.app.page import run_app
from pipelines.app.painting import paint
from pipelines.app.settings import (
    AS_SCORED,
    MASK_PIXELS,
    AppConfig,
    ask,
    followed_by,
    mask_sheet,
    picture_levels,
    presets,
    read_drawing,
    read_upload,
)
from pipelines.cli.main import app
from pipelines.sample import SampleConfig

CONFIG = AppConfig()
DISC = np.where(np.hypot(*np.mgrid[-1:1:256j, -1:1:256j]) < 0.7, 255, 0).astype(np.uint8)
PHOTO = np.random.default_rng(5).integers(0, 256, (40, 31, 3), np.uint8)


def asked(model, config=CONFIG, **wanted):
    known = {"classes": [3, 7], "seed": 5, "side_by_side": 2}
    return ask(model, config, **{**known, **wanted})


def followed(model, follows):
    """What the page has when a user starts from this, all of it whether it is wanted or not."""
    photo = picture_levels(PHOTO, model)
    stages = {"mask": 1, "picture": 2}.get(follows, 4)
    return {"follows": follows, "mask": DISC, "picture": photo, "stages": stages}


def taken_home(model, config, wanted, folder):
    """The folder of the second seed, as a user unpacks it."""
    *_, painting = paint(model, wanted)
    with zipfile.ZipFile(io.BytesIO(archive(painting, wanted, model, config))) as zipped:
        zipped.extractall(folder)
    return folder / "seed-6"


def make_again(folder, monkeypatch):
    """What `nvg sample` makes of its settings file there is what lies there."""
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, ["sample", "--config", "settings.yaml"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for name in ("3-000.png", "7-000.png"):
        assert (folder / name).read_bytes() == (folder / SampleConfig().output / name).read_bytes()


@pytest.mark.parametrize("follows", ["nothing", "mask", "picture", "region"])
def test_the_command_line_makes_the_same_bytes_of_the_settings_file(model, run, tmp_path, monkeypatch, follows):
    config = AppConfig(run=str(run), device="cpu")
    wanted = asked(model, config, preset="table2", **followed(model, follows))
    folder = taken_home(model, config, wanted, tmp_path)
    make_again(folder, monkeypatch)
    assert (folder / "3-000-stages.png").is_file()
    assert np.load(folder / "3-000-map.npy").shape == (4, 4)
    assert (tmp_path / "seed-5/3-000.png").read_bytes() != (folder / "3-000.png").read_bytes()


@pytest.mark.parametrize("where", ["exported", "me/digits"])
def test_so_it_does_of_a_model_that_was_handed_on(model, tmp_path, monkeypatch, where):
    """An exported folder, named from elsewhere; a repository of the hub, which cannot be reached any more."""
    monkeypatch.chdir(tmp_path)
    few = replace(model, sampling=SamplingConfig(num_flow_steps=2))
    few.save_pretrained("exported")
    with taken_for_the_hub(monkeypatch, tmp_path) as hub:
        few.push_to_hub("me/digits", token=WRITER, private=False)
        loaded, config = load(where, device="cpu"), AppConfig(run=where, device="cpu")
        assert hub.requests
    assert loaded.sampling == few.sampling
    folder = taken_home(loaded, config, asked(loaded, config, **followed(loaded, "region")), tmp_path / "home")
    assert f"# Pictures of '{where}' again" in (folder / "settings.yaml").read_text()
    make_again(folder, monkeypatch)


def test_a_picture_is_the_one_of_the_library_at_every_stage(model):
    *_, painting = paint(model, asked(model, seed=6, side_by_side=1))
    drawn = model.sample([3, 7], seed=6)
    for row, picture in enumerate(painting.pictures):
        assert (picture.label, picture.number, picture.seed) == ([3, 7][row], 0, 6)
        assert picture.structure_ss is not None
        assert np.array_equal(picture.structure_ss, drawn.maps(4)[row])
        for stage, frame in enumerate(picture.frames):
            assert np.array_equal(frame.map_ss, drawn.maps(stage)[row])
            assert np.array_equal(frame.image_HWC, drawn.decode(stage)[row])


def test_stages_appear_one_by_one_and_seeds_one_after_the_other(model):
    counts = [[len(picture.frames) for picture in painting.pictures] for painting in paint(model, asked(model))]
    first = [[stage, stage, 0, 0] for stage in range(6)]
    assert counts == [*first, *([5, 5, stage, stage] for stage in range(1, 6))]


def test_only_the_last_painting_is_done_and_its_page_shows_all(model):
    *earlier, last = paint(model, asked(model, **followed(model, "mask")))
    assert not any(painting.done for painting in earlier)
    assert last.done
    html = painting_html(last)
    assert html.count('type="radio"') == 4
    assert html.count("your mask") == 2  # a name under it and one for those who do not see it
    assert html.count('class="frame map own"') + html.count('class="frame map own new"') == 4  # one stage of each
    assert painting_html(earlier[0]).count("<img") == 2  # the mask and its map alone
    assert empty_html(5).count('class="frame"') == 10


def test_class_names_are_text_on_the_page(model):
    *_, painting = paint(model, asked(model, side_by_side=1))
    html = painting_html(replace(painting, pictures=(replace(painting.pictures[0], name='<b>"x"'),)))
    assert "<b>" not in html
    assert '"x"' not in html


def test_two_users_at_once_do_not_mix(model):
    wanted = [asked(model, classes=[label], seed=label, **followed(model, how)) for label, how in enumerate(
        ["nothing", "mask", "picture", "region"]
    )]  # fmt: skip

    def images(one):
        *_, painting = paint(model, one)
        return [frame.image_HWC for picture in painting.pictures for frame in picture.frames]

    alone = [images(one) for one in wanted]
    with ThreadPoolExecutor(len(wanted)) as users:
        together = list(users.map(images, wanted))
    for one, other in zip(alone, together, strict=True):
        assert all(map(np.array_equal, one, other))


def test_who_goes_away_is_not_drawn_for(model):
    stages = paint(model, asked(model, side_by_side=4))
    for _ in range(3):
        next(stages)
    stages.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("paint")]


def test_a_mistake_in_drawing_reaches_who_asked(model, monkeypatch):
    def broken(*_args, **_how):
        raise UserError("the networks have diverged")

    monkeypatch.setattr(type(model), "follow", broken)
    with pytest.raises(UserError, match="diverged"):
        list(paint(model, asked(model)))


def test_a_mask_of_one_colour_all_kept_or_nothing_kept_is_said(model):
    whole = np.full((MASK_PIXELS, MASK_PIXELS), 255, np.uint8)
    photo = picture_levels(PHOTO, model)
    with pytest.raises(UserError, match=r"the mask is all one colour \(255\); it needs two sides"):
        list(paint(model, asked(model, follows="mask", mask=whole, stages=1)))
    with pytest.raises(UserError, match="one colour"):
        list(paint(model, asked(model, follows="region", mask=whole, picture=photo)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"classes": []}, r"classes is \[\]; expected 1 to 4 classes"),
        ({"classes": None}, "expected 1 to 4 classes"),
        ({"classes": [1, 2, 3, 4, 5]}, "expected 1 to 4 classes"),
        ({"classes": [10]}, r"classes is 10; expected a whole number from 0 to 9"),
        ({"classes": ["3; drop"]}, "classes is '3; drop'"),
        ({"classes": [True]}, "classes is True"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0 to 9007199254740992"),
        ({"seed": 1.5}, r"seed is 1\.5"),
        ({"seed": None}, "seed is None"),
        ({"seed": float("inf")}, "seed is inf"),
        ({"side_by_side": 5}, "side by side is 5; expected a whole number from 1 to 4"),
        ({"preset": "../x"}, "sampling is '../x'; expected one of this run's own, paper, release, table2"),
        ({"follows": "a dream"}, "start from is 'a dream'; expected one of nothing, mask, picture, region"),
        ({"follows": "mask", "stages": 1}, "there is no mask yet; draw on the sheet, or start from nothing"),
        ({"follows": "picture", "stages": 1}, "there is no picture yet; choose one"),
        ({"follows": "region", "mask": DISC}, "there is no picture yet"),
        ({"follows": "mask", "mask": DISC, "stages": 5}, "stages is 5; expected a whole number from 1 to 4"),
        ({"follows": "mask", "mask": DISC, "stages": None}, "stages is None"),
    ],
)
def test_what_cannot_be_asked_is_said(model, wrong, said):
    with pytest.raises(UserError, match=said):
        asked(model, **wrong)


def test_numbers_come_as_a_browser_writes_them(model):
    assert asked(model, classes=[3.0], seed=2.0, side_by_side=3.0).seeds == [2, 3, 4]


def test_presets_are_the_runs_own_and_the_files(model):
    assert list(presets(model)) == [AS_SCORED, "paper", "release", "table2"]
    assert presets(model)[AS_SCORED] == model.sampling
    assert not presets(model)["release"].gumbel_split


def test_spatial_structure_has_no_maps_to_give(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    save_tokenizer(tmp_path / "run/tokenizer", structure="spatial")
    shutil.rmtree(tmp_path / "run/structure")
    spatial = load(tmp_path / "run", device="cpu")
    assert followed_by(spatial) == ["nothing", "region"]
    with pytest.raises(UserError, match="expected one of nothing, region: what this model can follow"):
        asked(spatial, **followed(spatial, "mask"))
    *_, painting = paint(spatial, asked(spatial, **followed(spatial, "region")))
    assert painting.done


def file_of(levels, kind="PNG", **how):
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind, **how)
    return file.getvalue()


FRAMES = [Image.fromarray(np.full((9, 9), level, np.uint8)) for level in (0, 90, 200)]


def animated(kind):
    return file_of(np.array(FRAMES[0]), kind, save_all=True, append_images=FRAMES[1:])


FRAMED_GIF, ANIMATED = animated("GIF"), "the picture is animated; expected a still one; send one of its frames"
UPLOADS = {
    "empty": (b"", r"the file is empty; expected a PNG, JPEG, WebP or GIF picture"),
    "text": (b"hello, I am a picture", "the file is no picture; expected PNG, JPEG, WebP or GIF"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "the file is no picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "the file is no picture"),
    "tiff": (file_of(PHOTO, "TIFF"), "the file is no picture; expected PNG"),
    "gif": (animated("GIF"), ANIMATED),
    "apng": (animated("PNG"), ANIMATED),
    "webp": (animated("WEBP"), ANIMATED),
    "many bytes": (bytes(2_100_000), r"the file has 2\.1 MB; expected at most 2 MB; send a smaller one"),
    "many pixels": (file_of(np.zeros((1100, 1000), np.uint8)), r"1000×1100 pixels .*, expected at most 1"),
    "a bomb": (file_of(np.zeros((14000, 14000), np.uint8)), "expected at most 1"),
    "cut off": (file_of(PHOTO)[:200], "send another one"),
    "cut off within its second frame": (FRAMED_GIF[: FRAMED_GIF.index(b",", 60) + 3], "send another one"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UPLOADS)
def test_uploads_that_cannot_be_used_are_said(tmp_path, kind):
    data, said = UPLOADS[kind]
    (tmp_path / "upload").write_bytes(data)
    with pytest.raises(UserError, match=said):
        read_upload(tmp_path / "upload", AppConfig(max_upload_mb=2, max_megapixels=1), channels=3)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "frames"]), st.integers(0, 10**6), st.binary(max_size=4))
def test_whatever_is_sent_is_read_or_refused(kind, place, found):
    """Damage at any place: what a reader stumbles over is told, and is never a mistake of ours."""
    data = FRAMED_GIF if kind == "frames" else file_of(PHOTO[:9, :7], kind)
    place %= len(data)
    damaged = data[:place] + found + data[place + len(found) :] if found else data[:place]
    with TemporaryDirectory() as folder, suppress(UserError):
        (Path(folder) / "upload").write_bytes(damaged)
        assert read_upload(Path(folder) / "upload", AppConfig(max_megapixels=1), channels=3).dtype == np.uint8
    url = "data:image/png;base64," + base64.b64encode(damaged).decode()
    with suppress(UserError):
        read_drawing(url)


@pytest.mark.parametrize(
    ("kind", "channels", "shape"), [("PNG", 3, (40, 31, 3)), ("JPEG", 1, (40, 31)), ("WEBP", 3, (40, 31, 3))]
)
def test_still_pictures_of_the_usual_kinds_are_read(tmp_path, kind, channels, shape):
    (tmp_path / "upload").write_bytes(file_of(PHOTO, kind))
    assert read_upload(tmp_path / "upload", CONFIG, channels=channels).shape == shape


def test_an_uploaded_mask_lies_on_the_sheet_and_comes_back_as_a_drawing(tmp_path):
    (tmp_path / "upload").write_bytes(file_of(DISC[:, :200]))
    sheet = mask_sheet(read_upload(tmp_path / "upload", CONFIG, channels=1))
    assert sheet.shape == (MASK_PIXELS, MASK_PIXELS)
    read = read_drawing(data_url(sheet))
    assert read is not None
    assert np.array_equal(read, sheet)


@pytest.mark.parametrize(
    "url",
    [
        3,
        "hello",
        "data:image/png;base64,???",
        "data:image/png;base64,aGVsbG8=",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:image/png;base64," + "A" * (1 << 20),
        data_url(np.zeros((999, 3), np.uint8)),
        "data:image/png;base64," + base64.b64encode(file_of(DISC)[:90]).decode(),
    ],
)
def test_a_drawing_that_is_none_is_said(url):
    with pytest.raises(UserError, match="draw"):
        read_drawing(url)


@pytest.mark.parametrize("url", ["", None, data_url(np.zeros((MASK_PIXELS, MASK_PIXELS), np.uint8))])
def test_an_untouched_sheet_is_no_drawing(url):
    assert read_drawing(url) is None


def test_the_command_says_what_it_would_serve_and_refuses_what_it_cannot(run):
    def said(*arguments):
        return CliRunner().invoke(app, ["app", *arguments])

    shown = said(str(run), "--dry-run", "--port", "7861")
    assert shown.exit_code == 0, shown.output
    assert "host: 127.0.0.1" in shown.output  # this machine alone unless told otherwise
    assert f"below {run}" in shown.output
    assert "serve the page on 127.0.0.1, port 7861, until Ctrl-C" in shown.output
    assert isinstance(said(str(run), "max_upload_mb=0", "--dry-run").exception, UserError)
    assert isinstance(said(str(run), "--port", "0", "--dry-run").exception, UserError)


@pytest.mark.parametrize("host", ["999.1.1.1", "no host", "192.0.2.7", "::7"])
def test_an_address_of_another_machine_is_refused_at_once(host):
    with pytest.raises(UserError, match=r"host is '.*'; expected an address of this machine.*; change --host"):
        run_app(AppConfig(run="nowhere", host=host))


def test_what_is_drawn_is_not_drawn_with_the_numbers_of_others(model):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(paint(model, asked(model)))
    assert torch.equal(before, torch.get_rng_state())
