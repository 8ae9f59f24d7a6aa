"""The page of docs/try, built and used in a real browser."""

from __future__ import annotations

import contextlib
import importlib.util
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import langdepth
from langdepth.prediction.results import DepthResult
from tests.browser import Browser, click, downloaded
from tests.docs.things import ROOT

DESK = ROOT / "examples/desk.jpg"
pytestmark = pytest.mark.slow


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def builder() -> Any:
    spec = importlib.util.spec_from_file_location("build_try", ROOT / "docs/try/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(builder: Any, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("try")
    try:
        builder.build(folder)
    except SystemExit as end:
        pytest.skip(str(end.code))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield browser.open(f"http://127.0.0.1:{server.server_port}/")
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def shown(page: Any) -> Iterator[None]:
    """Wait until what is done inside has changed the map."""
    count = int(page.evaluate("document.documentElement.dataset.shown || 0"))
    yield
    page.wait_for_selector(f"html[data-shown='{count + 1}']", state="attached")


@pytest.fixture
def desk(page: Any) -> Any:
    if "desk" not in str(page.evaluate("document.getElementById('file').value")):
        with shown(page):
            page.set_input_files("#file", DESK)
    return page


def test_depth_is_that_of_the_command_line(desk: Any, browser: Browser, tmp_path: Path) -> None:
    host = desk.url
    for steer, options in (
        (None, {}),
        (lambda: desk.fill("#words", "a street with cars and a zebra"), {"text": "a street with cars"}),
        (lambda: desk.select_option("#scene", "bathroom"), {"scene": "bathroom"}),
    ):
        if steer:
            with shown(desk):
                steer()
        expected = langdepth.predict(DESK, **options)
        assert isinstance(expected, DepthResult)
        found = np.load(downloaded(desk, "#as-npy", tmp_path))
        if "text" not in options:  # the zebra is an unknown word, which has a number of its own
            np.testing.assert_allclose(found, expected.depth, rtol=1e-3)
        median = float(desk.locator("#median b").inner_text().removesuffix(" m"))
        assert median == pytest.approx(float(np.median(found)), abs=0.006)
    assert "without words" in desk.locator("#median").inner_text()
    with shown(desk):
        desk.fill("#words", "a street with cars")
    assert desk.locator("#scene").input_value() == "read from the photo" or desk.locator("#scene").input_value() == ""
    street = langdepth.predict(DESK, text="a street with cars")
    assert isinstance(street, DepthResult)
    np.testing.assert_allclose(np.load(downloaded(desk, "#as-npy", tmp_path)), street.depth, rtol=1e-3)
    assert browser.complaints == []
    assert all(url.startswith((host, "blob:", "data:")) for url in browser.requests)


def test_unknown_words_are_named(desk: Any) -> None:
    with shown(desk):
        desk.fill("#words", "A Kitchen, with a xylophone!")
    assert desk.locator("#unknown").inner_text() == "Unknown words, ignored: xylophone"
    with shown(desk):
        desk.fill("#words", "a kitchen with a table " * 5)
    assert desk.locator("#unknown").inner_text().endswith("25 words, of which the first 24 are taken")
    with shown(desk):
        desk.fill("#words", "Küche in der Wohnung")
    assert desk.locator("#unknown").inner_text().startswith("None of these words is known")
    assert "without words" not in desk.locator("#median").inner_text()


def test_the_ruler_takes_the_field_of_view(desk: Any, tmp_path: Path) -> None:
    with shown(desk):
        desk.fill("#fov", "90")
        desk.locator("#fov").press("Enter")
    a, b = click(desk, "#photo .stage", 0.3, 0.8), click(desk, "#depth .stage", 0.7, 0.4)
    depth = np.load(downloaded(desk, "#as-npy", tmp_path))
    points = langdepth.Camera.from_fov(90, 640, 480).unproject(depth)
    expected = float(np.linalg.norm(points[a[1], a[0]] - points[b[1], b[0]]))
    assert float(desk.locator("#ruler b").get_attribute("data-metres")) == pytest.approx(expected, rel=1e-5)
    assert "guess" not in desk.locator("#ruler").inner_text()


def test_nothing_can_be_sent(page: Any, browser: Browser) -> None:
    tried = "fetch('http://127.0.0.1:9/', {method: 'POST', body: 'x'}).then(() => 'sent', () => 'refused')"
    assert page.evaluate(tried) == "refused"
    assert any("Content Security Policy" in line for line in browser.complaints)
    browser.complaints.clear()


def test_fields_have_names(page: Any) -> None:
    named = "all => all.filter(one => one.offsetParent).map(one => (one.labels[0] || one).textContent.trim())"
    assert all(page.locator("button, input, select").evaluate_all(named))
    page.locator("#file").focus()
    order = []
    for _ in range(5):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    assert order == ["example", "words", "scene", "fixed", "fov"]


def test_what_is_no_photo_is_refused(desk: Any, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("RGB", (20, 90)).save(tmp_path / "small.png")
    for name, complaint in (
        ("text.jpg", "text.jpg cannot be used: "),
        ("small.png", "20 x 90 pixels, and 32 x 32 are the"),
    ):
        desk.set_input_files("#file", tmp_path / name)
        desk.locator("#state", has_text=complaint).wait_for()
    with shown(desk):
        desk.locator("#example").click()
    assert not desk.locator("#state").is_visible()


def test_a_large_photo_is_made_smaller(page: Any, tmp_path: Path) -> None:
    with Image.open(DESK) as image:
        image.resize((2400, 1800)).save(tmp_path / "large.jpg")
    with shown(page):
        page.set_input_files("#file", tmp_path / "large.jpg")
    assert np.load(downloaded(page, "#as-npy", tmp_path)).shape == (866, 1154)
    assert "2400 x 1800 pixels" in page.locator("#about").inner_text()


def test_another_archive_is_refused(builder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as archive:
        archive.add(DESK, "package/dist/ort.wasm.min.mjs")
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\ncp "{tmp_path}/other.tgz" .\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(SystemExit, match=r"has the hash sha512-.*; nothing is written"):
        builder.fetch_runtime(tmp_path / "runtime")
    assert not (tmp_path / "runtime").exists()
    npm.write_text("#!/bin/sh\necho no network >&2; exit 1\n")
    with pytest.raises(SystemExit, match=r"npm pack onnxruntime-web@.* failed: no network"):
        builder.fetch_runtime(tmp_path / "runtime")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match="npm is not installed"):
        builder.fetch_runtime(tmp_path / "runtime")
