"""The reference protocols: the golden cases of the published metric code hold under each, and notice a changed rule.

A finished prediction has been through no network, so what is done around one (frame, windows, mirroring, resizing) is
compared with the specifications instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from langdepth.evaluation import protocols
from langdepth.evaluation.protocols import PROTOCOLS
from tests.parity.runner import DATA, run_case

CASES = {
    "depthclip-reference": "metrics_depthclip",
    "clip-adapters-reference": "metrics_clip_adapters",
    "prompt-clip-nyu-reference": "prompt_losses_metrics",
    "prompt-clip-kitti-reference": "prompt_losses_metrics",
    "mde-clip-reference": "mde_clip_losses",
    "wordepth-nyu-reference": "wordepth_metrics",
    "wordepth-kitti-reference": "wordepth_metrics",
    "scaledepth-n-reference": "scaledepth_metrics",
    "scaledepth-k-reference": "scaledepth_metrics",
    "scaledepth-nk-nyu-reference": "scaledepth_metrics",
    "scaledepth-nk-kitti-reference": "scaledepth_metrics",
    "scaledepth-sunrgbd-reference": "scaledepth_metrics",
}
CHANGES: dict[str, Any] = {"crop": "eigen-nyu-46", "max_depth": 5.0, "alignment": "median"}

# What is done around the network, where it is not the default: the specifications' sections on evaluation
ADAPTERS = {"flip": True, "resize": "bilinear-aligned"}
WINDOWS = {"flip": True, "window": (352, 512), "stride": (160, 160)}
AROUND: dict[str, dict[str, Any]] = {
    "depthclip-reference": ADAPTERS | {"frame": "nyu-inner", "mask_prediction": True},
    "clip-adapters-reference": ADAPTERS | {"frame": "nyu-inner", "mask_prediction": True, "clamp_views": True},
    "prompt-clip-nyu-reference": ADAPTERS | {"clamp_views": True},
    "prompt-clip-kitti-reference": ADAPTERS | {"frame": "kb", "clamp_views": True},
    "mde-clip-reference": ADAPTERS | {"mask_prediction": True},
    "wordepth-nyu-reference": {},
    "wordepth-kitti-reference": {"frame": "kb"},
    "scaledepth-n-reference": {"clamp_prediction": False},
    "scaledepth-k-reference": {"frame": "kb", "resize": "bilinear-twice", "clamp_prediction": False},
    "scaledepth-nk-nyu-reference": WINDOWS,
    "scaledepth-nk-kitti-reference": WINDOWS | {"frame": "kb"},
    "scaledepth-sunrgbd-reference": {"training_focal": 519.163756},
}


def holds(case: str) -> bool:
    return run_case(case, DATA / f"{case}.npz").good


def test_every_reference_protocol_has_a_case() -> None:
    references = {name for name in PROTOCOLS if name.endswith("-reference")}
    references.remove("rsa-nyu-reference")  # of whose metrics no arrays are published
    assert references == set(CASES) == set(AROUND)


@pytest.mark.parametrize("case", sorted(set(CASES.values())))
def test_the_published_metric_code_gives_the_same_numbers(case: str) -> None:
    assert holds(case)


@pytest.mark.parametrize("switch", CHANGES)
@pytest.mark.parametrize("name", CASES)
def test_a_changed_rule_gives_other_numbers(name: str, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replace(PROTOCOLS[name], **{switch: CHANGES[switch]})
    assert changed != PROTOCOLS[name]
    monkeypatch.setitem(protocols.PROTOCOLS, name, changed)
    assert not holds(CASES[name])


@pytest.mark.parametrize("name", AROUND)
def test_what_is_done_around_the_network(name: str) -> None:
    rules = PROTOCOLS[name].switches()
    evaluated = {switch: rules[switch] for switch in ("crop", "min_depth", "max_depth")}
    assert rules == protocols.Protocol(name=name, **evaluated, **AROUND[name]).switches()
    assert evaluated["min_depth"] == 0.001
