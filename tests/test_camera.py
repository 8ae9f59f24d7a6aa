"""Cameras: where intrinsics come from, and how they follow the image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from langdepth.camera import Camera
from langdepth.errors import UsageError
from langdepth.utils.exif import is_cut

FOCAL_LENGTH, FOCAL_LENGTH_35MM, PLANE_RESOLUTION, PLANE_UNIT = 0x920A, 0xA405, 0xA20E, 0xA210
PIXEL_WIDTH, PIXEL_HEIGHT = 0xA002, 0xA003


def test_matrix_projects() -> None:
    camera = Camera(fx=500, fy=510, cx=320, cy=240, width=640, height=480)
    assert camera.matrix.dtype == np.float64
    u, v, w = camera.matrix @ (0.4, -0.2, 2.0)
    np.testing.assert_allclose(camera.project(np.array([0.4, -0.2, 2.0])), (u / w, v / w))


def test_axes_are_right_down_forward() -> None:
    camera = Camera.from_fov(90, 5, 5)
    points = camera.unproject(np.full((5, 5), 2.0))
    assert points.dtype == np.float32
    np.testing.assert_allclose(points[2, 2], (0, 0, 2))
    assert points[2, 4, 0] > 0
    assert points[4, 2, 1] > 0
    np.testing.assert_array_equal(points[..., 2], 2)  # depth is z, not the length of the ray


def test_field_of_view_spans_the_image_edge_to_edge() -> None:
    camera = Camera.from_fov(90, 640, 480)
    left, right = (math.degrees(math.atan((u - camera.cx) / camera.fx)) for u in (-0.5, 639.5))
    assert (left, right) == pytest.approx((-45, 45))
    assert camera.fy == camera.fx
    assert camera.cy == 239.5


@pytest.mark.parametrize("fov", [0, -10, 1, 160, 171, 180, 400, math.nan])
def test_bad_field_of_view(fov: float) -> None:
    with pytest.raises(UsageError, match="between 2 and 150 degrees"):
        Camera.from_fov(fov, 640, 480)


def test_guess_is_about_the_longer_side() -> None:
    wide, tall = Camera.guess(640, 480), Camera.guess(480, 640)
    assert wide.source == tall.source == "guess"
    assert wide.fx == tall.fx
    assert wide.fx == pytest.approx(320 * math.sqrt(3))  # 60 degrees: half the width over tan 30 degrees
    assert wide.fov == tall.fov == pytest.approx(60)


def test_a_guess_has_the_focal_length_that_a_system_means() -> None:
    for width, height in ((640, 480), (480, 640), (1280, 960), (1242, 375)):
        camera = Camera.guess(width, height, 0.937)
        assert (camera.source, camera.relative_focal) == ("guess", pytest.approx(0.937))
    assert Camera.guess(640, 480, 0.937).fov == pytest.approx(63.28, abs=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"fx": 0},
        {"fy": -1},
        {"fx": math.nan},
        {"fy": math.inf},
        {"cx": math.nan},
        {"cy": math.inf},
        {"width": 0},
        {"height": -3},
    ],
)
def test_impossible_cameras(changes: dict[str, Any]) -> None:
    values = {"fx": 500, "fy": 500, "cx": 320, "cy": 240, "width": 640, "height": 480}
    with pytest.raises(UsageError, match="camera: "):
        Camera(**{**values, **changes})


def test_intrinsics_text() -> None:
    camera = Camera.from_intrinsics_text(" 525, 526.5,319.5,239.5", 640, 480)
    assert camera == Camera(fx=525, fy=526.5, cx=319.5, cy=239.5, width=640, height=480, source="user")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("525,525,319.5", "expected fx,fy,cx,cy"),
        ("525,525,319.5,239.5,1", "expected fx,fy,cx,cy"),
        ("a,b,c,d", "expected fx,fy,cx,cy"),
        ("", "expected fx,fy,cx,cy"),
        ("-525,525,319.5,239.5", "positive"),
        ("nan,525,319.5,239.5", "positive"),
        ("525,525,1919.5,1079.5", "outside the 640x480 image"),
        ("26,26,319.5,239.5", "fx is a field of view of 171 degrees"),  # millimetres
        ("525,4.2,319.5,239.5", "fy is a field of view of 178 degrees"),
        ("319.5,239.5,525,525", "outside the 640x480 image"),  # another order
        ("1e9,1e9,319.5,239.5", "fx is a field of view of"),
    ],
)
def test_bad_intrinsics_text(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Camera.from_intrinsics_text(text, 640, 480)


def test_scaling_keeps_the_image_edges() -> None:
    camera = Camera(fx=500, fy=510, cx=300.25, cy=250, width=640, height=480, source="exif")
    small = camera.scaled(320, 120)
    assert (small.width, small.height, small.source) == (320, 120, "exif")
    for edge, small_edge in ((-0.5, -0.5), (639.5, 319.5)):
        assert (edge - camera.cx) / camera.fx == pytest.approx((small_edge - small.cx) / small.fx)
    for edge, small_edge in ((-0.5, -0.5), (479.5, 119.5)):
        assert (edge - camera.cy) / camera.fy == pytest.approx((small_edge - small.cy) / small.fy)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_follows_pillow(orientation: int) -> None:
    """One bright pixel, turned by Pillow, lies where the turned principal point is."""
    camera = Camera(fx=10, fy=20, cx=5, cy=2, width=8, height=6)
    image = Image.new("L", (8, 6))
    image.putpixel((5, 2), 255)
    image.getexif()[0x0112] = orientation
    turned = ImageOps.exif_transpose(image)
    upright = camera.oriented(orientation)
    assert (upright.width, upright.height) == turned.size
    ((v, u),) = np.argwhere(np.asarray(turned))
    assert (upright.cx, upright.cy) == (u, v)
    assert (upright.fx, upright.fy) == ((20, 10) if orientation >= 5 else (10, 20))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_changes_nothing(orientation: int) -> None:
    camera = Camera.guess(8, 6)
    assert camera.oriented(orientation) == camera


class TestExif:
    def test_35mm_equivalent_is_over_the_diagonal(self) -> None:
        camera = Camera.from_exif({FOCAL_LENGTH_35MM: 36, FOCAL_LENGTH: 4.2}, 3600, 2400)
        assert camera is not None
        assert camera.source == "exif"
        assert camera.fx == camera.fy == pytest.approx(3600)  # on 36 x 24 mm film, 36 mm is the width
        assert (camera.cx, camera.cy) == (1799.5, 1199.5)

    @pytest.mark.parametrize(("unit", "resolution"), [(None, 2540.0), (2, 2540.0), (3, 1000.0), (4, 100.0), (5, 0.1)])
    def test_focal_plane(self, unit: int | None, resolution: float) -> None:
        tags = {FOCAL_LENGTH: 30.0, PLANE_RESOLUTION: resolution, PIXEL_WIDTH: 4000}  # 100 pixels per millimetre
        if unit is not None:
            tags[PLANE_UNIT] = unit
        full, half = Camera.from_exif(tags, 4000, 3000), Camera.from_exif(tags, 2000, 1500)
        assert full is not None
        assert half is not None
        assert full.fx == pytest.approx(3000)
        assert half.fx == pytest.approx(1500)  # the tags describe the photo before it was made smaller

    @pytest.mark.parametrize(
        "tags",
        [
            {},
            {FOCAL_LENGTH: 50.0},
            {FOCAL_LENGTH_35MM: 0},
            {FOCAL_LENGTH_35MM: math.nan},
            {FOCAL_LENGTH_35MM: "wide"},
            {FOCAL_LENGTH_35MM: (1, 2)},
            {FOCAL_LENGTH_35MM: 1},
            {FOCAL_LENGTH_35MM: 60000},
            {FOCAL_LENGTH: 30.0, PLANE_RESOLUTION: math.inf},
        ],
    )
    def test_nothing_credible(self, tags: dict[int, Any]) -> None:
        assert Camera.from_exif(tags, 640, 480) is None

    @pytest.mark.parametrize(("width", "height"), [(4032, 3024), (3024, 4032), (1008, 756), (100, 75)])
    def test_the_whole_photo_at_any_size_and_either_way_up(self, width: int, height: int) -> None:
        tags = {FOCAL_LENGTH_35MM: 26, PIXEL_WIDTH: 4032, PIXEL_HEIGHT: 3024}
        camera = Camera.from_exif(tags, width, height)
        assert camera is not None
        assert not is_cut(tags, width, height)
        assert camera.fx == pytest.approx(26 / math.hypot(36, 24) * math.hypot(width, height))

    @pytest.mark.parametrize(("width", "height"), [(1000, 1000), (4032, 2268), (2268, 4032), (2000, 3024)])
    def test_a_part_of_the_photo_has_not_the_focal_length_of_the_whole(self, width: int, height: int) -> None:
        for focal in ({FOCAL_LENGTH_35MM: 26}, {FOCAL_LENGTH: 4.25, PLANE_RESOLUTION: 18000.0}):
            tags = {**focal, PIXEL_WIDTH: 4032, PIXEL_HEIGHT: 3024}
            assert Camera.from_exif(tags, 4032, 3024) is not None
            assert is_cut(tags, width, height)
            assert Camera.from_exif(tags, width, height) is None

    @pytest.mark.parametrize("states_its_size", [True, False])
    def test_a_panorama_has_not_the_focal_length_of_its_views(self, states_its_size: bool) -> None:
        for width, height, usual in ((16000, 3900, False), (3900, 16000, False), (3840, 1644, True)):
            size = {PIXEL_WIDTH: width, PIXEL_HEIGHT: height} if states_its_size else {}
            assert (Camera.from_exif({FOCAL_LENGTH_35MM: 26, **size}, width, height) is not None) is usual

    def test_two_statements_that_contradict_each_other(self) -> None:
        """An editor that cut the photo and wrote its new size left the sensor's resolution."""
        tags = {FOCAL_LENGTH_35MM: 36, FOCAL_LENGTH: 36.0, PLANE_RESOLUTION: 2540.0, PIXEL_WIDTH: 3600}
        assert Camera.from_exif(tags, 3600, 2400) is not None
        assert Camera.from_exif({**tags, PIXEL_WIDTH: 1200}, 1200, 800) is None

    def test_no_focal_length_is_no_part(self) -> None:
        assert not is_cut({PIXEL_WIDTH: 4032, PIXEL_HEIGHT: 3024}, 1000, 1000)


def test_depth_of_another_size() -> None:
    with pytest.raises(UsageError, match="640x480"):
        Camera.guess(640, 480).unproject(np.ones((240, 320)))


def test_points_behind_the_camera_have_no_pixel() -> None:
    pixels = Camera.guess(640, 480).project(np.array([[0, 0, -1.0], [0, 0, 0], [0, 0, 1]]))
    assert np.isnan(pixels[:2]).all()
    np.testing.assert_allclose(pixels[2], (319.5, 239.5))


@pytest.mark.parametrize("text", ["1_00,100,50,50", "\u0661\u0660\u0660,100,50,50"])
def test_intrinsics_are_plain_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="expected fx,fy,cx,cy"):
        Camera.from_intrinsics_text(text, 100, 100)


def test_the_relative_focal_length_is_that_of_every_size() -> None:
    camera = Camera(fx=500, fy=520, cx=320, cy=240, width=640, height=480)
    assert camera.relative_focal == pytest.approx(math.sqrt(500 * 520 / (640 * 480)))
    assert camera.scaled(200, 300).relative_focal == pytest.approx(camera.relative_focal)
    assert camera.oriented(6).relative_focal == pytest.approx(camera.relative_focal)
