"""Clips of results: lossless depth, one range of colors, times; and what an interruption leaves."""

from __future__ import annotations

import errno
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from langdepth.errors import ImageError, LangdepthError
from langdepth.prediction.options import ColorScale
from langdepth.prediction.results import DepthResult
from langdepth.prediction.video.writing import CLIP_FORMATS, ClipFacts, ClipFile, read_depth_video
from langdepth.prediction.viz import color_with_legend
from tests.clips import av, read_clip, save_clip

FACTS = ClipFacts(ColorScale(minimum=1, maximum=9), 0.001, Fraction(30))


def result(number: int, width: int = 65, height: int = 49) -> DepthResult:
    """Depth that differs from frame to frame, without values in a corner."""
    depth = np.random.default_rng(number).uniform(0.5, 60, (height, width)).astype(np.float32)
    depth[:5, :7] = 0
    image = np.full((height, width, 3), 20 * number % 256, np.uint8)
    return DepthResult(depth=depth, valid=depth > 0, system="fake", image=image)


def written(path: Path, kind: str, results: list[DepthResult], times: list[float]) -> ClipFile:
    clip = ClipFile(path, kind, FACTS)
    for one, time in zip(results, times, strict=True):
        clip.add(one, time)
    clip.finish()
    return clip


def test_depth_is_read_back_equal(tmp_path: Path) -> None:
    """Odd sides, times of a variable rate, no value."""
    times, results = [2.0, 2.04, 2.3, 2.301, 5.0], [result(number) for number in range(5)]
    path = tmp_path / "a_depth.mkv"
    written(path, "depth-video", results, times)
    found = list(read_depth_video(path))
    np.testing.assert_allclose([time for time, _ in found], np.subtract(times, 2), atol=1e-3)
    for (_, depth), one in zip(found, results, strict=True):
        assert depth.dtype == np.float32
        np.testing.assert_array_equal(
            depth, np.rint(one.depth / np.float32(0.001)).astype(np.float32) * np.float32(0.001)
        )
    with av.open(str(path)) as container:  # as somebody else reads it
        assert container.streams.video[0].codec_context.name == "ffv1"
        assert '"scale": 0.001, "no_value": 0, "unit": "metre"' in container.metadata["COMMENT"]
        frame = next(container.decode(video=0))
        assert frame.format.name == "gray16le"
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_unit_stays(tmp_path: Path) -> None:
    far = result(1)
    far.depth[20:30, 20:30] = 70
    written(tmp_path / "a.mkv", "depth-video", [result(0), far], [0, 0.1])
    assert max(depth.max() for _, depth in read_depth_video(tmp_path / "a.mkv")) == np.float32(
        65535 * np.float32(0.001)
    )


def test_only_ours_is_read_as_depth(tmp_path: Path) -> None:
    other = save_clip(tmp_path / "a.mkv", [np.zeros((48, 64, 3), np.uint8)])
    for path in (other, tmp_path / "missing.mkv"):
        with pytest.raises(ImageError, match=path.name):
            list(read_depth_video(path))


@pytest.mark.parametrize("size", [(250, 210), (65, 49)])
def test_colors_have_one_range(size: tuple[int, int], tmp_path: Path) -> None:
    results = [result(number, *size) for number in range(3)]
    for one, level in zip(results, (2, 5, 8), strict=True):
        one.depth[one.valid] = level
    written(tmp_path / "a.mp4", "color-video", results, [0, 1 / 30, 2 / 30])
    times, images = read_clip(tmp_path / "a.mp4")
    np.testing.assert_allclose(times, np.arange(3) / 30, atol=1e-4)
    for one, image in zip(results, images, strict=True):
        wanted = color_with_legend(one.depth, one.valid, FACTS.colors, "m")
        assert [side % 2 for side in image.shape[:2]] == [0, 0]
        assert all(0 <= even - odd <= 1 for even, odd in zip(image.shape[:2], wanted.shape[:2], strict=True))
        height, width = wanted.shape[:2]
        assert np.abs(image[:height, :width].astype(int) - wanted).mean() < 3
        place = height // 2, wanted.shape[1] // 4
        np.testing.assert_allclose(image[place], wanted[place], atol=6)


def test_near_is_bright_also_of_disparity(tmp_path: Path) -> None:
    one = result(0, 64, 48)
    one.depth[:], one.valid[:] = 8, True
    shown = {}
    for kind in ("metric", "disparity"):
        image = CLIP_FORMATS["color-video"].image(replace(one, scale_kind=kind), FACTS)
        shown[kind] = image[100, 100].mean()
    assert shown["metric"] < 90 < 150 < shown["disparity"]


def test_side_by_side(tmp_path: Path) -> None:
    results = [result(number, 220, 210) for number in range(3)]
    written(tmp_path / "a.mp4", "side-by-side", results, [0, 0.5, 1.5])
    times, images = read_clip(tmp_path / "a.mp4")
    np.testing.assert_allclose(times, [0, 0.5, 1.5], atol=1e-4)
    for number, image in enumerate(images):
        np.testing.assert_allclose(image[100, 50], 20 * number, atol=4)
        assert image.shape[1] > 440


@pytest.mark.parametrize("kind", CLIP_FORMATS)
def test_what_was_written_before_a_cut_can_be_played(kind: str, tmp_path: Path) -> None:
    """It has a name of its own; an older, whole clip stays until another whole one comes."""
    path = tmp_path / f"a{CLIP_FORMATS[kind].suffix}"
    written(path, kind, [result(9)], [0])
    old = path.read_bytes()
    clip = ClipFile(path, kind, FACTS)
    for number in range(40):
        clip.add(result(number), number / 30)
    clip.cut()
    assert path.read_bytes() == old
    assert clip.kept.name == f"{path.stem}.cut{path.suffix}"
    assert len(read_clip(clip.kept)[0]) == 40
    written(path, kind, [result(1)], [0])
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", CLIP_FORMATS)
def test_a_process_that_dies_leaves_what_can_be_played(kind: str, tmp_path: Path) -> None:
    clip = ClipFile(tmp_path / f"a{CLIP_FORMATS[kind].suffix}", kind, FACTS)
    for number in range(100):
        clip.add(result(number), number / 30)
    left = next(tmp_path.iterdir())
    copy = tmp_path / f"copy{left.suffix}"
    copy.write_bytes(left.read_bytes())
    assert len(read_clip(copy)[0]) >= 25
    clip.cut()


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = ClipFile(tmp_path / "a.mkv", "depth-video", FACTS)
    clip.add(result(0), 0)

    class Full:
        def __getattr__(self, name: str) -> object:
            raise OSError(errno.ENOSPC, "No space left on device")

    container = clip._container
    monkeypatch.setattr(clip, "_container", Full())
    with pytest.raises(LangdepthError, match=r"a\.mkv: cannot be written \(No space left on device\)"):
        clip.add(result(1), 0.1)
    monkeypatch.setattr(clip, "_container", container)
    clip.cut()
    assert len(read_clip(clip.kept)[0]) == 1


def test_a_place_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    clip = ClipFile(tmp_path / "file" / "a.mkv", "depth-video", FACTS)
    with pytest.raises(LangdepthError, match="cannot be written"):
        clip.add(result(0), 0)
    clip.cut()
