"""The page that ``--save html`` writes, in a real browser."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import langdepth
from langdepth.camera import Camera
from langdepth.errors import UsageError
from langdepth.prediction import page as pages
from langdepth.prediction.options import ColorScale
from langdepth.prediction.page import page_pixels
from langdepth.prediction.results import DepthResult, is_own_result, write_result
from langdepth.utils.depth_files import read_depth16
from tests.browser import Browser, click, downloaded

DESK = Path(__file__).parents[2] / "examples/desk.jpg"
PHOTO, DEPTH, SPACE = (f"#{name} .stage" for name in ("photo", "depth", "space"))
HOSTILE = """</script><script>document.title="owned"</script><img src=x onerror=alert(1)>"'&$title.jpg"""


@pytest.fixture(scope="module")
def desk() -> DepthResult:
    result = langdepth.predict(DESK, scene="office")
    assert isinstance(result, DepthResult)
    result.depth[:20, :30] = 0
    height, width = result.depth.shape
    return replace(result, camera=Camera(fx=520, fy=500, cx=300, cy=250, width=width, height=height))


@pytest.fixture(scope="module")
def desk_page(desk: DepthResult, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return browser.open(write_result(desk, tmp_path_factory.mktemp("page") / "desk.html"))


def made(depth: npt.NDArray[np.float32], **changes: Any) -> DepthResult:
    image = np.full((*depth.shape, 3), 90, np.uint8)
    return DepthResult(**{"depth": depth, "valid": depth > 0, "system": "fake", "image": image, **changes})


def metres(page: Any) -> float:
    return float(page.locator("#ruler b").get_attribute("data-metres"))


def apart(result: DepthResult, a: tuple[int, int], b: tuple[int, int]) -> float:
    assert result.camera is not None
    points = result.camera.unproject(result.depth).astype(np.float64)
    return float(np.linalg.norm(points[a[1], a[0]] - points[b[1], b[0]]))


def test_a_photo_and_its_depth(desk: DepthResult, desk_page: Any, browser: Browser, tmp_path: Path) -> None:
    assert browser.complaints == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in browser.requests)
    assert np.array_equal(np.load(downloaded(desk_page, "#as-npy", tmp_path)), desk.depth)
    own = write_result(desk, tmp_path / "own.png")
    png = downloaded(desk_page, "#as-png", tmp_path)
    assert (png.name, read_depth16(png)[1]) == ("desk_depth.png", 0.001)
    assert np.array_equal(np.asarray(Image.open(png)), np.asarray(Image.open(own)))
    assert is_own_result(png)
    shown = desk_page.evaluate(
        f"[...document.querySelector('{PHOTO} canvas').getContext('2d').getImageData(320,240,1,1).data]"
    )
    assert desk.image is not None
    np.testing.assert_allclose(shown[:3], desk.image[240, 320], atol=12)  # JPEG
    about = desk_page.locator("#about").inner_text()
    assert "scene given\noffice" in about
    assert "licence of its weights\nresearch and non-commercial use only" in about


def test_the_pointer_reads_metres(desk: DepthResult, desk_page: Any) -> None:
    for stage in (PHOTO, DEPTH):
        box = desk_page.locator(stage).bounding_box()
        desk_page.mouse.move(box["x"] + 470.5 / 640 * box["width"], box["y"] + 150.5 / 480 * box["height"])
        assert desk_page.locator("#readout").inner_text() == f"x 470, y 150: {desk.depth[150, 470]:.3f} m"
        assert desk_page.locator(f"{DEPTH} .cross").inner_text() == f"{desk.depth[150, 470]:.3f} m"
    desk_page.mouse.move(box["x"] + 3, box["y"] + 3)
    assert desk_page.locator("#readout").inner_text() == "x 3, y 3: no value"


