"""Training transforms on images of any size, with any share of known depth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langdepth.data.transforms import Augmentation, TrainTransform, resize_depth
from langdepth.records import Sample

SIDE = st.integers(1, 120)
SMALL = st.integers(1, 40)
NET_SIZE = st.tuples(st.sampled_from([16, 32, 48]), st.sampled_from([16, 32, 80]))
ALL_ON = Augmentation(
    flip=0.5,
    zoom=3.0,
    zoom_probability=0.8,
    rotate=45,
    rotate_probability=0.8,
    colour_probability=0.8,
    grey=0.5,
    blur=0.5,
    cut_depth=0.5,
    erase=0.5,
)


def make_depth(height: int, width: int, known: float, far: float, random: torch.Generator) -> torch.Tensor:
    depth = far * (0.001 + torch.rand(1, height, width, generator=random))
    return torch.where(torch.rand(1, height, width, generator=random) < known, depth, 0.0)


@settings(max_examples=60)
@given(
    height=SIDE,
    width=SIDE,
    size=NET_SIZE,
    known=st.sampled_from([0.0, 0.01, 0.2, 0.9, 1.0]),
    far=st.sampled_from([0.5, 10.0, 300.0]),
    seed=st.integers(0, 2**62),
    as_bytes=st.booleans(),
)
def test_whatever_comes_in_depth_is_finite_and_the_mask_says_where(
    height: int, width: int, size: tuple[int, int], known: float, far: float, seed: int, as_bytes: bool
) -> None:
    random = torch.Generator().manual_seed(seed)
    depth = make_depth(height, width, known, far, random)
    image = torch.rand(3, height, width, generator=random)
    if as_bytes:
        image = (image * 255).byte()
    sample = Sample(image=image, depth=depth, mask=depth > 0)
    torch.manual_seed(seed)
    found = TrainTransform(ALL_ON, area=32 * 32)(sample, size)
    assert found.image.shape == (3, *size)
    assert found.depth.shape == found.mask.shape == (1, *size)
    assert found.image.dtype == found.depth.dtype == torch.float32
    assert found.image.min() >= -1e-6
    assert found.image.max() <= 1 + 1e-6
    assert torch.isfinite(found.depth).all()
    assert (found.depth >= 0).all()
    assert torch.equal(found.mask, found.depth > 0)
    if known == 0:
        assert not found.mask.any()
    if known == 1:
        assert found.mask.any()


@settings(max_examples=60)
@given(height=SMALL, width=SMALL, new=st.tuples(SMALL, SMALL), known=st.floats(0, 1), seed=st.integers(0, 2**62))
def test_resized_depth_holds_only_values_that_were_there(
    height: int, width: int, new: tuple[int, int], known: float, seed: int
) -> None:
    depth = make_depth(height, width, known, 10.0, torch.Generator().manual_seed(seed))
    found = resize_depth(depth, new)
    assert found.shape == (1, *new)
    there = torch.cat([depth.flatten(), torch.zeros(1)])
    nearest = (found.flatten()[:, None] - there).abs().amin(1)
    assert nearest.max().item() == pytest.approx(0, abs=1e-5)
    sparse = (depth > 0).float().mean() < 0.3
    if sparse and new[0] <= height and new[1] <= width:
        assert found.any() == depth.any()
