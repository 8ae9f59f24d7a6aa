"""A depth map as one HTML file that needs no network: ``--save html``."""

from __future__ import annotations

import html
import json
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from io import BytesIO
from math import atan, degrees, sqrt
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from langdepth._version import __version__
from langdepth.camera import Camera
from langdepth.errors import printable
from langdepth.prediction.options import ColorScale
from langdepth.prediction.viz import Pixels, palette, shown_range
from langdepth.utils.numbers import short_number

TEMPLATES = Path(__file__).with_name("templates")
MAX_PAGE_PIXELS = 1_000_000  # of larger maps columns and rows are left out
_SCRIPTS = ("files.js", "space.js", "view.js", "page.js")
_JPEG_QUALITY = 90
_SOURCES = {"user": "as given", "file": "from its file", "exif": "from the photo's EXIF", "guess": "unknown, a guess"}


def html_page(result: Any, depth: npt.NDArray[np.float32], colors: ColorScale) -> bytes:
    """The page of a ``DepthResult``, UTF-8.

    Args:
        result: Without a camera, one is guessed, and the page says so.
        depth: (H, W), that of the result, 0 where there is no value.
        colors: Which color stands for which depth.
    """
    height, width = depth.shape
    rows, columns = page_pixels(height, width)
    camera = result.camera or Camera.guess(width, height)
    rays = camera.unproject(np.ones_like(depth))  # points at a depth of 1, whatever the camera
    name = printable(Path(result.provenance.get("path") or "depth").name)
    data = {
        "name": Path(name).stem,
        "width": len(columns),
        "height": len(rows),
        "full": [width, height],
        "kind": result.scale_kind,
        "unit": result.unit,
        "system": result.system,
        "camera": camera.source,
        "rays": [_base64(packed(rays[rows[:, None], columns, axis])) for axis in (0, 1)],
        "range": shown_range(depth, depth > 0, colors),
        "palette": _base64(palette(colors.colormap).tobytes()),
        "depth": _base64(packed(depth[rows[:, None], columns])),
        "photo": None if result.image is None else _photo(result.image, (len(columns), len(rows))),
        "about": list(_about(result, depth, camera)),
    }
    style, script = _text("page.css"), "\n".join(map(_text, _SCRIPTS))
    content = Template(_text("page.html")).substitute(
        policy=f"style-src 'unsafe-inline'; script-src {_hash(script)}",
        title=html.escape(name),
        style=style,
        view=_text("view.html"),
        data=json.dumps(data).replace("<", "\\u003c"),  # so that no name ends the script
        script=script,
    )
    return content.encode("utf-8", "backslashreplace")  # names of files need not be UTF-8


def _about(result: Any, depth: npt.NDArray[np.float32], camera: Camera) -> Iterator[tuple[str, str]]:
    """Pairs of words below the maps."""
    stated, values = result.provenance, depth[depth > 0]
    unit = " m" if result.scale_kind == "metric" else ""
    if values.size:
        numbers = map(short_number, (values.min(), np.median(values), values.max()))
        yield "min / median / max", " / ".join(f"{number}{unit}" for number in numbers)
        if result.sigma is not None:
            yield "sigma (median)", f"{short_number(float(np.median(result.sigma[depth > 0])))}{unit}"
    if values.size < depth.size:
        yield "without a value", f"{1 - values.size / depth.size:.1%} of the pixels"
    if stated.get("sky"):
        yield "sky, without a value", f"{stated['sky']:.1%} of the pixels"
    for what in ("text", "scene"):
        if isinstance(stated.get(what), str):
            yield f"{what} given", printable(stated[what])
    if result.scene_probs:
        scene, share = max(result.scene_probs.items(), key=lambda item: item[1])
        yield "scene in the photo", f"{scene}, {share:.0%}"
    fov = 2 * degrees(atan(camera.width / 2 / camera.fx))
    yield "camera", f"{_SOURCES.get(camera.source, camera.source)}, {fov:.0f} degrees across the width"
    yield "system", f"{result.system}, langdepth {__version__}"
    weights = stated.get("weights")
    if isinstance(weights, Mapping) and weights.get("licence"):
        yield "licence of its weights", printable(str(weights["licence"]))


def page_pixels(height: int, width: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The rows and columns that a page holds: those in the middle of what each stands for."""
    factor = max(1.0, sqrt(height * width / MAX_PAGE_PIXELS))
    counts = (max(1, int(side / factor)) for side in (height, width))
    rows, columns = (
        (2 * np.arange(count) + 1) * side // (2 * count) for count, side in zip(counts, (height, width), strict=True)
    )
    return rows, columns


def packed(depth: npt.NDArray[np.float32]) -> bytes:
    """All bits of (H, W), as files.js unpacks them; a smooth map takes a fifth of its bytes."""
    bits = np.ascontiguousarray(depth, "<f4").view("<u4")
    for axis in (1, 0):
        first = np.zeros_like(bits.take([0], axis))
        bits = np.diff(bits, axis=axis, prepend=first)
    return zlib.compress(np.ascontiguousarray(bits.reshape(-1, 1).view(np.uint8).T).tobytes(), 6)


def _photo(image: Pixels, size: tuple[int, int]) -> str:
    shown = Image.fromarray(image)
    if shown.size != size:
        shown = shown.resize(size, Image.Resampling.BOX)
    content = BytesIO()
    shown.save(content, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{_base64(content.getvalue())}"


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _base64(content: bytes) -> str:
    return b64encode(content).decode("ascii")


def _hash(text: str) -> str:
    """Of the only script that the page's policy lets run."""
    return f"'sha256-{_base64(sha256(text.encode()).digest())}'"