def test_the_ruler_is_that_of_the_camera(desk: DepthResult, desk_page: Any) -> None:
    desk_page.locator("#clear").click() if desk_page.locator("#clear").is_enabled() else None
    a = click(desk_page, PHOTO, 0.3, 0.8)
    assert a == (pytest.approx(0.3 * 640, abs=2), pytest.approx(0.8 * 480, abs=2))
    assert desk_page.locator("#ruler").inner_text() == "Set the second point."
    b = click(desk_page, DEPTH, 0.75, 0.3)
    assert metres(desk_page) == pytest.approx(apart(desk, a, b), rel=1e-6)
    assert desk.camera is not None
    x, y, z = (f"{value:.3f}" for value in desk.camera.unproject(desk.depth)[a[1], a[0]])
    assert desk_page.locator("#points tbody").inner_text().split()[:6] == ["A", f"{a[0]},", f"{a[1]}", x, y, z]

    # Dragging B moves it, and sets no other point.
    box = desk_page.locator(DEPTH).bounding_box()
    mark = desk_page.locator(f"{DEPTH} .mark[data-point='1']").bounding_box()
    desk_page.mouse.move(mark["x"] + 11, mark["y"] + 11)
    desk_page.mouse.down()
    desk_page.mouse.move(box["x"] + 330.5 / 640 * box["width"], box["y"] + 300.5 / 480 * box["height"])
    desk_page.mouse.up()
    b = tuple(map(int, re.findall(r"\d+", desk_page.locator("#points tr:last-child td").first.inner_text())))
    assert b == (pytest.approx(330, abs=2), pytest.approx(300, abs=2))
    assert metres(desk_page) == pytest.approx(apart(desk, a, b), rel=1e-6)
    click(desk_page, PHOTO, 0.01, 0.01)  # a third point begins anew
    assert desk_page.locator("#ruler").inner_text() == "There is no depth at a point; set another."


def test_keys_do_what_the_pointer_does(desk: DepthResult, desk_page: Any) -> None:
    desk_page.locator(DEPTH).focus()
    desk_page.keyboard.press("Escape")
    assert desk_page.locator("#ruler").inner_text() == "No points yet."
    desk_page.locator(PHOTO).focus()
    desk_page.keyboard.press("Tab")
    assert desk_page.evaluate("document.activeElement.parentElement.id") == "depth"
    for key in ("Enter", *["Shift+ArrowRight"] * 3, "ArrowLeft", "Shift+ArrowDown", "ArrowUp", "Space"):
        desk_page.keyboard.press(key)
    assert desk_page.locator("#readout").inner_text() == f"x 349, y 249: {desk.depth[249, 349]:.3f} m"
    assert metres(desk_page) == pytest.approx(apart(desk, (320, 240), (349, 249)), rel=1e-6)
    order = [desk_page.evaluate("document.activeElement.id || document.activeElement.parentElement.id")]
    for _ in range(7):
        desk_page.keyboard.press("Tab")
        order.append(desk_page.evaluate("document.activeElement.id || document.activeElement.parentElement.id"))
    assert order == ["depth", "by-depth", "as-points", "reset", "space", "clear", "as-png", "as-npy"]


def test_screen_readers_get_names(desk_page: Any) -> None:
    for role, name in (
        ("heading", "desk.jpg"),
        ("application", "Photo with a cross to move"),
        ("application", "Depth map with a cross to move"),
        ("application", "3D view of the depth map"),
        ("checkbox", "depth colors"),
        ("button", "16-bit PNG"),
    ):
        assert desk_page.get_by_role(role, name=name, exact=True).count() == 1, name
    assert re.fullmatch(r"Colors from [\d.]+ m to [\d.]+ m", desk_page.locator("#legend").get_attribute("aria-label"))
    for stage in (PHOTO, DEPTH, SPACE):
        assert desk_page.locator("#" + desk_page.locator(stage).get_attribute("aria-describedby")).inner_text()
    assert desk_page.locator("#readout").get_attribute("aria-live") == "polite"
    assert desk_page.evaluate("document.documentElement.lang") == "en"
    named = "all => all.map(one => one.textContent.trim() || one.labels[0]?.textContent.trim())"
    assert all(desk_page.locator("button, input").evaluate_all(named))


@pytest.mark.slow
def test_the_space_turns(desk: DepthResult, desk_page: Any) -> None:
    def picture() -> str:
        drawn = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        desk_page.evaluate(drawn)
        content: str = desk_page.evaluate(f"document.querySelector('{SPACE} canvas').toDataURL()")
        return content

    desk_page.locator("#reset").click()
    first = picture()
    assert len(first) > 20_000  # not one color
    desk_page.locator(SPACE).focus()
    for keys in (["ArrowLeft"], ["Shift+ArrowUp"], ["+"], ["-", "-"]):
        before = picture()
        for key in keys:
            desk_page.keyboard.press(key)
        assert picture() != before, keys
    desk_page.keyboard.press("0")
    assert picture() == first
    desk_page.locator("#as-points").check()
    assert picture() != first
    desk_page.locator("#as-points").uncheck()
    box = desk_page.locator(SPACE).bounding_box()
    desk_page.mouse.move(box["x"] + 100, box["y"] + 100)
    desk_page.mouse.down()
    desk_page.mouse.move(box["x"] + 180, box["y"] + 100)
    desk_page.mouse.up()
    assert picture() != first


