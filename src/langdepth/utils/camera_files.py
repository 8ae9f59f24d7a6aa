"""Calibration files of others: ROS, OpenCV, COLMAP, KITTI, and bare matrices. Imports no NumPy."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from langdepth.config import parse_yaml
from langdepth.errors import MissingConfigError, UsageError, nearest, text_flaw
from langdepth.lenses import Lens
from langdepth.utils.numbers import plain_number
from langdepth.utils.reading import open_regular, read_text

MAX_BYTES = 1_000_000
_MAX_YAML = 100_000  # characters, which take a second to read
KINDS = (
    "camera_info of ROS (YAML), OpenCV's YAML or JSON, cameras.txt of COLMAP, a calib file of KITTI, or a 3x3 matrix "
    "as text, .csv, .json or .npy"
)
_NAMES = {  # in small letters
    "matrix": ("camera_matrix", "cameramatrix", "k", "mtx", "intrinsic_matrix"),
    "distortion": ("distortion_coefficients", "distcoeffs", "dist_coeffs", "dist_coeff", "dist", "d", "distortion"),
    "rotation": ("rectification_matrix", "r"),
    "projection": ("projection_matrix", "p"),
    "width": ("image_width", "width"),
    "height": ("image_height", "height"),
}
_ROS_MODELS = {
    "plumb_bob": "polynomial",
    "rational_polynomial": "polynomial",
    "equidistant": "equidistant",
    "fisheye": "equidistant",
    "none": "polynomial",
    "": "polynomial",
}
# COLMAP's models: how many focal lengths come first, and what the numbers after cx, cy are, how many.
_COLMAP = {
    "SIMPLE_PINHOLE": (1, "polynomial", 0),
    "PINHOLE": (2, "polynomial", 0),
    "SIMPLE_RADIAL": (1, "polynomial", 1),
    "RADIAL": (1, "polynomial", 2),
    "OPENCV": (2, "polynomial", 4),
    "FULL_OPENCV": (2, "polynomial", 8),
    "SIMPLE_RADIAL_FISHEYE": (1, "equidistant", 1),
    "RADIAL_FISHEYE": (1, "equidistant", 2),
    "OPENCV_FISHEYE": (2, "equidistant", 4),
}
_COLMAP_LINE = re.compile(r"\d+\s+[A-Z_]+\s+\d+\s+\d+\s")
_KITTI_LINE = re.compile(r"[A-Za-z_0-9]+:\s")
_KITTI_CAMERAS = ("P_rect_02", "P2")


class Calibration(NamedTuple):
    """What a file states of one camera: pixels with (0, 0) in the centre of the first; None where it states no size."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int | None = None
    height: int | None = None
    lens: Lens | None = None


class _Flaw(Exception):
    """What is wrong with a file, without its name."""


def read_calibrations(path: Path) -> tuple[Calibration, ...]:
    """The cameras of a file, of COLMAP's as many as it has, else one. Raises UsageError naming the file."""
    try:
        if path.suffix.lower() == ".npy":
            return (_of_matrix(_npy(path)),)
        text = read_text(path, MAX_BYTES)
        if not text.strip():
            raise _Flaw("is empty")
        found = _read(text, path)
    except FileNotFoundError:
        raise MissingConfigError(f"{path}: no such file; give {KINDS}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({text_flaw(error)}); give {KINDS}") from None
    except _Flaw as flaw:
        raise UsageError(f"{path}: {flaw}") from None
    except UsageError as error:  # of YAML, which names the file, or of a lens
        raise UsageError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    return found


def _read(text: str, path: Path) -> tuple[Calibration, ...]:
    suffix, start = path.suffix.lower(), text.lstrip()
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if suffix == ".json" or start[0] in "{[":
        return (_of_content(_json(text)),)
    if suffix in (".yaml", ".yml") or start.startswith("%YAML"):
        if len(text) > _MAX_YAML:
            raise _Flaw(f"has {len(text):,} characters of YAML, far more than a camera; give {KINDS}")
        return (_of_content(parse_yaml(_plain_yaml(text), str(path))),)
    if start.startswith("<"):
        raise _Flaw("is XML, which is not read; let OpenCV write a .yaml")
    if any(_COLMAP_LINE.match(line) for line in lines):
        return tuple(map(_colmap, lines))
    if any(_KITTI_LINE.match(line) for line in lines):
        return (_kitti(lines),)
    try:
        return (_of_matrix([[*map(plain_number, re.split(r"[\s,;]+", line.strip(",; ")))] for line in lines]),)
    except ValueError:
        raise _Flaw(f"holds no calibration that is known; give {KINDS}") from None


# Bare matrices


