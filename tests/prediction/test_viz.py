"""Depth as images: the right color for the right distance, a legend that can be read, sheets that compare fairly."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from PIL import ImageDraw

from langdepth.errors import UsageError
from langdepth.prediction.options import COLORMAP, ColorScale
from langdepth.prediction.viz import INVALID_GREY, SheetRow, color_with_legend, colorize, robust_range, sheet


def ramp(height: int = 40, width: int = 60, near: float = 1.0, far: float = 5.0) -> npt.NDArray[np.float32]:
    """Depth that grows from left to right."""
    return np.broadcast_to(np.linspace(near, far, width, dtype=np.float32), (height, width)).copy()


def luminance(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    return pixels @ np.array((0.299, 0.587, 0.114))


class TestColorize:
    def test_near_is_bright_and_far_is_dark(self) -> None:
        pixels = colorize(ramp())
        assert pixels.shape == (40, 60, 3)
        assert pixels.dtype == np.uint8
        brightness = luminance(pixels)[0]
        assert (np.diff(brightness) <= 1).all()
        assert brightness[0] > 200
        assert brightness[-1] < 20

    def test_ends_of_the_range_are_the_ends_of_the_map(self) -> None:
        pixels = colorize(np.array([[0.5, 1.0, 3.0, 5.0, 9.0]]), colors=ColorScale(minimum=1, maximum=5))
        first, middle, last = (np.array(matplotlib.colormaps[COLORMAP](x, bytes=True)[:3]) for x in (0.0, 0.5, 1.0))
        np.testing.assert_array_equal(pixels[0, [0, 1]], [first, first])
        np.testing.assert_array_equal(pixels[0, 2], middle)
        np.testing.assert_array_equal(pixels[0, [3, 4]], [last, last])

    def test_what_has_no_value_is_grey(self) -> None:
        depth = ramp()
        depth[0, :4] = 0, np.nan, np.inf, -1
        valid = np.ones(depth.shape, bool)
        valid[0, 4] = False
        pixels = colorize(depth, valid)
        assert (pixels[0, :5] == INVALID_GREY).all()
        grey = (pixels == INVALID_GREY).all(-1)
        assert grey.sum() == 5
        assert (colorize(np.zeros((8, 8))) == INVALID_GREY).all()

    def test_outliers_do_not_eat_the_range(self) -> None:
        depth = ramp(100, 100)
        depth[0, 0], depth[0, 1] = 0.001, 1000
        low, high = robust_range(depth)
        assert 1 <= low < 1.2
        assert 4.8 < high <= 5

    @pytest.mark.parametrize("size", [2, 7, 1000])
    def test_range_is_the_percentiles_of_numpy(self, size: int) -> None:
        depth = np.random.default_rng(size).random((1, size), np.float32) ** 4 + 1
        np.testing.assert_allclose(robust_range(depth), np.percentile(depth, (2, 98)), rtol=1e-6)

    def test_range_of_equal_and_of_no_values(self) -> None:
        low, high = robust_range(np.full((8, 8), 2.0))
        assert low < 2 < high
        assert robust_range(np.zeros((8, 8))) == (0, 1)
        assert np.unique(colorize(np.full((8, 8), 2.0)).reshape(-1, 3), axis=0).shape == (1, 3)

    def test_bad_requests(self) -> None:
        with pytest.raises(UsageError, match="did you mean 'viridis'"):
            colorize(ramp(), colors=ColorScale(colormap="virids"))
        for low, high in ((2.0, 2.0), (3.0, 1.0), (float("nan"), 1.0)):
            with pytest.raises(UsageError, match="near to far"):
                colorize(ramp(), colors=ColorScale(minimum=low, maximum=high))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """What is written into images, with its height."""
    texts: list[tuple[float, str]] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, xy, text, **_: texts.append((xy[1], text)))
    return texts


class TestLegend:
    @pytest.mark.parametrize(
        ("near", "far", "expected"),
        [
            (0.6, 10.0, ["2 m", "4 m", "6 m", "8 m", "10 m"]),
            (2.5, 80.0, ["20 m", "40 m", "60 m", "80 m"]),
            (4.0, 55.0, ["10 m", "20 m", "30 m", "40 m", "50 m"]),
        ],
    )
    def test_low_rows_of_a_sheet_have_enough_labels_and_they_do_not_touch(
        self, drawn: list[tuple[float, str]], near: float, far: float, expected: list[str]
    ) -> None:
        """Rows of KITTI's images."""
        depth = np.array([near, far]).repeat(160)[None].repeat(93, 0)
        sheet([SheetRow(np.zeros((93, 320, 3), np.uint8), depth, depth)])
        labels = [(y, text) for y, text in drawn if text.endswith(" m")]
        assert [text for _, text in labels] == expected
        assert np.diff([y for y, _ in labels]).min() > 12

    @pytest.mark.parametrize("shape", [(32, 32), (240, 320), (32, 900), (900, 32), (600, 800)])
    def test_image_left_and_a_white_strip_right(self, shape: tuple[int, int]) -> None:
        depth = ramp(*shape)
        colors = colorize(depth)
        framed = color_with_legend(depth)
        factor = framed.shape[0] // shape[0]
        assert min(shape) * factor >= 200
        np.testing.assert_array_equal(framed[::factor, : shape[1] * factor : factor], colors)
        strip = framed[:, shape[1] * factor :]
        assert strip.shape[1] >= 40
        assert (strip[:, -1] == 255).all()  # no label is cut off
        assert (strip[0] == 255).all()
        assert (strip[-1] == 255).all()
        assert (strip.max(-1) < 100).sum() > 50  # there are labels

    def test_a_note_stands_below_the_bar(self) -> None:
        depth = ramp(240, 320)
        plain, noted = (color_with_legend(depth, note=note)[:, 320:] for note in ("", "± 0.25 m of all its metres"))
        last = slice(-20, -4)
        assert noted.shape[1] > plain.shape[1]
        assert (noted[last].max(-1) < 100).sum() > 50
        assert (noted[:, -1] == 255).all()

    def test_bar_runs_from_near_at_the_top_to_far(self) -> None:
        framed = color_with_legend(ramp(300, 300))
        bar = framed[:, 300 + 12]
        rows = np.flatnonzero((bar != 255).any(-1))[3:-3]
        assert luminance(bar[rows[0]]) > 200
        assert luminance(bar[rows[-1]]) < 20
        assert (np.diff(luminance(bar[rows])) <= 1).all()

    @pytest.mark.parametrize(
        ("near", "far", "expected"),
        [
            (0.9, 5.1, ["1 m", "2 m", "3 m", "4 m", "5 m"]),
            (0.0, 80.0, ["0 m", "10 m", "20 m", "30 m", "40 m", "50 m", "60 m", "70 m", "80 m"]),
            (1.98, 2.02, ["1.98 m", "1.99 m", "2.00 m", "2.01 m", "2.02 m"]),
            (0.3, 1.2, ["0.4 m", "0.6 m", "0.8 m", "1.0 m", "1.2 m"]),
        ],
    )
    def test_labels_are_round_metres_at_their_place(
        self, drawn: list[tuple[float, str]], near: float, far: float, expected: list[str]
    ) -> None:
        color_with_legend(ramp(240, 240), colors=ColorScale(minimum=near, maximum=far))
        assert [text for _, text in drawn] == expected
        top, bottom = 12, 240 - 12
        for y, text in drawn:
            metres = float(text.removesuffix(" m"))
            assert (y - top) / (bottom - top) == pytest.approx((metres - near) / (far - near), abs=1e-6)

    def test_relative_depth_has_no_unit(self, drawn: list[tuple[float, str]]) -> None:
        color_with_legend(ramp(240, 240), colors=ColorScale(minimum=0, maximum=1), unit="")
        assert [text for _, text in drawn] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]


