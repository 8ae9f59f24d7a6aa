"""Pages in a real Chromium, without a window, and what went wrong there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without a graphics card and, as root, without the sandbox.
SWITCHES = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
READY = "html[data-ready]"


class Browser:
    """One Chromium. ``complaints``: what pages wrote to the console; ``requests``: all that they asked for."""

    def __init__(self, chromium: Any) -> None:
        self.chromium = chromium
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def open(self, place: str | Path, *, ready: str = READY, **context: Any) -> Any:
        """A page once it is ready. ``context``: options of playwright's ``new_context``."""
        self.complaints, self.requests = [], []
        page = self.chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, **context}).new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda message: self.complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(place.resolve().as_uri() if isinstance(place, Path) else place, wait_until="commit")
        try:
            page.wait_for_selector(ready, state="attached", timeout=240_000)
        except Exception as error:
            raise AssertionError(f"not ready: {error}; {self.complaints}") from error
        return page


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium of the system; skips the test where there is none, or nothing to drive it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'langdepth[dev]'")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=list(SWITCHES))
        yield Browser(chromium)
        chromium.close()


def click(page: Any, stage: str, x: float, y: float) -> tuple[int, int]:
    """Click at a place from 0 to 1 of a stage, a selector; returns the pixel of the photo that the page names."""
    box = page.locator(stage).bounding_box()
    page.locator(stage).click(position={"x": x * box["width"], "y": y * box["height"]})
    named = re.match(r"x (\d+), y (\d+): ", page.locator("#readout").inner_text())
    return int(named[1]), int(named[2])


def downloaded(page: Any, button: str, folder: Path) -> Path:
    """The file that a click on a button gives."""
    with page.expect_download() as waiting:
        page.locator(button).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path
