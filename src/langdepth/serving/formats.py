"""What the service answers with: a depth map as 16-bit PNG, npz or JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
from PIL import Image

from langdepth.errors import UsageError, nearest
from langdepth.prediction.results import WRITERS, DepthResult
from langdepth.utils.png import PNG_TAG

MAX_JSON_PIXELS = 4_000_000  # about 40 MB of text


class Answer(NamedTuple):
    """The content of a response, its type and further headers."""

    content: bytes
    media_type: str
    headers: dict[str, str]


def as_png(result: DepthResult) -> Answer:
    """A 16-bit PNG; its unit stands in the headers and in the file."""
    content = _written(result, "depth16")
    with Image.open(io.BytesIO(content)) as image:
        scale = json.loads(image.info[PNG_TAG])["scale"]
    return Answer(content, "image/png", {"X-Depth-Scale": f"{scale:.9g}"})


def as_npz(result: DepthResult) -> Answer:
    """The npz file of ``langdepth predict``."""
    return Answer(_written(result, "npz"), "application/x-npz", {})


def as_json(result: DepthResult) -> Answer:
    """Rows of depth with four decimals, 0 where there is none, and what the npz file states. Raises UsageError."""
    height, width = result.depth.shape
    if height * width > MAX_JSON_PIXELS:
        raise UsageError(f"format json holds {MAX_JSON_PIXELS:,} pixels at most, the image has more; take png or npz")
    known = result.valid & np.isfinite(result.depth)
    content = {
        "width": width,
        "height": height,
        "unit": result.unit,
        "scale_kind": result.scale_kind,
        "system": result.system,
        "camera": asdict(result.camera) if result.camera else None,
        "scene_probs": result.scene_probs,
        "provenance": result.provenance,
        "depth": np.where(known, result.depth, 0).astype(np.float64).round(4).tolist(),
    }
    return Answer(json.dumps(content, default=str).encode(), "application/json", {})


def _written(result: DepthResult, format: str) -> bytes:
    file = io.BytesIO()
    WRITERS[format].write(result, file)
    return file.getvalue()


FORMATS: dict[str, Callable[[DepthResult], Answer]] = {"png": as_png, "npz": as_npz, "json": as_json}
_MEDIA_TYPES = {
    "image/png": "png",
    "image/*": "png",
    "*/*": "png",
    "application/x-npz": "npz",
    "application/octet-stream": "npz",
    "application/zip": "npz",
    "application/json": "json",
    "application/*": "json",
}


def format_asked_for(name: str | None, accept: str | None) -> str | None:
    """The key of ``FORMATS`` that a request names, or else that its header Accept prefers; None for no such type.

    Raises UsageError for a name that is unknown.
    """
    if name is not None:
        if name not in FORMATS:
            raise UsageError(f"unknown format '{name}': {nearest(name, FORMATS)}")
        return name
    wanted = []
    for place, part in enumerate((accept or "*/*").split(",")):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        try:
            wanted.append((-float(quality), place, kind))
        except ValueError:
            continue
    return next((_MEDIA_TYPES[kind] for less, _, kind in sorted(wanted) if less < 0 and kind in _MEDIA_TYPES), None)