def _npy(path: Path) -> Any:
    from langdepth.utils.arrays import ArrayError, read_npy

    def check(shape: tuple[int, ...], dtype: Any) -> None:
        if len(shape) != 2 or max(shape) > 4 or dtype.kind not in "fiu":
            raise _Flaw(f"holds an array of shape {shape} and type {dtype}; a camera is a 3x3 matrix of numbers")

    with open_regular(path) as stream:
        try:
            return read_npy(stream, check, path.stat().st_size).tolist()
        except ArrayError as error:
            raise _Flaw(str(error)) from None


def _of_matrix(matrix: Any, **facts: Any) -> Calibration:
    """K, or the 3x4 and 4x4 matrices that begin with it."""
    sides = [len(row) if isinstance(row, Sequence) and not isinstance(row, str) else 0 for row in matrix]
    if sides not in ([3] * 3, [4] * 3, [4] * 4):
        raise _Flaw(f"holds rows of {', '.join(map(str, sides[:9])) or 'no'} numbers; a camera is a 3x3 matrix")
    rows = [[_number(value, "the matrix") for value in row[:3]] for row in matrix[:3]]
    (fx, skew, cx), (zero, fy, cy), last = rows
    if not any(chain(*rows[:2])):
        raise _Flaw("holds a camera matrix of zeros, as ROS writes for a camera that is not calibrated")
    if last != [0, 0, 1] or zero != 0 or abs(skew) > 1e-3 * abs(fx):
        transposed = "; it seems to be transposed" if last[:2] != [0, 0] else ""
        raise _Flaw(f"holds {rows}, which is not fx 0 cx / 0 fy cy / 0 0 1{transposed}")
    return _calibration((fx, fy, cx, cy), **facts)


def _calibration(
    pinhole: tuple[float, float, float, float],
    *,
    width: int | None = None,
    height: int | None = None,
    lens: Lens | None = None,
) -> Calibration:
    if not all(side is None or 0 < side < 1 << 31 for side in (width, height)):
        raise _Flaw(f"states an image of {width}x{height}, which is no size")
    lens = None if lens is None or lens.is_straight(pinhole) else lens
    return Calibration(*pinhole, width=width, height=height, lens=lens)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise _Flaw(f"{what} holds {value!r}, which is no finite number")
    return float(value)


# Mappings: ROS, OpenCV