def test_the_ruler_lies_on_the_surface_in_space(browser: Browser, tmp_path: Path) -> None:
    """A white pixel pair on black: the marks lie where the surface is white."""
    depth = np.tile(np.linspace(2, 3, 64, dtype=np.float32), (48, 1))
    image = np.zeros((48, 64, 3), np.uint8)
    image[20:25, 28:37] = 255
    page = browser.open(write_result(made(depth, image=image), tmp_path / "a.html"))
    for x in (32, 33):
        click(page, DEPTH, (x + 0.5) / 64, 22.5 / 48)
    place, mark = page.locator(SPACE).bounding_box(), page.locator(f"{SPACE} .mark").first.bounding_box()
    at = (mark["x"] + 11 - place["x"]) / place["width"], (mark["y"] + 11 - place["y"]) / place["height"]
    white = page.evaluate(
        """async ([selector, x, y]) => {
            const canvas = document.querySelector(selector), copy = document.createElement("canvas");
            [copy.width, copy.height] = [canvas.width, canvas.height];
            copy.getContext("2d").drawImage(canvas, 0, 0);
            return copy.getContext("2d").getImageData(x * copy.width, y * copy.height, 1, 1).data[0];
        }""",
        [f"{SPACE} canvas", *at],
    )
    assert white > 200


@pytest.mark.slow
def test_a_large_photo_is_made_smaller_and_measured_as_it_is(browser: Browser, tmp_path: Path) -> None:
    depth = np.linspace(1, 9, 1500 * 2003, dtype=np.float32).reshape(1500, 2003)
    depth[:300] = 0
    result = made(depth, camera=Camera.from_fov(70, 2003, 1500))
    path = write_result(result, tmp_path / "large.html")
    rows, columns = page_pixels(*depth.shape)
    assert 990_000 < len(rows) * len(columns) <= pages.MAX_PAGE_PIXELS
    page = browser.open(path)
    assert (
        page.locator("#size")
        .inner_text()
        .startswith(f"This page holds {len(columns)} x {len(rows)} of the 2003 x 1500")
    )
    own = [click(page, DEPTH, *at) for at in ((0.1, 0.8), (0.8, 0.4))]
    assert {x for x, _ in own} <= {*columns}
    assert {y for _, y in own} <= {*rows}
    assert own == [
        (pytest.approx(x * 2003, abs=5), pytest.approx(y * 1500, abs=5)) for x, y in ((0.1, 0.8), (0.8, 0.4))
    ]
    assert metres(page) == pytest.approx(apart(result, *own), rel=1e-6)
    np.testing.assert_array_equal(np.load(downloaded(page, "#as-npy", tmp_path)), depth[rows[:, None], columns])