class TestSheet:
    def row(self, **changes: Any) -> SheetRow:
        image = np.full((48, 64, 3), (10, 200, 30), np.uint8)
        return SheetRow(**{"image": image, "target": ramp(48, 64), "prediction": ramp(48, 64), "title": "a", **changes})

    def cells(self, pixels: npt.NDArray[np.uint8], count: int, width: int = 64, height: int = 48) -> list[Any]:
        """The cells of a sheet of one row, below its header and title."""
        return [pixels[40 : 40 + height, i * (width + 6) : i * (width + 6) + width] for i in range(count)]

    def test_target_and_prediction_share_their_colors(self) -> None:
        pixels = sheet([self.row(prediction=ramp(48, 64) * 2)], cell_width=64)
        image, target, prediction, error = self.cells(pixels, 4)
        assert (image == (10, 200, 30)).all()
        np.testing.assert_array_equal(target, colorize(ramp(48, 64)))
        low, high = robust_range(ramp(48, 64))
        np.testing.assert_array_equal(
            prediction, colorize(ramp(48, 64) * 2, None, ColorScale(minimum=low, maximum=high))
        )
        brightest = np.array(matplotlib.colormaps["inferno"](1.0, bytes=True)[:3])
        assert (error == brightest).all()  # an error of 100 % everywhere

    def test_a_perfect_prediction_has_a_dark_error_not_a_missing_one(self) -> None:
        target = ramp(48, 64)
        target[:10] = 0
        error = self.cells(sheet([self.row(target=target)], cell_width=64), 4)[3]
        assert (error[:10] == INVALID_GREY).all()
        assert (luminance(error[10:]) < 5).all()

    def test_sparse_target_stays_visible_in_small_cells(self) -> None:
        target = np.zeros((480, 640), np.float32)
        target[5::10, 7::10] = 3  # one pixel of each block that becomes a pixel of the cell
        large = np.zeros((480, 640, 3), np.uint8)
        row = SheetRow(large, target, np.full((480, 640), 3, np.float32), "lidar")
        shown = self.cells(sheet([row], cell_width=64), 4)
        for cell in (shown[1], shown[3]):
            assert not (cell == INVALID_GREY).all(-1).any()

    def test_rows_of_different_shape_and_without_target(self) -> None:
        wide = SheetRow(np.zeros((30, 300, 3), np.uint8), None, ramp(30, 300), "wide")
        tall = SheetRow(np.zeros((90, 30, 3), np.uint8), ramp(90, 30), ramp(90, 30), "tall")
        pixels = sheet([wide, tall], cell_width=60)
        assert pixels.shape[0] == 20 + (20 + 48) + (20 + 180)
        target = pixels[40:88, 66:126]
        assert (target == INVALID_GREY).all()
        assert sheet([wide], cell_width=60).shape[1] < pixels.shape[1]  # no target at all, no column of errors

    def test_bad_requests(self) -> None:
        with pytest.raises(UsageError, match="at least one"):
            sheet([])
        with pytest.raises(UsageError, match=r"contact sheet, a: .*differ in size"):
            sheet([self.row(target=ramp(24, 32))])
