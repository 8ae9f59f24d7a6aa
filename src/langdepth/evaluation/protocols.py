"""Named evaluation protocols: every rule between a network's depth and a published number (docs/protocols.md)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from langdepth.errors import UsageError, nearest
from langdepth.evaluation.switches import SWITCHES
from langdepth.records import MAX_NETWORK_PIXELS
from langdepth.utils.arguments import check_fields, checked
from langdepth.utils.plugins import load_target, plugins, source_of

if TYPE_CHECKING:
    from torch import Tensor

Frame = Literal["stored", "kb", "kb-pasted", "nyu-inner"]
Crop = Literal["none", "eigen-nyu", "eigen-nyu-46", "eigen-nyu-inner", "eigen-nyu-pixels", "eigen-kitti", "garg"]
Alignment = Literal["none", "median", "least_squares", "disparity"]
Resize = Literal["system", "bilinear", "bilinear-aligned", "bilinear-twice"]
ScaleKind = Literal["metric", "relative", "disparity"]
"""What the numbers of a model are: metres, depth up to a factor (or a factor and a shift), or disparity."""

# top, bottom, left, right as shares of height and width, rounded down; exact fractions keep 45/480 of 480 at 45
_CROPS: dict[str, tuple[Fraction, Fraction, Fraction, Fraction]] = {
    "none": (Fraction(0), Fraction(1), Fraction(0), Fraction(1)),
    "eigen-nyu": (Fraction(45, 480), Fraction(471, 480), Fraction(41, 640), Fraction(601, 640)),
    "eigen-nyu-46": (Fraction(45, 480), Fraction(471, 480), Fraction(46, 640), Fraction(601, 640)),
    "eigen-nyu-inner": (Fraction(0), Fraction(415, 416), Fraction(0), Fraction(541, 544)),
    "eigen-kitti": (Fraction("0.3324324"), Fraction("0.91351351"), Fraction("0.03594771"), Fraction("0.96405229")),
    "garg": (Fraction("0.40810811"), Fraction("0.99189189"), Fraction("0.03594771"), Fraction("0.96405229")),
}
_KB_HEIGHT, _KB_WIDTH = 352, 1216
_NYU_PIXELS = (45, 471, 41, 601)
_NYU_INNER = (Fraction(56, 480), Fraction(472, 480), Fraction(60, 640), Fraction(604, 640))
# How resize enters the hash: "bilinear" is what the protocols said that now leave it to the system.
_RESIZE_IN_HASH = {"system": "bilinear", "bilinear": "bilinear-centres"}
_FITTED_PIXELS = 10  # evaluated pixels that an alignment needs unless stated; a line goes through any two
FARTHEST = 1e6  # metres; beyond, squares leave the range of float32


# They came after results were published: left at their default, they do not enter the hash.
_LATER = ("frame_size", "clamp_views", "mask_prediction", "window", "stride", "training_focal", "min_pixels")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The rules of one evaluation. ``SWITCHES`` says what each switch does.

    The order in which they act: frame, frame_size; crop, min_depth, max_depth, min_pixels (which pixels are evaluated);
    window, stride, clamp_views, flip, resize, training_focal; alignment on these pixels, mask_prediction,
    clamp_prediction.

    Raises:
        UsageError: For values that make no sense.
    """

    name: str
    frame: Frame = "stored"
    frame_size: tuple[int, int] | None = None
    flip: bool = False
    resize: Resize = "system"
    alignment: Alignment = "none"
    clamp_prediction: bool = True
    crop: Crop = "none"
    min_depth: float = 0.001
    max_depth: float = 1000.0
    clamp_views: bool = False
    mask_prediction: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    training_focal: float | None = None
    min_pixels: int | None = None
    extra_metrics: tuple[str, ...] = ()
    """Reported beside the standard nine; not a rule and not part of the hash."""

    def __post_init__(self) -> None:
        check_fields(self)
        for key in ("min_depth", "max_depth"):  # 10 and 10.0 are one protocol and must have one hash
            object.__setattr__(self, key, float(getattr(self, key)))
        if not 0 < self.min_depth < self.max_depth <= FARTHEST:
            raise UsageError(
                f"protocol: the depth range {self.min_depth:g} to {self.max_depth:g} m is not usable; "
                f"give 0 < min_depth < max_depth <= {FARTHEST:g}"
            )
        if self.frame_size is not None and not (
            min(self.frame_size) >= 1 and math.prod(self.frame_size) <= MAX_NETWORK_PIXELS
        ):
            raise UsageError(
                f"protocol: frame_size {_short(self.frame_size)} is not usable; give HEIGHTxWIDTH in pixels"
            )
        if self.frame_size is not None and (self.frame == "kb-pasted" or self.resize == "bilinear-twice"):
            raise UsageError("protocol: frame_size is for frames that the network gets whole, resized once")
        if self.training_focal is not None and not 0 < self.training_focal < math.inf:
            raise UsageError(f"protocol: training_focal {self.training_focal:g} must be above 0, in pixels")
        if self.min_pixels is not None and not self.min_pixels >= 1:
            raise UsageError(f"protocol: min_pixels {self.min_pixels} must be at least 1")
        check_window(self.window, self.stride)

    @property
    def needed_pixels(self) -> int:
        """The number of pixels to evaluate without which an image is skipped."""
        return self.min_pixels or (1 if self.alignment == "none" else _FITTED_PIXELS)

    def switches(self) -> dict[str, Any]:
        """All rules: every field but the name and the extra metrics."""
        return {k: value for k, value in dataclasses.asdict(self).items() if k not in ("name", "extra_metrics")}

    def explain(self) -> dict[str, str]:
        """What each switch means as it is set."""
        switches = self.switches()
        shown = {key: _short(value) for key, value in switches.items()}
        means = {key: SWITCHES[key].means for key in switches}
        return {
            key: means[key].get(value, means[key].get("set", "")).format(**shown) for key, value in switches.items()
        }

    @property
    def hash(self) -> str:
        """Twelve hex digits of the SHA-256 of the switches: the same rules have the same hash, whatever their name."""
        switches = self.switches()
        switches["resize"] = _RESIZE_IN_HASH.get(self.resize, self.resize)
        for switch in dataclasses.fields(self):
            if switch.name in _LATER and switches[switch.name] == switch.default:
                del switches[switch.name]
        canonical = json.dumps(switches, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def override(self, **switches: Any) -> Protocol:
        """The protocol with some switches changed (None keeps one). Each real change is marked in the name:
        "nyu-eigen+alignment=median". Raises UsageError for unknown switches and values."""
        for key in switches.keys() - SWITCHES.keys():
            raise UsageError(f"protocol: unknown switch '{key}': {nearest(key, SWITCHES)}")
        return self._changed({key: value for key, value in switches.items() if value is not None})

    def without(self, *switches: str) -> Protocol:
        """The protocol with some switches at their defaults; each real change is marked in the name: "+window=none"."""
        defaults = {switch.name: switch.default for switch in dataclasses.fields(self)}
        return self._changed({key: defaults[key] for key in switches})

    def _changed(self, switches: dict[str, Any]) -> Protocol:
        changed = dataclasses.replace(self, **switches)
        marks = [f"+{key}={_short(value)}" for key, value in changed.switches().items() if value != getattr(self, key)]
        return dataclasses.replace(changed, name=self.name + "".join(marks))

    def frame_slices(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a stored image that take part. A side shorter than the KB frame's is kept whole."""
        if self.frame in ("stored", "kb-pasted"):
            return slice(0, height), slice(0, width)
        if self.frame == "nyu-inner":
            # The ends are rounded up, so that something is left of any image.
            top_share, bottom, left_share, right = _NYU_INNER
            rows = slice(int(top_share * height), math.ceil(bottom * height))
            return rows, slice(int(left_share * width), math.ceil(right * width))
        return _kb_slices(height, width)

    def view_slices(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a (height, width) frame that the network gets."""
        return _kb_slices(height, width) if self.frame == "kb-pasted" else (slice(0, height), slice(0, width))

    def crop_slices(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a (height, width) frame that are evaluated."""
        if self.crop == "eigen-nyu-pixels":
            first_row, end_row, first_column, end_column = _NYU_PIXELS
            rows = slice(min(first_row, height), min(end_row, height))
            return rows, slice(min(first_column, width), min(end_column, width))
        top, bottom, left, right = _CROPS[self.crop]
        return slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))

    def valid_mask(self, depth: Tensor, mask: Tensor) -> Tensor:
        """The evaluated pixels, (..., H, W) bool. ``depth``: the frame's ground truth; ``mask``: where it is known."""
        window = (..., *self.crop_slices(*mask.shape[-2:]))
        valid = mask.new_zeros(mask.shape)
        valid[window] = mask[window] & (depth[window] > self.min_depth) & (depth[window] < self.max_depth)
        return valid


def _kb_slices(height: int, width: int) -> tuple[slice, slice]:
    top, left = max(0, height - _KB_HEIGHT), max(0, (width - _KB_WIDTH) // 2)
    return slice(top, height), slice(left, min(width, left + _KB_WIDTH))


def check_window(window: tuple[int, int] | None, stride: tuple[int, int] | None) -> None:
    """Raise UsageError for windows that have no size, or that leave out a part of the image."""
    if window is None:
        if stride is not None:
            raise UsageError("a stride is given without a window; give both, for example 352x512 and 160x160")
        return
    steps = stride or window
    if not all(1 <= step <= side for side, step in zip(window, steps, strict=True)):
        raise UsageError(
            f"windows of {_short(window)} pixels every {_short(steps)} do not cover an image; both sides of the "
            "stride must be from 1 to those of the window"
        )


def _short(value: Any) -> str:
    """A switch's value in a protocol's name."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


_GARG: dict[str, Any] = {"frame": "kb", "crop": "garg", "max_depth": 80.0}
_INNER = Protocol(
    name="clip-adapters-reference",
    frame="nyu-inner",
    flip=True,
    resize="bilinear-aligned",
    max_depth=10.0,
    clamp_views=True,
    mask_prediction=True,
)

_PROMPT = dataclasses.replace(
    _INNER,
    mask_prediction=False,
    name="prompt-clip-nyu-reference",
    frame="stored",
    crop="eigen-nyu",
    extra_metrics=("msle",),
)
_SCALEDEPTH = Protocol(
    name="scaledepth-n-reference",
    clamp_prediction=False,
    crop="eigen-nyu-pixels",
    max_depth=10.0,
    extra_metrics=("delta0.5",),
)
_SCALEDEPTH_NK = dataclasses.replace(
    _SCALEDEPTH,
    name="scaledepth-nk-nyu-reference",
    flip=True,
    window=(352, 512),
    stride=(160, 160),
    clamp_prediction=True,
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="nyu-eigen", flip=True, crop="eigen-nyu", max_depth=10.0),
        Protocol(name="kitti-eigen-garg", flip=True, **_GARG),
        Protocol(name="kitti-eigen-garg-bts", frame="kb-pasted", crop="garg", max_depth=80.0),
        Protocol(name="kitti-eigen", frame="kb", flip=True, crop="eigen-kitti", max_depth=80.0),
        Protocol(name="full"),
        dataclasses.replace(
            _INNER, name="depthclip-reference", crop="eigen-nyu-inner", clamp_views=False, extra_metrics=("abs_diff",)
        ),
        _INNER,
        _PROMPT,
        dataclasses.replace(_PROMPT, name="prompt-clip-kitti-reference", **_GARG),
        dataclasses.replace(
            _INNER, name="mde-clip-reference", frame="stored", clamp_views=False, extra_metrics=("abs_diff",)
        ),
        Protocol(name="wordepth-nyu-reference", crop="eigen-nyu", max_depth=10.0),
        Protocol(name="wordepth-kitti-reference", frame="kb", crop="garg", max_depth=80.0),
        Protocol(name="rsa-nyu-reference", max_depth=10.0),
        _SCALEDEPTH,
        dataclasses.replace(_SCALEDEPTH, name="scaledepth-k-reference", resize="bilinear-twice", **_GARG),
        _SCALEDEPTH_NK,
        dataclasses.replace(_SCALEDEPTH_NK, name="scaledepth-nk-kitti-reference", **_GARG),
        # Of ScaleDepth's zero-shot test; the focal length is that of NYU, which the network has learned from
        dataclasses.replace(
            _SCALEDEPTH,
            name="scaledepth-sunrgbd-reference",
            clamp_prediction=True,
            max_depth=8.0,
            training_focal=519.163756,
        ),
        # Zero-shot sets: ranges, crops and clamps of that test, the whole image at once
        Protocol(name="sunrgbd", crop="eigen-nyu-pixels", max_depth=8.0),
        Protocol(name="ibims1", crop="eigen-nyu-pixels", max_depth=10.0, clamp_prediction=False),
        Protocol(name="diode-indoor", crop="eigen-nyu-pixels", max_depth=10.0, clamp_prediction=False),
        Protocol(name="diode-outdoor", crop="garg", max_depth=80.0, clamp_prediction=False),
        Protocol(name="hypersim", crop="eigen-nyu-pixels", max_depth=80.0, clamp_prediction=False),
        Protocol(name="vkitti2", **_GARG),
        Protocol(name="ddad", crop="garg", max_depth=80.0),
        Protocol(name="diml-outdoor", crop="garg", min_depth=2.0, max_depth=80.0, clamp_prediction=False),
    )
}


def _of_papers() -> Iterator[Protocol]:
    """The PROTOCOLS of systems/*/protocols.py; run as files, since they take ``Protocol`` from this module."""
    for path in sorted(Path(__file__).parents[1].glob("systems/*/protocols.py")):
        yield from runpy.run_path(str(path))["PROTOCOLS"]


PROTOCOLS |= {protocol.name: protocol for protocol in _of_papers()}


def names() -> list[str]:
    """The names of all presets, those of installed plug-ins last."""
    return [*PROTOCOLS, *plugins("protocols", tuple(PROTOCOLS))]


@checked
def get(name: str) -> Protocol:
    """The preset called ``name``. Raises UsageError naming the nearest known one."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    if name not in names():
        raise UsageError(f"unknown protocol '{name}': {nearest(name, names())}")
    point = plugins("protocols", tuple(PROTOCOLS))[name]
    found = load_target(point.value, f"the protocol '{name}'")
    if not isinstance(found, Protocol) or found.name != name:
        raise UsageError(f"{source_of(point)}: '{point.value}' is no Protocol called '{name}'")
    return found
