"""The page in a real browser, headless Chromium: drawing, painting, downloads, uploads, keyboard, a narrow screen."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from nvg.errors import UserError
from nvg.model import Model, load
from pipelines.app.page import build_page, serve
from pipelines.app.painting import paint
from pipelines.app.settings import AppConfig, ask
from tools.page_picture import Browser

pytestmark = [pytest.mark.page, pytest.mark.slow, pytest.mark.timeout(300)]

# The environment of the command line, of which the page's own sees the packages; or both are one.
FIRST = Path(sys.prefix.removesuffix("-app")) / "bin" / "python"
ROOT = Path(__file__).parents[3]
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass
class Served:
    """The page under test, and which hosts its server asked for anything."""

    url: str
    config: AppConfig
    asked_of: list[str]


@pytest.fixture(scope="session")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the session, in threads of this process."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
    asked_of: list[str] = []
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            asked_of.append(str(address[0]))
        connect(self, address)

    patch.setattr(socket.socket, "connect", noted)
    config = AppConfig(run=str(run), device="cpu", max_upload_mb=0.5, max_megapixels=1)
    page = build_page(load(run, device="cpu"), config)
    yield Served(serve(page, config), config, asked_of)
    page.close(verbose=False)
    patch.undo()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for the session; it is never skipped: what is missing is said."""
    browser = Browser(tmp_path_factory.mktemp("downloads"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def page(chromium: Browser, served: Served) -> Iterator[Browser]:
    """The page, freshly opened, which must leave no mistake in the console."""
    chromium.open(served.url)
    chromium.mistakes()
    yield chromium
    assert chromium.mistakes() == []


def downloaded(browser: Browser) -> zipfile.ZipFile:
    before = set(browser.downloads.glob("*.zip"))
    browser.find("#download").click()
    (file,) = browser.until(lambda: set(browser.downloads.glob("*.zip")) - before, "a download")
    return zipfile.ZipFile(io.BytesIO(file.read_bytes()))


def pixels(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def test_opening_it_leaves_no_mistake_and_asks_nobody_else(chromium, served):
    chromium.mistakes()
    chromium.hosts()
    chromium.open(served.url)
    chromium.paint()
    assert chromium.mistakes() == []
    assert chromium.hosts() == {"127.0.0.1"}
    assert served.asked_of == []
    assert served.url.startswith("http://127.0.0.1:")


def test_a_drawn_mask_is_painted_and_taken_home(page, served, model: Model):
    page.choose("#follows", "a drawing")
    page.draw((50, 30), (-40, 40), (-40, -40))
    page.choose("#classes", "3")
    page.paint()
    assert page.tiles() == ["0 seed 0", "3 seed 0"]
    assert "your mask" in page.find(".tile.given").text
    with downloaded(page) as zipped:
        names = set(zipped.namelist())
        assert {"seed-0/settings.yaml", "seed-0/mask.png", "seed-0/0-000.png", "seed-0/3-000-map.npy"} <= names
        mask = pixels(zipped.read("seed-0/mask.png"))
        image = pixels(zipped.read("seed-0/3-000.png"))
    assert mask.shape == (256, 256)
    assert 0.02 < (mask > 127).mean() < 0.9
    wanted = ask(model, served.config, classes=[0, 3], seed=0, side_by_side=1, follows="mask", mask=mask, stages=1)
    *_, painting = paint(model, wanted)
    assert np.array_equal(painting.pictures[1].frames[-1].image_HWC[..., 0], image)


def test_stages_appear_one_after_the_other(page):
    page.run(
        """window.seen = [];
        new MutationObserver(() => window.seen.push(document.querySelectorAll('#strip-0 .frame:not(.map) img').length))
          .observe(document.querySelector('#easel'), {childList: true, subtree: true});"""
    )
    page.paint()
    seen = page.run("return window.seen")
    assert sorted(seen) == seen
    assert len(set(seen) & {1, 2, 3, 4}) >= 2, seen  # some may come within one frame of the screen
    assert seen[-1] == 5
    assert len(page.driver.find_elements("css selector", "#strip-0 .map img")) == 5


def test_seeds_stand_side_by_side_and_each_shows_its_stages(page):
    page.choose("#beside", "3")
    page.paint()
    assert page.tiles() == ["0 seed 0", "0 seed 1", "0 seed 2"]
    page.find("label.tile:has(#tile-1)").click()
    assert page.find("#strip-1").is_displayed()
    assert not page.find("#strip-2", shown=False).is_displayed()
    left = page.run("return [...document.querySelectorAll('label.tile')].map(e => e.getBoundingClientRect().left)")
    assert left == sorted(set(left))


def test_a_part_of_a_picture_is_painted_anew(page, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60), np.uint8)).save(tmp_path / "mine.png")
    page.choose("#follows", "part of a picture")
    page.upload("Choose a picture", tmp_path / "mine.png")
    page.said("Draw over what is to be painted anew.")
    page.draw((40, 0), (0, 40))
    page.paint()
    assert "the kept part" in page.find(".tile.given").text
    with downloaded(page) as zipped:
        assert {"seed-0/picture.png", "seed-0/keep.png"} <= set(zipped.namelist())


def test_the_command_line_makes_the_same_bytes_in_its_own_environment(page, tmp_path):
    """There with the Pillow that records and scores are made with, here with one that Gradio takes."""
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (150, 60, 3), np.uint8)).save(tmp_path / "tall.jpg")
    page.choose("#follows", "part of a picture")
    page.upload("Choose a picture", tmp_path / "tall.jpg")
    page.said("Draw over")
    page.draw((40, 0), (0, 40))
    page.choose("#classes", "8")
    page.paint()
    with downloaded(page) as zipped:
        zipped.extractall(tmp_path)
    folder = tmp_path / "seed-0"
    command = [str(FIRST), "-m", "pipelines.cli", "sample", "--config", "settings.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=120)
    for name in ("0-000.png", "8-000.png"):
        assert (folder / name).read_bytes() == (folder / "samples" / name).read_bytes()


def test_a_picture_gives_its_structure(page, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)).save(tmp_path / "mine.jpg")
    page.choose("#follows", "a picture")
    page.upload("Choose a picture", tmp_path / "mine.jpg")
    page.find("#picture img")
    page.choose("#stages", "2")
    page.paint()
    assert "2 stages given" in page.find(".tile.given").text


