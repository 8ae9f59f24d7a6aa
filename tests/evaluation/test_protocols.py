"""Protocols to the pixel; names and hashes follow the rules."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langdepth.errors import UsageError
from langdepth.evaluation import protocols
from langdepth.evaluation.protocols import PROTOCOLS, Protocol
from tests.parity.runner import references


def bounds(window: tuple[slice, slice]) -> tuple[int, int, int, int]:
    rows, columns = window
    return rows.start, rows.stop, columns.start, columns.stop


@pytest.mark.parametrize(
    ("name", "stored", "frame", "crop"),
    [
        ("nyu-eigen", (480, 640), (0, 480, 0, 640), (45, 471, 41, 601)),
        ("nyu-eigen", (240, 320), (0, 240, 0, 320), (22, 235, 20, 300)),
        ("kitti-eigen-garg", (375, 1242), (23, 375, 13, 1229), (143, 349, 43, 1172)),
        ("kitti-eigen-garg", (370, 1224), (18, 370, 4, 1220), (143, 349, 43, 1172)),
        ("kitti-eigen-garg-bts", (375, 1242), (0, 375, 0, 1242), (153, 371, 44, 1197)),
        ("kitti-eigen-garg-bts", (370, 1224), (0, 370, 0, 1224), (151, 366, 43, 1180)),
        ("kitti-eigen", (375, 1242), (23, 375, 13, 1229), (117, 321, 43, 1172)),
        ("kitti-eigen", (376, 1241), (24, 376, 12, 1228), (117, 321, 43, 1172)),
        ("full", (100, 33), (0, 100, 0, 33), (0, 100, 0, 33)),
        ("depthclip-reference", (480, 640), (56, 472, 60, 604), (0, 415, 0, 541)),
        ("clip-adapters-reference", (480, 640), (56, 472, 60, 604), (0, 416, 0, 544)),
        ("diode-indoor", (768, 1024), (0, 768, 0, 1024), (45, 471, 41, 601)),
        ("ddad", (1216, 1936), (0, 1216, 0, 1936), (496, 1206, 69, 1866)),
        ("vkitti2", (375, 1242), (23, 375, 13, 1229), (143, 349, 43, 1172)),
        ("depthclip-reference", (240, 320), (28, 236, 30, 302), (0, 207, 0, 270)),
        ("scaledepth-n-reference", (480, 640), (0, 480, 0, 640), (45, 471, 41, 601)),
        ("scaledepth-n-reference", (427, 561), (0, 427, 0, 561), (45, 427, 41, 561)),
        ("scaledepth-k-reference", (375, 1242), (23, 375, 13, 1229), (143, 349, 43, 1172)),
    ],
)
def test_windows_to_the_pixel(
    name: str, stored: tuple[int, int], frame: tuple[int, int, int, int], crop: tuple[int, int, int, int]
) -> None:
    protocol = protocols.get(name)
    found = bounds(protocol.frame_slices(*stored))
    assert found == frame
    assert bounds(protocol.crop_slices(found[1] - found[0], found[3] - found[2])) == crop


def test_garg_without_the_kb_frame() -> None:
    protocol = protocols.get("kitti-eigen-garg").override(frame="stored")
    assert bounds(protocol.frame_slices(375, 1242)) == (0, 375, 0, 1242)
    assert bounds(protocol.crop_slices(375, 1242)) == (153, 371, 44, 1197)


@settings(deadline=None, derandomize=True)
@given(st.sampled_from(sorted(PROTOCOLS)), st.integers(1, 3000), st.integers(1, 3000))
def test_windows_stay_inside(name: str, height: int, width: int) -> None:
    protocol = PROTOCOLS[name]
    top, bottom, left, right = bounds(protocol.frame_slices(height, width))
    assert 0 <= top < bottom <= height
    assert 0 <= left < right <= width
    inner = bounds(protocol.crop_slices(bottom - top, right - left))
    assert 0 <= inner[0] <= inner[1] <= bottom - top
    assert 0 <= inner[2] <= inner[3] <= right - left


def test_small_images_keep_their_short_side_in_the_kb_frame() -> None:
    protocol = protocols.get("kitti-eigen-garg")
    assert bounds(protocol.frame_slices(540, 960)) == (188, 540, 0, 960)
    assert bounds(protocol.frame_slices(300, 2000)) == (0, 300, 392, 1608)


def test_mask_is_strict_at_both_ends_and_needs_known_depth() -> None:
    protocol = Protocol(name="test", min_depth=1.0, max_depth=10.0)
    depth = torch.tensor([[1.0, 1.001, 9.999, 10.0, 5.0, torch.nan]])
    known = torch.tensor([[True, True, True, True, False, True]])
    assert protocol.valid_mask(depth, known).tolist() == [[False, True, True, False, False, False]]


def test_mask_counts_the_pixels_of_the_crop() -> None:
    depth = torch.full((2, 1, 480, 640), 3.0)
    valid = protocols.get("nyu-eigen").valid_mask(depth, depth > 0)
    assert valid.flatten(1).sum(1).tolist() == [426 * 560] * 2
    assert valid[0, 0, 45, 41]
    assert not valid[0, 0, 44, 41]
    assert not valid[0, 0, 471, 41]
    assert not valid[0, 0, 45, 601]


def test_hashes_of_the_presets_do_not_drift() -> None:
    # results in the world cite these; a change of rules must be noticed (of published ones in test_reference_protocols)
    general = [name for name in PROTOCOLS if name not in references()]
    assert {name: PROTOCOLS[name].hash for name in general} == {
        "nyu-eigen": "a389146ad185",
        "kitti-eigen-garg": "41db0687924f",
        "kitti-eigen-garg-bts": "de4abfe3f3ec",
        "kitti-eigen": "ec984d3a36eb",
        "full": "90bf2ca4010c",
        "rsa-nyu-reference": "10e5d9271c4e",
        "sunrgbd": "58cc78188bb3",
        "ibims1": "dc4afbfb42a2",
        "diode-indoor": "dc4afbfb42a2",
        "diode-outdoor": "47d1bd7b39dc",
        "hypersim": "ecc2d1f3a30a",
        "vkitti2": "a4288617fd04",
        "ddad": "af3bc3b72487",
        "diml-outdoor": "2dc26678a888",
    }


def test_the_inner_window_is_what_both_published_crops_leave() -> None:
    """DepthCLIP pastes its depth into zeros and evaluates the Eigen window of the whole image where it is above 0."""
    pasted = torch.zeros(480, 640, dtype=torch.bool)
    pasted[56:472, 60:604] = True
    eigen = torch.zeros_like(pasted)
    eigen[45:471, 41:601] = True
    protocol = protocols.get("depthclip-reference")
    depth = torch.full((480, 640), 3.0)
    window = protocol.frame_slices(480, 640)
    ours = torch.zeros_like(pasted)
    ours[window] = protocol.valid_mask(depth[window], depth[window] > 0)
    assert torch.equal(ours, pasted & eigen)


def test_override_marks_name_and_hash() -> None:
    protocol = protocols.get("nyu-eigen")
    changed = protocol.override(alignment="median", flip=False, max_depth=8)
    assert changed.name == "nyu-eigen+flip=false+alignment=median+max_depth=8"
    assert changed.hash != protocol.hash
    assert (changed.alignment, changed.flip, changed.max_depth) == ("median", False, 8.0)


def test_override_writes_windows_as_pixels() -> None:
    changed = protocols.get("full").override(window=(352, 512), stride=(160, 160))
    assert changed.name == "full+window=352x512+stride=160x160"


def test_override_with_the_same_values_changes_nothing() -> None:
    protocol = protocols.get("nyu-eigen")
    assert protocol.override(flip=True, alignment=None, max_depth=10) == protocol


def test_hash_speaks_of_rules_not_names() -> None:
    assert protocols.get("kitti-eigen").override(crop="garg").hash == protocols.get("kitti-eigen-garg").hash
    assert Protocol(name="a", max_depth=10).hash == Protocol(name="b", max_depth=10.0).hash


def test_every_resize_has_a_hash_of_its_own_and_the_old_hash_is_the_systems_own() -> None:
    by_resize = {kind: Protocol(name="x", resize=kind) for kind in get_args(protocols.Resize)}
    assert len({protocol.hash for protocol in by_resize.values()}) == len(by_resize)
    old = {**by_resize["system"].switches(), "resize": "bilinear"}
    for later in ("frame_size", "clamp_views", "mask_prediction", "window", "stride", "training_focal", "min_pixels"):
        del old[later]
    canonical = json.dumps(old, sort_keys=True, separators=(",", ":"))
    assert by_resize["system"].hash == hashlib.sha256(canonical.encode()).hexdigest()[:12]


@pytest.mark.parametrize("field", list(Protocol(name="x").switches()))
def test_every_switch_changes_the_hash(field: str) -> None:
    other: dict[str, Any] = {
        "frame": "kb",
        "flip": True,
        "alignment": "median",
        "clamp_prediction": False,
        "crop": "garg",
        "min_depth": 0.1,
        "max_depth": 5.0,
        "resize": "bilinear-aligned",
        "clamp_views": True,
        "mask_prediction": True,
        "window": (96, 128),
        "stride": (48, 64),
        "frame_size": (32, 48),
        "training_focal": 519.0,
        "min_pixels": 10,
    }
    plain = Protocol(name="x", window=(64, 64) if field == "stride" else None)
    assert dataclasses.replace(plain, **{field: other[field]}).hash != plain.hash


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"crop": "grag"}, "crop: unknown value 'grag': did you mean 'garg'"),
        ({"alignment": "mean"}, "alignment: unknown value 'mean'"),
        ({"flipp": True}, "unknown switch 'flipp': did you mean 'flip'"),
        ({"min_depth": 0.0}, "0 to 10 m is not usable"),
        ({"min_depth": 20.0}, "20 to 10 m is not usable"),
        ({"max_depth": float("nan")}, "0.001 to nan m is not usable"),
        ({"window": (8.0, 8)}, r"window: expected .*, got \(8.0, 8\)"),
        ({"stride": (8, 8)}, "a stride is given without a window"),
        ({"window": (8, 8), "stride": (8, 9)}, "windows of 8x8 pixels every 8x9 do not cover an image"),
        ({"window": (0, 8)}, "windows of 0x8 pixels every 0x8 do not cover"),
        ({"training_focal": 0.0}, "training_focal 0 must be above 0"),
        ({"max_depth": 1e308}, "0.001 to 1e[+]308 m is not usable"),
        ({"max_depth": float("inf")}, "0.001 to inf m is not usable"),
        ({"min_pixels": 0}, "min_pixels 0 must be at least 1"),
    ],
)
def test_senseless_switches_are_refused(switches: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        protocols.get("nyu-eigen").override(**switches)


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown protocol 'nyu-eigne': did you mean 'nyu-eigen'"):
        protocols.get("nyu-eigne")


def test_import_is_light() -> None:
    code = "import sys, langdepth.evaluation.protocols; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
