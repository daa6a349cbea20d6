"""The page in a browser: what tests do in it, and the picture of it in docs/app.md.

python -m tools.page_picture RUN docs/results/app.png
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT_S = 60.0
INSTALL = "sudo apt-get install -y chromium chromium-driver (Ubuntu: chromium-browser chromium-chromedriver)"
# A figure eight, pixels of the sheet from one bend to the next.
_EIGHT = [
    (22, 16),
    (0, 28),
    (-44, 36),
    (-22, 32),
    (0, 22),
    (26, 22),
    (40, 0),
    (22, -28),
    (-16, -28),
    (-48, -36),
    (-2, -36),
]


class Browser:
    """A headless Chromium, and what a user does with the page in it."""

    def __init__(self, downloads: Path) -> None:
        from selenium import webdriver

        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        driver = shutil.which("chromedriver")
        if chromium is None or driver is None:
            raise RuntimeError(f"found chromium at {chromium}, chromedriver at {driver}; expected both; {INSTALL}")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        self.downloads = downloads

    def open(self, url: str, *, width: int = 1280) -> None:
        """Open the page on a screen so many pixels wide, once it can be used."""
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(url)
        self.find("#paint")
        self.find("#pad canvas", shown=False)

    def find(self, selector: str, *, shown: bool = True) -> Any:
        """The first such element, once it is there (and can be seen)."""

        def look() -> Any:
            for element in self.driver.find_elements("css selector", selector):
                if not shown or element.is_displayed():
                    return element
            return None

        return self.until(look, selector)

    def until(self, look: Callable[[], Any], what: str) -> Any:
        """What `look` finds, waited for; elements may be replaced while it looks."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            try:
                if found := look():
                    return found
            except StaleElementReferenceException:
                pass
            time.sleep(0.05)
        said = self.driver.find_element("css selector", "body").text
        raise AssertionError(f"{what}: not found within {WAIT_S:g} s on the page that says {said[:500]!r}")

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script on the page returns."""
        return self.driver.execute_script(script, *arguments)

    def choose(self, group: str, text: str) -> None:
        """Click the radio button or check box of a group that is called so."""

        def look() -> Any:
            labels = self.driver.find_elements("css selector", f"{group} label")
            return next((label for label in labels if label.text.strip() == text), None)

        label = self.until(look, f"{text} in {group}")
        self.run("arguments[0].scrollIntoView({block: 'center'})", label)
        label.click()
        self.until(lambda: look().find_element("css selector", "input").is_selected(), f"{text} chosen in {group}")

    def said(self, text: str) -> str:
        """What the page says, once it holds this text."""

        def look() -> str | None:
            found = str(self.driver.find_element("css selector", "#said").text)
            return found if text in found else None

        return self.until(look, f"saying {text!r}")

    def paint(self) -> None:
        """Press the button and wait until everything is painted and can be downloaded."""
        self.find("#paint").click()
        self.said(" in ")
        self.find("#download")

    def draw(self, *moves: tuple[int, int], start: tuple[int, int] = (0, 0)) -> None:
        """Draw on the sheet with the pointer, from a place beside its middle on."""
        from selenium.webdriver.common.action_chains import ActionChains

        canvas = self.find("#pad canvas")
        self.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
        pen = ActionChains(self.driver).move_to_element_with_offset(canvas, *start).click_and_hold()
        for x, y in moves:
            pen = pen.move_by_offset(x, y)
        pen.release().perform()

    def upload(self, button: str, file: Path) -> None:
        """Give a file to the button that is called so."""
        self.driver.find_element("css selector", f"input[type=file][data-testid^='{button}']").send_keys(str(file))

    def picture(self, file: Path) -> None:
        """All of the page as a PNG file, as wide as it was opened."""
        self.run("document.activeElement.blur()")
        width, height = self.run("return [innerWidth, document.documentElement.scrollHeight]")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.save_screenshot(str(file))

    def mistakes(self) -> list[str]:
        """What the console holds of errors and warnings, since it was last asked."""
        logged: Any = self.driver.get_log("browser")  # pyright: ignore[reportAttributeAccessIssue]
        return [entry["message"] for entry in logged if entry["level"] in ("SEVERE", "WARNING")]

    def hosts(self) -> set[str]:
        """Hosts that anything was asked of, data URLs left out."""
        logged: Any = self.driver.get_log("performance")  # pyright: ignore[reportAttributeAccessIssue]
        events = [json.loads(entry["message"])["message"] for entry in logged]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return {url.split("/")[2].split(":")[0] for url in urls if not url.startswith(("data:", "blob:", "chrome"))}

    def tiles(self) -> list[str]:
        """What is under each picture."""
        return [
            " ".join(element.text.split())
            for element in self.driver.find_elements("css selector", "label.tile .caption")
        ]


def main(run: str, output: str) -> None:
    """Draw a mask on the page of a run, paint, and write what is to be seen as a PNG file."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        from nvg import load
        from pipelines.app.page import build_page, serve
        from pipelines.app.settings import AppConfig

        config = AppConfig(run=run)
        page = build_page(load(run), config)
        browser = Browser(Path(folder))
        try:
            browser.open(serve(page, config))
            browser.choose("#follows", "a drawing")
            browser.draw(*_EIGHT, start=(-14, -92))
            for label in ("3", "8"):
                browser.choose("#classes", label)
            browser.choose("#beside", "4")
            browser.paint()
            time.sleep(1)  # the newest frame fades in
            browser.picture(Path(output))
        finally:
            browser.driver.quit()
            page.close(verbose=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