def test_an_uploaded_mask_lies_on_the_sheet(page, tmp_path):
    mask = np.zeros((80, 80), np.uint8)
    mask[:, :40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    page.choose("#follows", "a drawing")
    page.upload("Upload a mask", tmp_path / "mask.png")
    page.said("The mask is on the sheet.")
    share = """const ink = document.querySelector('#pad canvas').getContext('2d');
        const d = ink.getImageData(0, 0, 256, 256).data;
        let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 127; return n / 65536;"""
    page.until(lambda: abs(page.run(share) - 0.5) < 0.01, "half a sheet of ink")
    page.paint()
    page.find("#pad .clear").click()
    page.find("#paint").click()
    page.said("there is no mask yet; draw on the sheet")


@pytest.mark.parametrize("kind", ["animated", "huge", "empty", "text"])
def test_an_upload_that_cannot_be_used_is_said_on_the_page(page, tmp_path, kind):
    file = tmp_path / f"{kind}.gif"
    if kind == "animated":
        frames = [Image.fromarray(np.full((9, 9), level, np.uint8)) for level in (0, 200)]
        frames[0].save(file, save_all=True, append_images=frames[1:])
    elif kind == "huge":
        Image.fromarray(np.zeros((2000, 2000), np.uint8)).save(file)
    else:
        file.write_bytes({"empty": b"", "text": b"no picture"}[kind])
    said = {
        "animated": "the picture is animated",
        "huge": "4.0 megapixels, expected at most 1",
        "empty": "the file is empty",
        "text": "the file is no picture",
    }
    page.choose("#follows", "a picture")
    page.upload("Choose a picture", file)
    page.said(said[kind])
    page.find("#paint").click()
    page.said("there is no picture yet")


def test_a_file_of_too_many_bytes_is_said_and_not_sent(page, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(700_000))
    Image.fromarray(np.zeros((50, 60), np.uint8)).save(tmp_path / "small.png")
    page.choose("#follows", "a picture")
    for _ in range(2):
        page.upload("Choose a picture", tmp_path / "large.png")
        page.said("the file has 0.7 MB; expected at most 0.5 MB; send a smaller one")
    page.upload("Choose a picture", tmp_path / "small.png")
    page.said("Cut to the model's square.")
    page.upload("Choose a picture", tmp_path / "large.png")
    page.said("send a smaller one")
    page.find("#paint").click()
    assert "send a smaller one" not in page.said(" in ")


def test_a_file_of_too_many_bytes_is_not_taken_from_anybody(served):
    ends = [b"--x\r\ncontent-disposition: form-data; name=files; filename=a.png\r\n\r\n", b"\r\n--x--\r\n"]
    request = Request(f"{served.url}gradio_api/upload", ends[0] + bytes(700_000) + ends[1])
    request.add_header("content-type", "multipart/form-data; boundary=x")
    with pytest.raises(HTTPError) as refused:
        urlopen(request)
    assert refused.value.code == 413


def test_a_wrong_wish_is_said_and_the_next_one_painted(page):
    page.choose("#classes", "1")
    page.run("document.querySelectorAll('#classes input:checked').forEach(box => box.click())")
    page.until(lambda: not page.driver.find_elements("css selector", "#classes input:checked"), "no class")
    page.find("#paint").click()
    page.said("classes is []; expected 1 to 4 classes")
    page.choose("#classes", "8")
    page.paint()
    assert page.tiles() == ["8 seed 0"]


def test_the_keyboard_alone_draws_and_paints(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys: str) -> None:
        ActionChains(page.driver).send_keys(*keys).perform()

    def tab_to(selector: str) -> None:
        for _ in range(60):
            if page.run("return document.activeElement.matches(arguments[0])", selector):
                return
            press(Keys.TAB)
        raise AssertionError(f"{selector} cannot be reached by Tab")

    tab_to("#classes input")
    press(Keys.TAB, Keys.TAB, Keys.SPACE)
    tab_to("#follows input[value='mask']")
    press(Keys.SPACE)
    tab_to("#pad canvas")
    ActionChains(page.driver).key_down(Keys.SHIFT).send_keys(*[Keys.ARROW_DOWN] * 6).key_up(Keys.SHIFT).perform()
    press(Keys.ARROW_RIGHT, Keys.SPACE)
    tab_to("#paint")
    press(Keys.ENTER)
    page.said(" in ")
    assert page.tiles() == ["0 seed 0", "2 seed 0"]
    tab_to("label.tile input")
    press(Keys.ARROW_RIGHT)
    assert page.find("#strip-1").is_displayed()
    tab_to("#download, #download *")


def test_a_narrow_screen_needs_no_scrolling_sideways(chromium, served):
    chromium.open(served.url, width=400)
    chromium.choose("#follows", "a drawing")
    chromium.draw((40, 0), (0, 60))
    chromium.choose("#beside", "4")
    chromium.paint()
    assert chromium.run("return document.documentElement.scrollWidth") <= 400
    wide = """return [...document.querySelectorAll('#main *')]
        .filter(e => e.offsetParent && e.getBoundingClientRect().right > 400).map(e => e.outerHTML.slice(0, 80))"""
    assert chromium.run(wide) == []
    assert chromium.mistakes() == []


def test_stop_ends_it_and_the_next_click_paints(page, monkeypatch):
    def slowly(*wanted):
        for painting in paint(*wanted):
            time.sleep(0.5)
            yield painting

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.app.page.paint", slowly)
        page.find("#paint").click()
        page.find("#strip-0 .map img")
        page.find("#stop").click()
        page.said("Stopped.")
    time.sleep(1.5)
    assert len(page.driver.find_elements("css selector", "#strip-0 .map img")) < 5
    assert not page.find("#stop", shown=False).is_displayed()
    page.paint()
    assert len(page.driver.find_elements("css selector", "#strip-0 .map img")) == 5


def test_a_port_that_is_taken_is_said(served, model: Model):
    taken = AppConfig(port=int(served.url.strip("/").rsplit(":", 1)[1]))
    page = build_page(model, taken)
    with pytest.raises(UserError, match=r"127\.0\.0\.1, port \d+: the page cannot listen there, it is taken"):
        serve(page, taken)


def test_the_command_serves_the_page_until_ctrl_c(run, a_terminal):
    command = [str(FIRST), "-m", "pipelines.cli", "app", str(run), "device=cpu"]
    started = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert started.stdout is not None
        said = re.match(r"The page is at (http://127\.0\.0\.1:\d+/) · Ctrl-C ends it\n", started.stdout.readline())
        assert said, started.communicate(timeout=60)
        with urlopen(said[1]) as page:
            assert b"NVG" in page.read()
            assert "default-src 'self'" in page.headers["content-security-policy"]
        started.send_signal(signal.SIGINT)
        _, warned = started.communicate(timeout=60)
    finally:
        started.kill()
    assert "Traceback" not in warned
    assert started.returncode in (0, 130), warned


def test_licences_of_imported_weights_are_shown(chromium, model: Model):
    config = AppConfig()
    page = build_page(replace(model, notices=["The weights are <b>theirs</b>: no commerce."]), config)
    try:
        chromium.open(serve(page, config))
        assert chromium.find("#notes").text == "The weights are <b>theirs</b>: no commerce."
    finally:
        page.close(verbose=False)


def test_two_pages_at_once_do_not_mix(chromium, served):
    first = chromium.driver.current_window_handle
    chromium.open(served.url)
    chromium.choose("#classes", "5")
    chromium.driver.switch_to.new_window("tab")
    second = chromium.driver.current_window_handle
    chromium.open(served.url)
    chromium.choose("#classes", "7")
    chromium.find("#paint").click()
    chromium.driver.switch_to.window(first)
    chromium.paint()
    assert chromium.tiles() == ["0 seed 0", "5 seed 0"]
    chromium.driver.switch_to.window(second)
    chromium.said(" in ")
    assert chromium.tiles() == ["0 seed 0", "7 seed 0"]
    chromium.driver.close()
    chromium.driver.switch_to.window(first)
    assert chromium.mistakes() == []
