"""Depth of a clip, frame after frame: decoded ahead, predicted in batches, made steady, each with its time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from langdepth.errors import LangdepthError
from langdepth.prediction.options import ColorScale
from langdepth.prediction.predictor import predict_stream
from langdepth.prediction.results import DepthResult
from langdepth.prediction.video.clip import Clip, Frame
from langdepth.prediction.video.steady import Steady
from langdepth.prediction.viz import robust_range
from langdepth.systems.contract import Predicts

Change = Callable[[DepthResult], DepthResult]
_LOOKS = 24  # frames that a first look at a clip takes
_PIXELS_OF_A_LOOK = 20_000


class FrameResult(NamedTuple):
    """Depth of one frame.

    number: its place among the frames that are taken, from 0. time: seconds from the beginning of the clip.
    """

    number: int
    time: float
    result: DepthResult


def predict_frames(
    system: Predicts,
    clip: Clip,
    frames: Iterable[Frame],
    *,
    steady: Steady | None = None,
    metres: Change | None = None,
    **options: Any,
) -> Generator[FrameResult]:
    """Depth of the frames of a clip in their order, in bounded memory.

    Args:
        system: What predicts.
        clip: Where they come from.
        frames: What ``clip.frames`` gives.
        steady: Takes the flicker out; None leaves each frame on its own.
        metres: What is done to each result before that, for example what gives metres to relative maps.
        **options: Of ``predict_stream``.

    Raises:
        LangdepthError: A frame cannot be predicted; those before it have come.
    """
    if clip.live:
        options["batch_size"] = 1  # an image is shown as soon as it is there
    results = predict_stream(system, frames, read=lambda frame: frame.pixels, keep_image=True, **options)
    with closing(results):
        for frame, result in results:
            if isinstance(result, LangdepthError):
                raise LangdepthError(f"{clip.name}, second {frame.time:.3f}: {result}")
            result = result if metres is None else metres(result)
            facts = {"path": clip.name, "frame": frame.number, "time": frame.time}
            result = replace(result, provenance={**result.provenance, **facts})
            if steady is not None:
                result = _steadied(result, steady, frame)
            yield FrameResult(frame.number, frame.time, result)


def _steadied(result: DepthResult, steady: Steady, frame: Frame) -> DepthResult:
    assert result.image is not None
    factor = steady(result.image, result.depth, frame.time)  # that of the map, which may be straightened
    maps = {name: getattr(result, name) for name in ("depth", "std", "sigma")}
    return replace(result, **{name: one * factor for name, one in maps.items() if one is not None})


def steady_of(clip: Clip) -> Steady | None:
    """What the options of a clip ask for; motion without a wish."""
    kind = clip.options.steady or "motion"
    return None if kind == "off" else Steady(along_motion=kind == "motion")


def look_at(results: Iterable[DepthResult]) -> tuple[float, float, float] | None:
    """(2nd percentile, 98th percentile, greatest) of the depths of some results together; None for none."""
    values = []
    for result in results:
        depth = result.depth[result.valid & np.isfinite(result.depth)]
        values.append(depth[:: 1 + depth.size // _PIXELS_OF_A_LOOK])
    depths = np.concatenate(values) if values else np.empty(0, np.float32)
    return (*robust_range(depths), float(depths.max())) if depths.size else None


def first_look(system: Predicts, clip: Clip, **options: Any) -> tuple[float, float, float] | None:
    """``look_at`` about 24 frames spread over the clip; None where it cannot be sought, as a camera.

    The ``options`` are those of ``predict_frames``.
    """
    with closing(predict_frames(system, clip, clip.sampled(_LOOKS), **options)) as frames:
        return look_at(frame.result for frame in frames)


def clip_colors(colors: ColorScale, look: tuple[float, float, float] | None) -> ColorScale:
    """The colors of a whole clip: what ``colors`` leaves open is the range of the ``look``."""
    low, high = (0.0, 1.0) if look is None else look[:2]
    if colors.minimum is None and colors.maximum is None:
        return replace(colors, minimum=low, maximum=high)
    return colors
