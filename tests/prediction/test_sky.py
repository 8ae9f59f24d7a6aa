"""Sky: which pixels it is, when it is looked for, and that it has no value in any result."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from langdepth.api import predict_video
from langdepth.camera import Camera
from langdepth.lenses import Lens
from langdepth.prediction.network import infer
from langdepth.prediction.predictor import predict_images
from langdepth.prediction.results import DepthResult, write_result
from langdepth.prediction.sky import is_outdoors, sky_of
from langdepth.records import DepthOutput
from langdepth.utils.depth_files import read_depth16
from tests.helpers import FakeSystem, Run, save_image

Image = npt.NDArray[np.uint8]
SKIES = {  # colors at the top and at the horizon
    "blue": ((60, 120, 220), (170, 200, 235)),
    "overcast": ((150, 153, 156), (190, 192, 195)),
    "white": ((255, 255, 255), (255, 255, 255)),
    "sunset": ((230, 150, 90), (255, 220, 150)),
}


def outdoors(kind: str = "blue", width: int = 128, height: int = 96, horizon: float = 0.5) -> tuple[Image, Image]:
    """A photo of sky, trees before it and gravel, and where the sky is."""
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 1))
    rows, columns = np.mgrid[:height, :width]
    top, low = np.array(SKIES[kind], np.float64)
    image = top + (low - top) * np.clip(rows / (horizon * height), 0, 1)[..., None]
    trees = (np.abs(columns - width // 3) < width // 8) & (rows > 0.3 * horizon * height)
    ground = rows >= horizon * height
    image[ground] = (np.array((70, 66, 58)) + noise)[ground]
    image[trees & ~ground] = (np.array((40, 60, 30)) + noise)[trees & ~ground]
    return image.clip(0, 255).astype(np.uint8), ~(ground | trees)


def far_at(horizon: float, height: int = 96, width: int = 128) -> npt.NDArray[np.float32]:
    """A depth map that is farthest in one row."""
    away = np.abs(np.arange(height) - horizon * height)
    return np.broadcast_to((20 / (1 + away))[:, None], (height, width)).astype(np.float32)


def marked(result: DepthResult | list[DepthResult]) -> npt.NDArray[np.bool_]:
    """Where a result has no value, which its depth says as well."""
    assert isinstance(result, DepthResult)
    assert np.array_equal(result.valid, result.depth > 0)
    return ~result.valid


# The pixels


@pytest.mark.parametrize("size", [(384, 288), (288, 384), (800, 600)])
@pytest.mark.parametrize("kind", [*SKIES])
def test_sky_is_found(kind: str, size: tuple[int, int]) -> None:
    image, sky = outdoors(kind, *size)
    found = sky_of(image, far_at(0.5))
    rows, columns = (np.arange(count) * whole // count for count, whole in zip(found.shape, sky.shape, strict=True))
    truth = sky[rows[:, None], columns]
    assert found[truth].mean() > 0.95
    assert found[~truth].mean() < 0.01


def test_textured_walls_and_blank_images_have_none() -> None:
    noise = np.random.default_rng(0).normal(0, 20, (96, 128, 1))
    for color in ((150, 80, 60), (200, 200, 200), (90, 160, 60)):
        wall = (np.array(color) + noise).clip(0, 255).astype(np.uint8)
        assert not sky_of(wall, far_at(0.5)).any()
    assert not sky_of(np.full((96, 128, 3), 220, np.uint8), far_at(0.5)).any()


def with_sky(color: tuple[int, int, int], grain: int = 0) -> tuple[Image, Image]:
    """Something else of one color, with some grain, where the sky would be, and white lines on the ground."""
    image, sky = outdoors("overcast")
    grains = np.random.default_rng(0).integers(-grain, grain + 1, (*sky.shape, 1))
    image[sky] = (np.array(color) + grains).clip(0, 255)[sky]
    image[86:90] = 255
    return image, sky


@pytest.mark.parametrize(
    ("color", "grain", "expected"),
    [
        ((20, 60, 150), 6, True),  # deep blue
        ((215, 218, 220), 6, True),
        ((170, 172, 175), 6, False),  # a concrete wall
        ((170, 172, 175), 0, True),  # the dark corner of a lens
        ((230, 200, 160), 6, False),  # a wall in the sun
        ((230, 200, 160), 0, True),  # the sky beside the sun
        ((110, 190, 100), 0, False),  # leaves out of focus
        ((170, 120, 80), 0, False),
    ],
)
def test_colors(color: tuple[int, int, int], grain: int, expected: bool) -> None:
    image, sky = with_sky(color, grain)
    found = sky_of(image, far_at(0.5))
    assert found[sky].mean() > 0.9 if expected else not found.any()


def test_night_has_none() -> None:
    image, sky = with_sky((60, 62, 66), 6)
    image[~sky] //= 4
    assert not sky_of(image, far_at(0.5)).any()


def test_the_edge_is_finer_than_the_search() -> None:
    image, sky = outdoors("white", 384, 288)
    edge = np.zeros_like(sky)
    edge[1:, :] |= sky[1:, :] & ~sky[:-1, :]
    edge[:-1, :] |= sky[:-1, :] & ~sky[1:, :]
    assert sky_of(image, far_at(0.5))[edge].mean() > 0.9


def test_the_color_of_the_light_does_not_count() -> None:
    image, sky = outdoors("white")
    image[sky] = (150, 190, 190)
    image[~sky] = (30, 75, 80)
    share = np.clip((np.arange(96) - 40) / 30, 0, 1)[:, None, None]  # haze: no edge between sky and road
    hazy = (image[:1, :1] * (1 - share) + np.array((30, 75, 80)) * share).astype(np.uint8)
    image[:, 70:] = hazy
    found = sky_of(image, far_at(0.95))
    assert found[:35, 70:].all()
    assert not found[60:].any()
    meadow, sky = with_sky((120, 140, 110), 6)
    meadow[48:86] = (140, 120, 60)
    assert not sky_of(meadow, far_at(0.5)).any()


def test_it_begins_at_the_top_and_goes_around_things() -> None:
    image, _ = outdoors("white")
    image[:40] = (30, 40, 25)  # a roof above, with a light wall below
    assert not sky_of(image, far_at(0.5)).any()
    image, sky = outdoors("white", 384, 288)
    image[70:80] = 20  # a wire from side to side, with a gap
    image[70:80, 300:340] = 255
    below = np.zeros_like(sky)
    below[85:140, 200:280] = True
    assert sky_of(image, far_at(0.5))[below].mean() > 0.95


def test_panes_at_the_top_are_too_thin() -> None:
    image, _ = outdoors("white", 192, 144)
    image[:, 0::4] = image[:, 1::4] = 25
    assert not sky_of(image, far_at(0.5)).any()


def test_snow_is_ground_below_the_farthest_row() -> None:
    image, sky = outdoors("white")
    image[48:] = 250
    found = sky_of(image, far_at(0.5))
    assert found[sky].mean() > 0.9
    assert not found[50:].any()


# When it is looked for


@pytest.mark.parametrize(
    ("scene", "probs", "expected"),
    [
        (None, None, False),
        (None, {"kitchen": 0.6, "street": 0.4}, False),
        (None, {"kitchen": 0.4, "street": 0.6}, True),
        (None, {"cafe": 0.2, "outdoor_scene": 0.8}, True),
        ("kitchen", {"kitchen": 0.1, "street": 0.9}, False),
        ("street", {"kitchen": 0.9, "street": 0.1}, True),
    ],
)
def test_the_stated_scene_or_that_of_the_image_decides(
    scene: str | None, probs: dict[str, float] | None, expected: bool
) -> None:
    assert is_outdoors(scene, probs) is expected


def test_outdoors_sky_has_no_value_unless_it_is_kept() -> None:
    image, sky = outdoors()  # dark: a street to the fake system
    result = predict_images(FakeSystem(), image)
    assert marked(result)[sky].mean() > 0.9
    assert marked(result)[~sky].mean() < 0.01
    assert result.provenance["sky"] == pytest.approx(marked(result).mean(), abs=0.02)  # type: ignore[union-attr]
    kept = predict_images(FakeSystem(), image, sky="keep")
    assert not marked(kept).any()
    assert kept.provenance["sky"] is None  # type: ignore[union-attr]
    both = ~marked(result)
    assert np.array_equal(result.depth[both], kept.depth[both])  # type: ignore[union-attr]


def test_indoors_it_is_not_looked_for() -> None:
    image, _ = outdoors("white", horizon=0.8)  # bright: a kitchen
    assert not marked(predict_images(FakeSystem(), image)).any()
    assert marked(predict_images(FakeSystem(), image, scene="street")).any()
    assert marked(predict_images(FakeSystem(), image, sky="mark")).any()
    dark, _ = outdoors()
    assert not marked(predict_images(FakeSystem(), dark, scene="kitchen")).any()


class Blind(FakeSystem):
    """Knows no scenes, and how sure it is."""

    scenes = ()

    def forward(self, image, text=None, scene=None):  # type: ignore[no-untyped-def]
        depth = super().forward(image).depth
        return DepthOutput(depth=depth, std=torch.ones_like(depth))


def test_systems_without_scenes_mark_it_when_asked() -> None:
    image, sky = outdoors()
    assert not marked(predict_images(Blind(), image)).any()
    result = predict_images(Blind(), image, sky="mark")
    assert isinstance(result, DepthResult)
    assert marked(result)[sky].mean() > 0.9
    assert result.std is not None
    assert np.array_equal(result.std > 0, result.valid)


def test_windows_and_lenses() -> None:
    image, sky = outdoors("blue", 256, 192)
    result = predict_images(FakeSystem(), image, window=(96, 128))
    assert marked(result)[sky].mean() > 0.95
    lens = Lens(coefficients=(-0.1, 0.01))
    camera = Camera(fx=200, fy=200, cx=127.5, cy=95.5, width=256, height=192, lens=lens)
    for kind in (False, True):
        result = predict_images(FakeSystem(), image, camera=camera, keep_distortion=kind)
        assert marked(result)[5:60, 130:].mean() > 0.95
        assert not marked(result)[110:180, 20:230].any()


def test_evaluation_has_depth_everywhere() -> None:
    image, _ = outdoors()
    depth = infer(FakeSystem(), torch.from_numpy(image).permute(2, 0, 1)[None]).depth
    assert (depth > 0).all()


# What comes out


def test_files_say_no_value(tmp_path: Path) -> None:
    image, _ = outdoors()
    result = predict_images(FakeSystem(), image)
    assert isinstance(result, DepthResult)
    depth, _ = read_depth16(write_result(result, tmp_path / "a_depth.png"))
    assert np.array_equal(depth == 0, marked(result))
    with np.load(write_result(result, tmp_path / "a.npz")) as file:
        assert np.array_equal(file["valid"], result.valid)
        assert json.loads(str(file["metadata"]))["provenance"]["sky"] > 0.2
    assert "sky, without a value" in write_result(result, tmp_path / "a.html").read_text()


def test_frames_of_clips(tmp_path: Path) -> None:
    image, sky = outdoors()
    for number in range(2):
        save_image(tmp_path / f"{number}.png", image)
    for frame in predict_video(tmp_path / "%d.png", FakeSystem(), fps=10):
        assert marked(frame.result)[sky].mean() > 0.9


def test_the_command_counts_images_and_frames(command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: FakeSystem())
    run = partial(command, "predict", "--save", "npy")
    for number, kind in enumerate(("blue", "white")):
        save_image(Path(f"photos/{number}.png"), outdoors(kind, horizon=0.5 + 0.3 * number)[0])
    _, out, _ = run("photos")
    lines = out.splitlines()
    assert "; sky 41%, no value" in next(line for line in lines if line.startswith("photos/0.png"))
    assert "sky" not in next(line for line in lines if line.startswith("photos/1.png"))
    assert any(line.startswith("sky has no value in 1 of 2 images") for line in lines)
    assert "sky" not in run("photos", "--sky", "keep")[1]
    assert "sky has no value in 1 of 1 frames" in run("photos/%d.png", "--end", "0.01", "--fps", "10")[1]