def _json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise _Flaw("names a key twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        place = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise _Flaw(f"is no valid JSON{place}") from None


def _plain_yaml(text: str) -> str:
    """YAML as OpenCV and ROS write it, as plain YAML: without the version, the tag of a matrix, and the last "---"."""
    text = re.sub(r"\A%YAML[: ].*\n(---\s*\n)?", "", text)
    lines = re.sub(r"(:[ \t]+)!!opencv-matrix\b", r"\1", text).split("\n")
    while lines and lines[-1].rstrip() in ("", "---"):
        lines.pop()
    return "\n".join([*lines, ""])


def _of_content(content: Any) -> Calibration:
    if isinstance(content, list):
        return _of_matrix(content)
    if not isinstance(content, Mapping):
        raise _Flaw(f"holds no calibration that is known; give {KINDS}")
    known = {str(name).lower(): value for name, value in content.items()}

    def stated(what: str) -> Any:
        return next((known[name] for name in _NAMES[what] if known.get(name) is not None), None)

    width, height = _size(stated("width"), stated("height"), known)
    _require_whole(known)
    if stated("matrix") is None:
        if not {"fx", "fy", "cx", "cy"} <= set(known):
            raise _Flaw(f"states no camera matrix (camera_matrix, K, or fx, fy, cx, cy); give {KINDS}")
        fx, fy, cx, cy = (_number(known[name], name) for name in ("fx", "fy", "cx", "cy"))
    else:
        fx, fy, cx, cy = _of_matrix(_rows(stated("matrix"), "the camera matrix"))[:4]
    lens = _lens(known, stated("distortion"), stated("rotation"), stated("projection"))
    return _calibration((fx, fy, cx, cy), width=width, height=height, lens=lens)


def _size(width: Any, height: Any, known: Mapping[str, Any]) -> tuple[int | None, int | None]:
    sides = known.get("image_size", known.get("imagesize"))
    if width is None and height is None and isinstance(sides, list) and len(sides) == 2:
        width, height = sides
    for side in (width, height):
        if side is not None and (not isinstance(side, int) or isinstance(side, bool)):
            raise _Flaw(f"states an image of {width}x{height}, which is no size")
    if (width is None) != (height is None):
        raise _Flaw("states one side of the image alone")
    return width, height


def _require_whole(known: Mapping[str, Any]) -> None:
    """Raise _Flaw for a camera_info of a part of the sensor, whose pixels are counted from elsewhere."""
    roi = known.get("roi")
    if isinstance(roi, Mapping) and any(roi.get(name) for name in ("x_offset", "y_offset")):
        raise _Flaw("is of a region of interest (roi), which is not read; state the camera of the image as it is")


def _lens(known: Mapping[str, Any], distortion: Any, rotation: Any, projection: Any) -> Lens:
    model, ros = "polynomial", known.get("distortion_model")
    if ros is not None:
        if str(ros) not in _ROS_MODELS:
            raise _Flaw(f"has the distortion model '{ros}', which is not known: {nearest(str(ros), _ROS_MODELS)}")
        model = _ROS_MODELS[str(ros)]
    elif known.get("fisheye_model"):
        model = "equidistant"
    numbers = () if distortion is None else tuple(chain(*_rows(distortion, "the distortion")))
    coefficients = tuple(_number(value, "the distortion") for value in numbers)
    if any(coefficients[12:]):
        raise _Flaw("has coefficients of a tilted sensor (tauX, tauY), which are not read")
    kept = coefficients[:12]
    if model == "equidistant" and len(kept) > 4 and not any(kept[4:]):
        kept = kept[:4]
    if ros is None or projection is None:  # elsewhere R is where a second camera stands
        return Lens(model=model, coefficients=kept)
    rows = [*_rows(projection, "the projection")]
    straight = _of_matrix([[*row][:3] for row in rows])[:4] if any(chain(*rows)) else ()
    turned = () if rotation is None else tuple(_number(one, "R") for one in chain(*_rows(rotation, "R")))
    return Lens(model=model, coefficients=kept, straight=straight, rotation=turned if any(turned) else ())


def _rows(value: Any, what: str) -> list[Sequence[Any]]:
    """A matrix of OpenCV or ROS (rows, cols, data), a list of rows, or the numbers of 3 rows one after another."""
    if isinstance(value, Mapping):
        rows, columns, data = value.get("rows"), value.get("cols"), value.get("data")
        if not (isinstance(rows, int) and isinstance(columns, int) and isinstance(data, list)):
            raise _Flaw(f"{what} has no rows, cols and data")
        if rows < 0 or rows * columns != len(data):
            raise _Flaw(f"{what} of {rows}x{columns} has {len(data)} numbers")
        return [data[row * columns : (row + 1) * columns] for row in range(rows if columns else 0)]
    if not isinstance(value, list):
        raise _Flaw(f"{what} is {value!r}, which is no list of numbers")
    if all(isinstance(row, list) for row in value):
        return value
    columns = len(value) // 3 if len(value) in (9, 12) else len(value)
    return [value[at : at + columns] for at in range(0, len(value), columns or 1)]


# Lines: COLMAP, KITTI


def _colmap(line: str) -> Calibration:
    words = line.split()
    name = words[1] if len(words) > 1 else ""
    if name not in _COLMAP:
        raise _Flaw(f"has a camera of the model '{name}', which is not read: {nearest(name, _COLMAP)}")
    try:
        (width, height), numbers = map(int, words[2:4]), [*map(plain_number, words[4:])]
    except ValueError:
        raise _Flaw(f"has the line '{line}', which is no camera of COLMAP") from None
    focals, model, bending = _COLMAP[name]
    if len(numbers) != focals + 2 + bending:
        raise _Flaw(f"has {len(numbers)} parameters for {name}, which has {focals + 2 + bending}")
    focal, (cx, cy), bent = numbers[:focals], numbers[focals : focals + 2], numbers[focals + 2 :]
    # COLMAP counts from the corner of the first pixel.
    pinhole = (focal[0], focal[-1], cx - 0.5, cy - 0.5)
    return _calibration(pinhole, width=width, height=height, lens=Lens(model=model, coefficients=tuple(bent)))


def _kitti(lines: Sequence[str]) -> Calibration:
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    name = next((name for name in _KITTI_CAMERAS if name in facts), None)
    if name is None:
        raise _Flaw(f"has neither {' nor '.join(_KITTI_CAMERAS)}, the color camera of KITTI")
    try:
        numbers = [*map(plain_number, facts[name].split())]
        sides = [*map(plain_number, facts.get("S_rect_02", "").split())]
    except ValueError:
        raise _Flaw(f"{name} holds what is no number") from None
    if len(numbers) != 12 or not all(map(math.isfinite, sides)) or len(sides) not in (0, 2):
        raise _Flaw(f"{name} has {len(numbers)} numbers; a projection has 12")
    width, height = map(int, sides) if sides else (None, None)
    return _of_matrix([numbers[0:3], numbers[4:7], numbers[8:11]], width=width, height=height)
