"""Depth of a clip without flicker: one scale for all frames, and what is seen again keeps its depth.

A system predicts each frame on its own, so that its scale jumps from one to the next and single places tremble. Two
corrections, both from this frame and those before it alone, and both of the logarithm of depth:

* scale: how much the depths of the same places have changed since the frame before (the median over the image, along
  the motion) adds up to a walk. The clip's scale is the running median of this walk over the last half second: jumps
  are taken out, what changes for good (the camera walks on) stays.
* motion: each place keeps a share of the depth that it had in the frame before, moved along the motion and brought to
  today's scale. It does not where it looks different or where the new depth is far from the old one, so that things
  that move keep their own depth.

Corrections are found on a small image and enlarged, so that the edges of the depth map stay as the system drew them.
At a cut to another scene everything begins anew.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from langdepth.prediction.video.motion import Floats, Motion, small_grey

_WINDOW = 0.5  # seconds over which the median of the scale is taken
_MEMORY = 0.15  # seconds after which a place has forgotten all but 1/e of its old depth
_BAND = 0.15  # of the logarithm: depths that lie further apart are of different things
_CUT = 0.25  # a smaller share of the image that looks as before is another scene
_LEAST = 1e-6


class Steady:
    """What corrects the depth of one frame after the other."""

    def __init__(self, *, along_motion: bool = True) -> None:
        self._along_motion = along_motion
        self._walk: deque[tuple[float, float]] = deque()  # (time, logarithm of the scale so far)
        self._level = 0.0  # the running median
        self._before: tuple[Floats, Floats, Floats] | None = None  # the grey image, its log depth, the corrected one

    def __call__(self, pixels: npt.NDArray[np.uint8], depth: Floats, time: float) -> Floats:
        """What the depth (H, W) of the frame is to be multiplied with, (H, W).

        Args:
            pixels: (H, W, 3) RGB.
            depth: Of any unit; 0 or less has no value.
            time: Seconds; rises.
        """
        grey = small_grey(pixels)
        log = _small_log(depth, grey.shape)
        if self._before is not None and self._before[0].shape == grey.shape:
            motion = Motion(self._before[0], grey)
            if motion.alike.mean() >= _CUT:
                steady = self._corrected(log, motion, time)
                self._before = grey, log, steady
                change = Image.fromarray(steady - log).resize(
                    (depth.shape[1], depth.shape[0]), Image.Resampling.BILINEAR
                )
                return np.exp(np.asarray(change))
        self._walk, self._level = deque([(time, 0.0)]), 0.0
        self._before = grey, log, log
        return np.ones_like(depth, np.float32)

    def _corrected(self, log: Floats, motion: Motion, time: float) -> Floats:
        """The logarithm of depth (h, w) with the clip's scale and the memory of the places."""
        assert self._before is not None
        _, old_log, old_steady = self._before
        ago = time - self._walk[-1][0]
        step = float(np.median((log - motion.along(old_log))[motion.alike]))
        self._walk.append((time, self._walk[-1][1] + step))
        while self._walk[0][0] < time - max(_WINDOW, ago):
            self._walk.popleft()
        level = float(np.median([place for _, place in self._walk]))
        steady = log + np.float32(level - self._walk[-1][1])
        if self._along_motion:
            apart = motion.along(old_steady) + np.float32(level - self._level) - steady
            steady += math.exp(-ago / _MEMORY) * motion.alike * np.exp(-((apart / _BAND) ** 2)) * apart
        self._level = level
        return steady.astype(np.float32)

    def state(self) -> dict[str, Any]:
        """Arrays from which ``restored`` goes on as if nothing had been between."""
        maps = {} if self._before is None else dict(zip(("grey", "log", "steady"), self._before, strict=True))
        return {"walk": np.array([*self._walk], np.float64).reshape(-1, 2), "level": np.float64(self._level), **maps}

    def restored(self, state: Mapping[str, Any]) -> Steady:
        """Itself in the ``state`` of another one. Raises ValueError, KeyError for what is none."""
        self._walk = deque((float(time), float(place)) for time, place in state["walk"])
        self._level = float(state["level"])
        self._before = (state["grey"], state["log"], state["steady"]) if "grey" in state else None
        maps = [*(self._before or ())]
        if any(one.ndim != 2 or one.shape != maps[0].shape or not np.isfinite(one).all() for one in maps):
            raise ValueError("no state of a clip")
        return self


def _small_log(depth: Floats, size: Sequence[int]) -> Floats:
    """The logarithm of depth at (h, w) ``size``; pixels without a value count as those about them."""
    has = np.isfinite(depth) & (depth > 0)
    small = _shrunk(np.where(has, depth, 0), size)
    if not has.all():
        share = _shrunk(has.astype(np.float32), size)
        filled = np.float32(np.median(depth[has])) if has.any() else np.float32(1)
        small = np.where(share > 0, small / np.maximum(share, _LEAST), filled)
    return np.log(np.maximum(small, _LEAST))


def _shrunk(values: Floats, size: Sequence[int]) -> Floats:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BOX))
