"""The form of ``langdepth demo`` in a real browser, and its command."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import langdepth
from langdepth.camera import Camera
from langdepth.utils import files
from langdepth.utils.network import listen
from tests.browser import Browser
from tests.docs.things import ROOT
from tests.helpers import Run

DESK = ROOT / "examples/desk.jpg"
OWN_OF_GRADIO = "Method not implemented."  # its own line on the console


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody is
        patch.setenv("no_proxy", "")
        pytest.importorskip("gradio", reason="no gradio: pip install 'langdepth[demo]'")
        from langdepth.demo import make_demo, start

        blocks = make_demo(langdepth.load("tiny"), lambda: langdepth.load("wordepth-tiny"), folder)
        assert not blocks.analytics_enabled
        with listen("127.0.0.1", 0) as listening:
            port = listening.getsockname()[1]
        yield start(blocks, "127.0.0.1", port)
        blocks.close(verbose=False)


@pytest.fixture
def form(address: str, browser: Browser) -> Any:
    return browser.open(address, ready="button:has-text('Predict')")


def predicted(form: Any) -> Any:
    """The page in the form's frame."""
    form.get_by_role("button", name="Predict").click()
    frame = form.frame_locator("iframe.depth")
    frame.locator("html[data-ready]").wait_for(state="attached")
    return frame


@pytest.mark.slow
def test_a_photo(form: Any, browser: Browser, tmp_path: Path) -> None:
    form.locator("input[type=file]").first.set_input_files(DESK)
    form.get_by_role("button", name="Remove Image").or_(form.locator("img")).first.wait_for()
    form.get_by_label("Field of view").fill("75")
    form.get_by_label("What it shows").fill("an office with a zebra")
    frame = predicted(form)
    camera = partial(Camera.from_fov, 75)
    expected = langdepth.predict(DESK, text="an office with a zebra", camera=camera)
    with form.expect_download() as waiting:
        frame.locator("#as-npy").press("Enter")  # a mouse's click is lost while Chromium places a new frame
    waiting.value.save_as(tmp_path / "page.npy")
    np.testing.assert_allclose(np.load(tmp_path / "page.npy"), expected.depth, rtol=1e-6)
    assert "as given, 75 degrees" in frame.locator("#about").inner_text()
    assert form.get_by_text("unknown words are ignored: zebra").count() == 1
    with form.expect_download() as waiting:
        form.locator("a[download$='.npz']").first.click()
    waiting.value.save_as(tmp_path / "desk.npz")
    np.testing.assert_allclose(np.load(tmp_path / "desk.npz")["depth"], expected.depth, rtol=1e-6)
    # The frame reaches neither the form nor its address.
    inside = frame.locator("html").evaluate("() => { try { return parent.document.title } catch { return 'refused' } }")
    assert inside == "refused"
    assert [url for url in browser.requests if "127.0.0.1" not in url and not url.startswith(("data:", "blob:"))] == []
    assert set(browser.complaints) <= {OWN_OF_GRADIO}


@pytest.mark.slow
def test_a_sentence_alone_and_one_that_is_not_understood(form: Any) -> None:
    form.get_by_label("What it shows").fill("a bedroom with a bed")
    frame = predicted(form)
    assert frame.locator("h1").inner_text() == "depth"
    assert "a bedroom with a bed" in frame.locator("#about").inner_text()
    form.get_by_label("What it shows").fill("<b>xyzzy</b>")
    form.get_by_role("button", name="Predict").click()
    form.get_by_text("none of its words is known").wait_for()


@pytest.mark.slow
def test_what_is_no_photo(form: Any, tmp_path: Path) -> None:
    """The line is langdepth's, not one of Pillow, which gradio would ask first."""
    (tmp_path / "notes.png").write_text("notes of mine")
    form.locator("input[type=file]").first.set_input_files(tmp_path / "notes.png")
    form.get_by_role("button", name="Remove Image").or_(form.locator("img")).first.wait_for()
    form.get_by_role("button", name="Predict").click()
    line = form.get_by_text("notes.png: not an image")
    line.wait_for()
    assert line.inner_text().startswith("notes.png")


def test_what_was_not_uploaded_is_not_read(tmp_path: Path) -> None:
    """Whoever writes a request of his own may name any file of the machine; gradio checks some forms of it."""
    pytest.importorskip("gradio")
    import gradio
    from gradio.data_classes import ImageData

    from langdepth.demo import make_demo

    blocks = make_demo(langdepth.load("tiny"), lambda: langdepth.load("wordepth-tiny"), tmp_path)
    photo = next(one for one in blocks.blocks.values() if isinstance(one, gradio.Image))
    (tmp_path / "link.jpg").symlink_to(DESK)
    for path in (DESK, tmp_path / "link.jpg", tmp_path / ".." / "desk.jpg"):
        with pytest.raises(gradio.Error, match="not uploaded here"):
            photo.preprocess(ImageData(path=str(path)))
    assert photo.preprocess(ImageData(path=str(tmp_path / "desk.jpg"))) == str(tmp_path / "desk.jpg")
    assert photo.preprocess(None) is photo.preprocess(ImageData(url="data:image/png;base64,")) is None


def test_an_address_with_colons(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    from langdepth.demo import start

    monkeypatch.setenv("no_proxy", "intranet")
    said: dict[str, Any] = {}

    class Blocks:
        def launch(self, **options: Any) -> tuple[None, str, None]:
            said.update(options)
            return None, "http://[::1]:7/", None

    blocks: Any = Blocks()
    assert start(blocks, "::1", 7) == "http://[::1]:7/"
    assert (said["server_name"], os.environ["no_proxy"]) == ("[::1]", "intranet,::1,localhost")


def test_a_port_in_use_costs_one_line_and_no_time(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langdepth.demo", None)  # nothing is loaded
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = command("demo", "--port", port)
    assert (code, out) == (1, "")
    problem = f"127.0.0.1:{port}: cannot be listened at (Address already in use); give another --host or --port"
    assert err == f"langdepth demo: {problem}\n"
    for options, problem in (
        (["--port", 70000], "--port must lie between 0 and 65535"),
        (["--host", "no.such.invalid"], "no.such.invalid:7860"),
    ):
        code, _, err = command("demo", *options)
        assert code in (1, 2)
        assert problem in err
        assert err.count("\n") == 1


def test_without_gradio_one_line_says_what_to_install(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "langdepth.demo", raising=False)
    code, _, err = command("demo", "--port", 0)
    assert code == 2
    assert err == "langdepth demo: this needs gradio, which is not installed: pip install 'langdepth[demo]'\n"


def test_a_system_without_metres_is_refused(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    model = langdepth.load("tiny")
    model.scale_kind = "relative"
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # which the command sets for good
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda *_, **__: model)
    code, _, err = command("demo", "--port", 0, "--system", "other")
    assert code == 2
    assert "the system 'other' does not give metres from a photo alone" in err
    made = Path(os.environ["GRADIO_TEMP_DIR"])
    assert files._OWNED.fullmatch(made.name), "what a killed one leaves is known by its name"
    assert not made.exists()
