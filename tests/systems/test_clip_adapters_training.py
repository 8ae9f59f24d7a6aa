"""How the CLIP adapters use an image and its mirror image, with a network that repeats its input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from langdepth.records import Batch, InputSpec
from langdepth.systems.clip_adapters.losses import AdapterLosses
from langdepth.systems.clip_adapters.mirror_training import MirrorTraining, MirrorTrainingConfig, RawDepth


@dataclass(frozen=True, kw_only=True)
class Config(MirrorTrainingConfig):
    losses: AdapterLosses = field(default_factory=lambda: AdapterLosses(symmetry=0.3, smoothness=0.001))
    reference_exact: bool = False


class Repeating(MirrorTraining):
    """10 metres times the red of the image, plus the red of the overlay."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Config(**options), InputSpec(multiple_of=1))

    def network(self, image: Tensor, features: Any, words: Any, overlay: Tensor | None) -> RawDepth:
        return RawDepth(10 * image[:, :1] + (0 if overlay is None else overlay[:, :1]))


def batch(overlay: bool = False) -> Batch:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 32, 48)
    depth = 10 * image[:, :1]
    mask = torch.rand(depth.shape) < 0.7
    labels: dict[str, Any] = {"scene": torch.tensor([-1, -1]), "text": [None] * 2, "path": ["", ""]}
    return Batch(
        image=image,
        depth=torch.where(mask, depth, 0),
        mask=mask,
        overlay=torch.rand_like(image) if overlay else None,
        **labels,
    )


@pytest.mark.parametrize("overlay", [False, True])
def test_the_mirror_image_is_mirrored_back_and_so_is_its_overlay(overlay: bool) -> None:
    """A network that predicts every pixel from itself alone then gives the same twice."""
    found = Repeating().loss(batch(overlay))
    assert float(found["symmetry"]) == pytest.approx(0, abs=1e-10)
    assert (float(found["depth"]) < 1e-5) != overlay


def test_holes_are_left_out_or_learned_as_0_m() -> None:
    given = batch()
    assert float(Repeating().loss(given)["depth"]) == pytest.approx(0, abs=1e-5)
    holes = (10 * given.image[:, :1])[~given.mask].sum() / given.mask.numel()
    assert float(Repeating(masked=False).loss(given)["depth"]) == pytest.approx(float(holes), rel=1e-5)


def test_the_total_is_weighted_as_the_configuration_says() -> None:
    found = {name: float(value) for name, value in Repeating(masked=False).loss(batch()).items()}
    assert found["total"] == pytest.approx(found["depth"] + 0.001 * found["smoothness"] + 0.3 * found["symmetry"])
    assert found["smoothness"] > 0


def test_depth_is_limited_to_its_range() -> None:
    system = Repeating(losses=AdapterLosses(max_depth=4.0), min_depth=0.5)
    depth = system(torch.linspace(0, 1, 32 * 48).view(1, 1, 32, 48).expand(1, 3, -1, -1)).depth
    assert (float(depth.min()), float(depth.max())) == (0.5, 4.0)
