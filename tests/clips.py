"""Small videos for tests, written by PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

av = pytest.importorskip("av")

Pixels = npt.NDArray[Any]


def brightening(count: int, width: int = 64, height: int = 48) -> list[Pixels]:
    """Frames that get brighter, from 0.2 to 0.8, with something to see on them."""
    pattern = np.random.default_rng(0).integers(-15, 16, (height // 4 + 1, width // 4 + 1, 1))
    pattern = pattern.repeat(4, 0).repeat(4, 1)[:height, :width]
    levels = np.linspace(51, 204, count)
    return [np.broadcast_to(pattern + level, (height, width, 3)).astype(np.uint8) for level in levels]


def save_clip(
    path: Path,
    frames: Sequence[Pixels],
    *,
    times: Sequence[int] | None = None,
    rate: int = 10,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    colors: tuple[int, int, int] | None = None,
    rotation: int | None = None,
    format: str | None = None,
    ticks: int = 1000,
    title: str = "",
    **options: str,
) -> Path:
    """A video of ``frames`` (H, W, 3) uint8, or uint16 in formats of more bits.

    ``times``: of each in ``ticks`` of a second, otherwise ``rate`` per second. ``colors``: primaries, curve and matrix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=format, options=options) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate, options={"bf": "0"} if codec == "libx264" else {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.time_base = stream.codec_context.time_base = Fraction(1, ticks)
        if colors is not None:
            context = stream.codec_context
            context.color_primaries, context.color_trc, context.colorspace = colors
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, image in enumerate(frames):
            kind = "rgb48le" if image.dtype == np.uint16 else "rgb24"
            frame = av.VideoFrame.from_ndarray(image, format=kind)
            if colors is not None:
                frame = frame.reformat(format=pixels, dst_colorspace=colors[2], dst_color_range=1)
            frame.pts = ticks * number // rate if times is None else times[number]
            frame.time_base = Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read_clip(path: Path) -> tuple[list[float], list[Pixels]]:
    """Times and RGB frames of a video."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [float(frame.time) for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]