def test_hostile_names_stay_names(browser: Browser, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
    stated = {"path": f"photos/{HOSTILE}", "text": HOSTILE + "\udcff\n", "weights": {"licence": HOSTILE}}
    result = made(depth, system=HOSTILE, scene_probs={HOSTILE: 1.0}, provenance=stated)
    page = browser.open(write_result(result, tmp_path / "a.html"))
    assert page.title() == f"{HOSTILE.rpartition('/')[2]}, depth"
    assert page.locator("#about").inner_text().count(HOSTILE) == 4
    assert browser.complaints == []
    assert read_depth16(downloaded(page, "#as-png", tmp_path))[0].shape == depth.shape
    assert page.evaluate("document.scripts.length") == 2


def test_a_script_that_is_not_the_pages_does_not_run(
    browser: Browser, depth: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    path = write_result(made(depth), tmp_path / "a.html")
    path.write_bytes(path.read_bytes().replace(b"<main", b"<script>document.title = 'owned'</script><main"))
    assert browser.open(path).title() != "owned"
    assert "Content Security Policy" in browser.complaints[0]


def test_a_phone(desk: DepthResult, browser: Browser, tmp_path: Path) -> None:
    path = write_result(desk, tmp_path / "desk.html")
    page = browser.open(path, viewport={"width": 360, "height": 740}, has_touch=True, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for at in ((0.3, 0.7), (0.6, 0.5)):
        box = page.locator(PHOTO).bounding_box()
        page.locator(PHOTO).tap(position={"x": at[0] * box["width"], "y": at[1] * box["height"]})
    assert metres(page) > 0
    assert page.locator(f"{PHOTO} .cross").inner_text().endswith(" m")
    assert (
        max(box["y"] for box in (page.locator(one).bounding_box() for one in (PHOTO, DEPTH))) > 200
    )  # one below the other
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", ground))) < 150


@pytest.mark.parametrize(
    ("kind", "what", "space"),
    [
        ("relative", "Depth, without a unit", True),
        ("disparity", "Disparity, 1 / depth up to a factor and a shift", False),
    ],
)
def test_what_has_no_metres_claims_none(
    kind: str, what: str, space: bool, browser: Browser, depth: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    result = made(depth / 7, scale_kind=kind, unit="unknown", image=None)
    page = browser.open(write_result(result, tmp_path / "a.html"))
    assert page.locator("#what").inner_text() == what
    assert page.locator(SPACE).is_visible() == space
    assert not page.locator(PHOTO).is_visible()
    for at in (0.5, 0.8):
        click(page, DEPTH, at, at)
    assert page.locator("#ruler").inner_text() == "The ruler needs metres, which this depth map does not have."
    assert " m" not in page.locator("#legend").get_attribute("aria-label")
    assert read_depth16(downloaded(page, "#as-png", tmp_path))[0].max() == pytest.approx(depth.max() / 7, rel=1e-4)
    near, far = (
        page.evaluate(f"document.querySelector('#legend canvas').getContext('2d').getImageData({x},0,1,1).data[0]")
        for x in (0, 255)
    )
    assert (near > far) == (kind == "relative")  # the nearest is bright in either


def test_colors_are_those_asked_for(browser: Browser, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
    page = browser.open(
        write_result(made(depth), tmp_path / "a.html", colors=ColorScale(minimum=0, maximum=10, colormap="gray"))
    )
    assert page.locator("#legend").get_attribute("aria-label") == "Colors from 0.000 m to 10.00 m"
    shade = page.evaluate(f"document.querySelector('{DEPTH} canvas').getContext('2d').getImageData(20,20,1,1).data[0]")
    assert shade == math.floor(256 * depth[20, 20] / 10)
    assert "unknown, a guess" in page.locator("#about").inner_text()


def test_nothing_to_show_is_shown(browser: Browser, tmp_path: Path) -> None:
    page = browser.open(write_result(made(np.zeros((40, 50), np.float32)), tmp_path / "a.html"))
    assert browser.complaints == []
    page.locator(DEPTH).focus()
    assert page.locator("#readout").inner_text() == "x 25, y 20: no value"


def test_an_old_browser_is_told(browser: Browser, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
    path = write_result(made(depth), tmp_path / "a.html")
    context = browser.chromium.new_context()
    context.add_init_script("delete window.DecompressionStream")
    page = context.new_page()
    page.goto(path.as_uri())
    assert "too old" in page.locator("#notice").inner_text()


def test_pages_replace_pages_only(depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
    assert is_own_result(write_result(made(depth), tmp_path / "a.html"))
    (tmp_path / "other.html").write_text("<!doctype html><title>mine</title>")
    assert not is_own_result(tmp_path / "other.html")


def test_an_image_of_another_size_is_refused(depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"html: image .* and depth .* differ in size"):
        write_result(made(depth, image=np.zeros((9, 9, 3), np.uint8)), tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize("size", [(1, 1), (32, 2_400_000), (2500, 2500), (3000, 333)])
def test_pages_have_a_limit(size: tuple[int, int]) -> None:
    rows, columns = page_pixels(*size)
    assert 0 < len(rows) * len(columns) <= pages.MAX_PAGE_PIXELS
    for places, side in zip((rows, columns), size, strict=True):
        assert 0 <= places.min() <= places.max() < side
        assert (np.diff(places) > 0).all()
        assert abs(places[0] - (side - 1 - places[-1])) <= 1  # as far from the one end as from the other
