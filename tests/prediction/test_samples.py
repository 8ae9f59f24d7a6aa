"""Several depths of one image: their mean and standard deviation, from the API to the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langdepth.commands._results import result_line
from langdepth.errors import UsageError
from langdepth.prediction.results import write_result
from langdepth.records import DepthOutput
from langdepth.systems.capabilities import Imagines
from tests.helpers import FakeSystem, grey


class Dreamer(FakeSystem, Imagines):
    """A FakeSystem whose samples are its depth times (1 + spread * noise), one number per map."""

    def draw_noise(self, count: int, height: int, width: int, generator: Any = None) -> Tensor:
        noise = torch.from_numpy(generator.random((count, 1, 1, 1), np.float32))
        return noise.expand(-1, -1, height // 2, width // 2)

    def draw(self, image: Tensor, text: list[str] | Tensor | None, noise: Tensor, spread: float) -> DepthOutput:
        assert len(image) == 1
        assert text is None or len(text) == 1
        return DepthOutput(depth=self(image, text).depth * (1 + spread * noise))


def test_mean_and_standard_deviation_of_the_samples() -> None:
    system, image = Dreamer(), grey(0.5)
    plain: Any = system.predict(image)
    drawn: Any = system.predict(image, samples=5, spread=0.4, seed=3)
    factors = 1 + 0.4 * np.random.default_rng(3).random(5, np.float32)
    np.testing.assert_allclose(drawn.depth, plain.depth * factors.mean(), rtol=1e-5)
    assert drawn.std is not None
    np.testing.assert_allclose(drawn.std, plain.depth * factors.std(ddof=1), rtol=1e-4)
    assert plain.std is None
    assert drawn.provenance["sampling"] == {"samples": 5, "spread": 0.4, "seed": 3}


def test_the_number_of_samples_is_limited_and_they_go_through_the_network_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system, image = Dreamer(), grey(0.5)
    with pytest.raises(UsageError, match="samples must be at most 1000, got 1001"):
        system.predict(image, samples=1001)
    whole: Any = system.predict(image, samples=5)
    monkeypatch.setattr("langdepth.prediction.sampling._AT_ONCE", 1)
    parts: Any = system.predict(image, samples=5)
    np.testing.assert_allclose(parts.depth, whole.depth, rtol=1e-6)
    np.testing.assert_allclose(parts.std, whole.std, rtol=1e-4)
    monkeypatch.setattr("langdepth.prediction.sampling.MAX_DRAWN", 10)
    with pytest.raises(UsageError, match=r"5 samples of 80 x 48 do not fit in memory"):
        system.predict(image, samples=5)


def test_a_image_gets_the_same_samples_in_any_company() -> None:
    system, images = Dreamer(), [grey(0.2), grey(0.5), grey(0.8, 96, 48)]
    alone: list[Any] = [system.predict(image, samples=3, text="words") for image in images]
    together: Any = system.predict(images, samples=3, text=["words", "words", "words"], batch_size=3)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.depth, other.depth)
        np.testing.assert_array_equal(one.std, other.std)
    other_seed: Any = system.predict(images[0], samples=3, text="words", seed=1)
    assert not np.array_equal(other_seed.depth, alone[0].depth)


def test_npz_and_the_printed_line_hold_the_deviation(tmp_path: Path) -> None:
    result: Any = Dreamer().predict(grey(0.5), samples=4)
    with np.load(write_result(result, tmp_path / "x.npz")) as file:
        np.testing.assert_array_equal(file["std"], result.std)
    line = result_line("x.png", {"npz": tmp_path / "x.npz"}, result)
    assert f"standard deviation {np.median(result.std):.2f} m (median)" in line


@pytest.mark.parametrize(
    ("system", "options", "message"),
    [
        (FakeSystem, {"samples": 4}, "the system 'fake' draws no depth from words"),
        (Dreamer, {"samples": 1}, "samples must be at least 2, got 1"),
        (Dreamer, {"samples": 4, "spread": 0}, "spread must be above 0 and at most 1, got 0"),
        (Dreamer, {"samples": 4, "spread": 1.5}, "spread must be above 0 and at most 1"),
        (Dreamer, {"samples": 4, "flip": True}, "samples go with neither flip nor windows"),
        (Dreamer, {"samples": 4, "window": (32, 32)}, "samples go with neither flip nor windows"),
    ],
)
def test_wrong_use(system: type[FakeSystem], options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        system().predict(grey(0.5), **options)
