"""Public functions name an argument of a wrong type in one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import langdepth
from langdepth import Camera, DepthResult
from langdepth.data.base import open_dataset
from langdepth.errors import ImageError, UsageError
from langdepth.evaluation import protocols
from langdepth.evaluation.accumulator import DepthMetrics
from langdepth.evaluation.evaluate import evaluate
from langdepth.evaluation.saved import SaveMaps
from langdepth.prediction.imagination import imagine
from langdepth.prediction.options import ColorScale
from langdepth.prediction.predictor import predict_stream
from langdepth.prediction.results import write_result
from langdepth.training.recipe import load_recipe, read_recipe
from langdepth.training.run import train
from langdepth.utils.images import read_image
from tests.helpers import FakeSystem

SYSTEM: Any = FakeSystem()
ANY: Any = None
IMAGE = np.zeros((48, 64, 3), np.uint8)
MAP = torch.ones(1, 1, 4, 4)
RESULT = DepthResult(depth=np.ones((48, 64), np.float32), valid=np.ones((48, 64), bool), system="x")


def closed() -> io.BytesIO:
    stream = io.BytesIO(b"x")
    stream.close()
    return stream


MISUSE: dict[str, Callable[[], Any]] = {
    "name: expected a text, a path or a list, got 3": lambda: langdepth.load(ANY or 3),
    "name: expected a text, a path or a list, got None": lambda: langdepth.load(ANY),
    "name: expected a text, a path or a list, got [3]": lambda: langdepth.load([ANY or 3]),
    "the name of the system is empty": lambda: langdepth.load(""),
    "load: missing a required argument: 'name'": lambda: langdepth.load(*()),  # type: ignore[call-arg]
    "offline: expected True or False or None, got 'no'": lambda: langdepth.load("tiny", offline=ANY or "no"),
    "system: expected a text, a path, a list or a System, got None": lambda: langdepth.predict(IMAGE, system=ANY),
    "flip: expected True or False, got 'no'": lambda: SYSTEM.predict(IMAGE, flip="no"),
    "batch_size: expected a whole number, got True": lambda: SYSTEM.predict(IMAGE, batch_size=True),
    "batch_size: expected a whole number, got 1.5": lambda: SYSTEM.predict(IMAGE, batch_size=1.5),
    "batch_size: expected a whole number, got one beyond 2^63": lambda: SYSTEM.predict(IMAGE, batch_size=10**5000),
    "window: expected (a whole number, a whole number) or None, got 64": lambda: SYSTEM.predict(IMAGE, window=64),
    "window: expected (a whole number, a whole number) or None, got (64,)": lambda: SYSTEM.predict(IMAGE, window=(64,)),
    "window: expected (a whole number, a whole number) or None, got (64, '9')": lambda: SYSTEM.predict(
        IMAGE, window=(64, "9")
    ),
    "scene: expected a text, a list or None, got 3": lambda: SYSTEM.predict(IMAGE, scene=3),
    "scene: expected a text, a list or None, got bytes": lambda: SYSTEM.predict(IMAGE, scene=b"kitchen"),
    "device 'cpu:7' cannot be used here": lambda: SYSTEM.predict(IMAGE, device="cpu:7"),
    "camera: the function of (width, height) failed": lambda: SYSTEM.predict(IMAGE, camera=lambda: 3),
    "camera: expected a Camera, a function, None or a list, got 60": lambda: SYSTEM.predict(IMAGE, camera=60),
    "workers: expected a whole number or None, got '2'": lambda: predict_stream(SYSTEM, [], workers=ANY or "2"),
    "workers must be at least 1, got -1": lambda: list(predict_stream(SYSTEM, [], workers=-1)),
    "paths: expected an iterable, got 3": lambda: predict_stream(SYSTEM, ANY or 3),
    "prompt: expected a text, got 3": lambda: imagine(SYSTEM, ANY or 3),
    "dataset: expected a DepthDataset, got None": lambda: evaluate(SYSTEM, ANY, protocols.get("full")),
    "root: expected a text or a path, got 3": lambda: open_dataset("folder", ANY or 3),
    "without_caption: unknown value 'x': known: neutral": lambda: open_dataset(
        "folder", "x", without_caption=ANY or "x"
    ),
    "flip: expected True or False, got 'yes'": lambda: protocols.get("full").override(flip="yes"),
    "max_depth: expected a number, got '10'": lambda: protocols.get("full").override(max_depth="10"),
    "crop: expected one of none, eigen-nyu": lambda: protocols.get("full").override(crop=3),
    "fx: expected a number, got '1'": lambda: Camera(fx=ANY or "1", fy=1, cx=1, cy=1, width=3, height=3),
    "fov_degrees: expected a number, got '60'": lambda: Camera.from_fov(ANY or "60", 3, 3),
    "width: expected a whole number, got 3.5": lambda: Camera.guess(ANY or 3.5, 3),
    "the image size must be positive, got 0x3": lambda: Camera.guess(3, 4).scaled(0, 3),
    "orientation: expected a whole number, got [1]": lambda: Camera.guess(3, 4).oriented(ANY or [1]),
    "depth has shape (1, 2)": lambda: Camera.guess(3, 4).unproject(ANY or [[1, 2]]),
    "points in space have shape (..., 3), these (2,)": lambda: Camera.guess(3, 4).project(ANY or [1, 2]),
    "expected an array of real numbers, got str": lambda: Camera.guess(3, 4).project(ANY or "x"),
    "depth: expected a ndarray, got [[1]]": lambda: DepthResult(depth=ANY or [[1]], valid=ANY, system="x"),
    "path: expected a text or a path, got None": lambda: RESULT.save(ANY),
    "scale: expected a number or None, got 'x'": lambda: write_result(RESULT, "x_depth.png", scale="x"),
    "colors: expected a ColorScale, got 3": lambda: write_result(RESULT, "x_color.png", colors=3),
    "write_npy: got an unexpected keyword argument 'scale'": lambda: write_result(RESULT, "x.npy", scale=3),
    "minimum: expected a number or None, got '1'": lambda: ColorScale(minimum=ANY or "1"),
    "formats: expected (a text, ...), got 'npy'": lambda: SaveMaps(folder=Path("x"), formats=ANY or "npy"),
    "max_pixels: expected a whole number, got '3'": lambda: read_image(IMAGE, max_pixels=ANY or "3"),
    "prediction: expected a Tensor, got ndarray": lambda: DepthMetrics().update(MAP.numpy(), MAP, MAP > 0),
    "must be dense tensors with content": lambda: DepthMetrics().update(MAP.to_sparse(), MAP, MAP > 0),
    "name: expected a text or a path, got 3": lambda: load_recipe(ANY or 3),
    "recipe: expected a mapping": lambda: read_recipe(ANY or 3),
    "recipe: expected a Recipe, got dict": lambda: train(ANY or {"a": 1}),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("message", MISUSE)
def test_an_argument_of_another_type_is_named(message: str) -> None:
    with pytest.raises(UsageError) as caught:
        MISUSE[message]()
    assert message in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    result = SYSTEM.predict(IMAGE, batch_size=np.int64(2), flip=np.True_, window=[np.int32(48), 64])
    assert result.depth.shape == (48, 64)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 48, 64, device="meta"), "on meta: give a dense one"),
        (torch.zeros(2, 3, 48, 64, device="meta"), "on meta: give a dense one"),
        (torch.zeros(3, 48, 64).to_sparse(), "torch.sparse_coo, on cpu: give a dense one"),
        (closed(), "is not open for reading bytes"),
        (io.StringIO("x"), "is not open for reading bytes"),
    ],
)
def test_images_that_hold_nothing_to_read(image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        SYSTEM.predict(image)


def test_arrays_of_the_other_byte_order() -> None:
    values = np.linspace(0, 65535, 48 * 64, dtype=np.uint16).reshape(48, 64)
    expected = read_image(values).pixels
    for order in "<>":
        np.testing.assert_array_equal(read_image(values.astype(f"{order}u2")).pixels, expected)
