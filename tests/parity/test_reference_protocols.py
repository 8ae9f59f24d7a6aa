"""Every reference protocol has a golden case of the published metric code behind it."""

from __future__ import annotations

import pytest

from langdepth.protocols import PROTOCOLS
from tests.parity.runner import DATA, run_case

GOLDEN = {
    "depthclip-reference": "metrics_depthclip",
    "clip-adapters-reference": "metrics_clip_adapters",
    "prompt-clip-nyu-reference": "prompt_losses_metrics",
    "prompt-clip-kitti-reference": "prompt_losses_metrics",
    "mde-clip-reference": "mde_clip_losses",
    "wordepth-nyu-reference": "wordepth_metrics",
    "wordepth-kitti-reference": "wordepth_metrics",
    "scaledepth-n-reference": "scaledepth_metrics_small",
    "scaledepth-k-reference": "scaledepth_metrics_small",
    "scaledepth-nk-nyu-reference": "scaledepth_metrics_small",
    "scaledepth-nk-kitti-reference": "scaledepth_metrics_small",
}


def test_all_reference_protocols_are_named() -> None:
    assert set(GOLDEN) == {name for name in PROTOCOLS if name.endswith("-reference")}


@pytest.mark.parametrize("case", sorted(set(GOLDEN.values())))
def test_its_golden_case_holds(case: str) -> None:
    assert run_case(case, DATA / f"{case}.npz").good
