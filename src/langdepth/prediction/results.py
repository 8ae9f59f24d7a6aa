"""Results and the files they are written to, one entry per format."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from langdepth.camera import Camera
from langdepth.errors import FileWarning, LangdepthError, UsageError, nearest
from langdepth.prediction.meshes import GLB_MARK, Space, is_own_rrd, normals_image, write_glb, write_ply, write_rrd
from langdepth.prediction.options import AUTOMATIC, ColorScale, reversed_colormap
from langdepth.utils.arguments import check_fields, checked
from langdepth.utils.exr import OWN_EXR, exr_bytes
from langdepth.utils.files import atomic_path
from langdepth.utils.plugins import load_target, plugins, source_of, usable
from langdepth.utils.png import is_own_png, write_own_png
from langdepth.utils.reading import open_regular

DEPTH_UNIT = 0.001  # metres, of depth16
SCALE_KINDS = ("metric", "relative", "disparity")
_NPY_HEADER = 246  # bytes, more than NumPy pads such a header to; by this the files of this library are recognised
_NPY_START = b"\x93NUMPY\x01\x00" + _NPY_HEADER.to_bytes(2, "little")
_NPY_FACTS = b"{'descr': '<f4', 'fortran_order': False, 'shape': "
_PLY_MARK = b"; x right, y down, z forward\ncomment camera from "
_HTML_MARK = b'<meta name="generator" content="langdepth page">'
_KITTI_SCALE = 1 / 256  # metres per unit of the KITTI benchmark's depth PNGs


@dataclass(kw_only=True)
class DepthResult:
    """Depth of one image at the image's own size.

    depth: (H, W) float32, in ``unit`` along the optical axis. ``scale_kind`` is "metric" (metres), "relative" (known up
    to a factor, or a factor and a shift) or "disparity" (1 / depth up to a factor and a shift). valid: (H, W) bool.
    camera: intrinsics in pixels of this image, or None when nobody stated any. provenance: package version, weights and
    their licence, image path, text, network size. scene_probs: scene name to probability. image: (H, W, 3) uint8, the
    image after EXIF rotation. std: (H, W) float32 in ``unit``, the standard deviation where several depths were drawn
    and ``depth`` is their mean. sigma: (H, W) float32 in ``unit``, for systems that know how sure they are: the true
    depth lies within depth - sigma and depth + sigma in 67 % of all pixels, within three times as much in 95 %.
    """

    depth: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    system: str
    unit: str = "metre"
    scale_kind: str = "metric"
    camera: Camera | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    scene_probs: dict[str, float] | None = None
    image: npt.NDArray[np.uint8] | None = None
    std: npt.NDArray[np.float32] | None = None
    sigma: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.scale_kind not in SCALE_KINDS:
            raise UsageError(f"unknown scale_kind '{self.scale_kind}': {nearest(self.scale_kind, SCALE_KINDS)}")
        for name, kinds in (("depth", "fiu"), ("valid", "b"), ("std", "f"), ("sigma", "f")):
            array = getattr(self, name)
            if array is not None and array.dtype.kind not in kinds:
                wanted = "bool" if kinds == "b" else "real numbers"
                raise UsageError(f"{name}: expected an array of {wanted}, got {array.dtype}")
            if array is not None and (array.ndim != 2 or not array.size or array.shape != self.depth.shape):
                raise UsageError(f"{name}: expected (H, W), that of depth {self.depth.shape}, got {array.shape}")

    def save(self, path: str | Path, *, format: str | None = None) -> Path:
        """Write the result; the format is ``format`` or follows the file name. See ``write_result``."""
        return write_result(self, path, format=format)


class Writer(NamedTuple):
    """How one format is written.

    suffix: the end of its file names. write: fills an open file, and returns what there is to warn of, or None.
    by_name: whether a file name alone may choose it. content: what its files hold, for docs/predict.md. camera: whether
    the camera of a result is in its files; needs_camera: whether there must be one. image: whether the image is.
    """

    suffix: str
    write: Callable[..., str | None]
    by_name: bool = True
    content: str = ""
    camera: bool = False
    needs_camera: bool = False
    image: bool = False


@checked
def write_result(result: DepthResult, path: str | Path, *, format: str | None = None, **options: Any) -> Path:
    """Write one result; docs/predict.md describes the formats.

    Args:
        result: Pixels that are not valid, not finite or not positive have no value.
        path: The file.
        format: A key of ``WRITERS``; without one, the end of the file name decides.
        **options: Of the format: ``scale`` of depth16 (metres per unit, 0.001; of relative maps what fits the largest),
            ``colors`` of color and html (a ``ColorScale``), ``max_points`` of ply (that many at most, evenly spread).

    Returns:
        The path.

    Raises:
        UsageError: For an unknown format, a name that does not fit it, or a result that cannot be written so.
        LangdepthError: When the place cannot be written.
    """
    path = Path(path)
    writer = _writer_for(path, format)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        note = checked(writer.write)(result, file, **options)
    if note:
        warnings.warn(FileWarning(path, note), stacklevel=3)
    return path


def _writer_for(path: Path, format: str | None) -> Writer:
    name, extension = path.name.lower(), path.suffix.lower()
    if format is not None:
        if format not in WRITERS:
            raise UsageError(f"unknown format '{format}': {nearest(format, WRITERS)}")
        writer = WRITERS[format]
        if extension != Path("x" + writer.suffix).suffix:
            raise UsageError(f"{path}: the name of a {format} file ends in '{writer.suffix}'")
        return writer
    writers = [writer for writer in WRITERS.values() if writer.by_name]
    for writer in [w for w in writers if name.endswith(w.suffix)] + writers:
        if extension == Path("x" + writer.suffix).suffix:
            return writer
    raise UsageError(f"{path}: no format has this name; known: {', '.join(w.suffix for w in writers)}")


def _clean_depth(result: DepthResult) -> npt.NDArray[np.float32]:
    """(H, W) float32 with 0 wherever there is no value."""
    with np.errstate(over="ignore"):  # beyond float32 is no value, as infinity is
        depth = result.depth.astype(np.float32, copy=False)
    return np.where(result.valid & (depth > 0) & np.isfinite(depth), depth, np.float32(0))


def _write_depth16(result: DepthResult, file: IO[bytes], *, scale: float | None = None) -> str | None:
    depth = _clean_depth(result)
    scale = _unit_of(result, depth, scale)
    if not 1e-30 < scale < 1e30:  # also as float32
        raise UsageError(f"depth16: the scale must be a positive number of {result.unit}s per unit, got {scale}")
    _write_grey_16_bit(depth, scale, result, file)
    far = (
        f"depth beyond {65535 * scale:g} {result.unit}s does not fit 16 bits at {scale:g} per unit and is stored "
        f"as {65535 * scale:g}; a coarser unit holds more: --depth-unit 0.004 (in Python scale=0.004)"
    )
    return _note_of(_lost(depth, scale), far)


class Lost(NamedTuple):
    """Pixels that 16 bits do not hold as they are: far ones are stored as 65535 units, near ones as 1 unit."""

    far: int = 0
    near: int = 0


def lost_pixels(result: DepthResult, form: str, unit: float | None = None) -> Lost:
    """Those of a result in a 16-bit format (depth16 or depth-video, of this unit or their own, and kitti16)."""
    depth = _clean_depth(result)
    scale = _KITTI_SCALE if form == "kitti16" else _unit_of(result, depth, unit)
    return _lost(depth, scale)


def _unit_of(result: DepthResult, depth: npt.NDArray[np.float32], unit: float | None) -> float:
    """Of depth16: what is stated, a millimetre, or for depth without unit what fits the farthest."""
    farthest = float(depth.max(initial=0))
    own = DEPTH_UNIT if result.scale_kind == "metric" or farthest == 0 else farthest / 65535
    return own if unit is None else unit


def _lost(depth: npt.NDArray[np.float32], scale: float) -> Lost:
    near = (depth > 0) & (depth < 0.5 * scale)
    return Lost(int(np.count_nonzero(depth > 65535.5 * scale)), int(np.count_nonzero(near)))


def _note_of(lost: Lost, far: str) -> str | None:
    near = "depth below half a unit is stored as 1 unit; npy, npz, exr and pfm keep it"
    return "; ".join(note for note, count in ((far, lost.far), (near, lost.near)) if count) or None


def _write_kitti16(result: DepthResult, file: IO[bytes]) -> str | None:
    require_kind(("kitti16",), result.system, result.scale_kind)
    depth = _clean_depth(result)
    _write_grey_16_bit(depth, _KITTI_SCALE, result, file)
    far = (
        "depth beyond 255.996 m does not fit KITTI's 16-bit PNGs and is stored as 255.996 m; depth16, npy and npz "
        "keep it"
    )
    return _note_of(_lost(depth, _KITTI_SCALE), far)


def require_kind(forms: Iterable[str], system: str, scale_kind: str) -> None:
    """Raise UsageError for formats that do not hold this kind of depth."""
    for form in forms:
        if form == "kitti16" and scale_kind != "metric":
            raise UsageError(
                f"kitti16 holds metres, and '{system}' gives {scale_kind} depth; save it as depth16 or npy"
            )
        if WRITERS[form].needs_camera and scale_kind == "disparity":
            raise UsageError(f"{form} holds depth, and '{system}' gives disparity; save it as depth16, npy or npz")


def _write_grey_16_bit(depth: npt.NDArray[np.float32], scale: float, result: DepthResult, file: IO[bytes]) -> None:
    """Depth as units of ``scale``, from 1 to 65535 where there is a value, 0 where there is none."""
    tag = {"unit": result.unit, "scale": scale, "scale_kind": result.scale_kind, "system": result.system, "no_value": 0}
    values = np.where(depth > 0, np.rint(depth / np.float32(scale)).clip(1, 65535), 0).astype(np.uint16)
    write_own_png(file, values, **tag)


def _write_npy(result: DepthResult, file: IO[bytes]) -> None:
    depth = _clean_depth(result)
    facts = f"{depth.shape}, }}".ljust(_NPY_HEADER - len(_NPY_FACTS) - 1).encode("ascii")
    file.write(_NPY_START + _NPY_FACTS + facts + b"\n")
    file.write(np.ascontiguousarray(depth, "<f4").data)


def _write_npz(result: DepthResult, file: IO[bytes]) -> None:
    depth = _clean_depth(result)
    metadata = {
        "unit": result.unit,
        "scale_kind": result.scale_kind,
        "system": result.system,
        "camera": asdict(result.camera) if result.camera else None,
        "provenance": result.provenance,
        "scene_probs": result.scene_probs,
    }
    try:
        text = json.dumps(metadata, default=lambda value: value.item() if isinstance(value, np.generic) else str(value))
    except (TypeError, ValueError, RecursionError) as error:  # keys that are no texts, a list that holds itself
        raise LangdepthError(f"the provenance of the result is no JSON data: {error}") from None
    known = result.camera is not None and result.camera.source != "guess"
    more: dict[str, Any] = {name: one for name in ("std", "sigma") if (one := getattr(result, name)) is not None}
    if result.camera is not None and known:
        more["intrinsics"] = result.camera.matrix
    np.savez(file, depth=depth, valid=depth > 0, metadata=np.array(text), **more)


def _write_color(result: DepthResult, file: IO[bytes], *, colors: ColorScale = AUTOMATIC) -> None:
    from langdepth.prediction.viz import color_with_legend

    unit = "m" if result.scale_kind == "metric" else ""
    depth = _clean_depth(result)
    note = ""
    if result.sigma is not None and depth.any():
        note = f"± {np.median(result.sigma[depth > 0]):.2g} {unit}".rstrip()
    pixels = color_with_legend(depth, depth > 0, _colors_of(result, colors), unit, note)
    write_own_png(file, pixels, kind="color", system=result.system)


def _colors_of(result: DepthResult, colors: ColorScale) -> ColorScale:
    """For disparity, whose near is large, the color map the other way round: near and far look the same in all."""
    turned = result.scale_kind == "disparity"
    return replace(colors, colormap=reversed_colormap(colors.colormap)) if turned else colors


def _write_html(result: DepthResult, file: IO[bytes], *, colors: ColorScale = AUTOMATIC) -> None:
    from langdepth.prediction.page import html_page

    if result.image is not None and result.image.shape != (*result.depth.shape, 3):
        raise UsageError(f"html: image {result.image.shape} and depth {result.depth.shape} differ in size")
    file.write(html_page(result, _clean_depth(result), _colors_of(result, colors)))


def _write_pfm(result: DepthResult, file: IO[bytes]) -> None:
    depth = _clean_depth(result)
    file.write(f"Pf\n{depth.shape[1]} {depth.shape[0]}\n-1.0\n".encode("ascii"))  # below 0: little endian
    file.write(np.ascontiguousarray(depth[::-1], "<f4").data)  # from the bottom row up


def _write_exr(result: DepthResult, file: IO[bytes]) -> None:
    file.write(exr_bytes(_clean_depth(result), _facts(result)))


def _facts(result: DepthResult) -> str:
    return f"{result.system} depth, {result.scale_kind}, unit {result.unit}"


def _space(result: DepthResult, form: str) -> Space:
    """The result in space. Raises UsageError where it has no camera or no depth."""
    require_kind((form,), result.system, result.scale_kind)
    if result.camera is None:
        raise UsageError(f"{form} needs a camera: give the intrinsics (fx,fy,cx,cy) or the field of view")
    if result.image is not None and result.image.shape != (*result.depth.shape, 3):
        raise UsageError(f"{form}: image {result.image.shape} and depth {result.depth.shape} differ in size")
    return Space(depth=_clean_depth(result), camera=result.camera, image=result.image, facts=_facts(result))


def _write_normals(result: DepthResult, file: IO[bytes]) -> None:
    write_own_png(file, normals_image(_space(result, "normals")), kind="normals", system=result.system)


def _write_ply(result: DepthResult, file: IO[bytes], *, max_points: int | None = None) -> None:
    if max_points is not None and max_points < 1:
        raise UsageError(f"ply: max_points must be at least 1, got {max_points}")
    write_ply(_space(result, "ply"), file, max_points)


def _write_glb(result: DepthResult, file: IO[bytes]) -> None:
    write_glb(_space(result, "glb"), file)


def _write_rrd(result: DepthResult, file: IO[bytes]) -> None:
    write_rrd(_space(result, "rrd"), file)


_IN_SPACE = {"camera": True, "needs_camera": True, "image": True}
WRITERS: dict[str, Writer] = {
    "depth16": Writer(
        "_depth.png",
        _write_depth16,
        content="16-bit PNG; 1 unit = 1 mm (as ROS 16UC1), or what `--depth-unit` states, in all files of a run; depth "
        "beyond 65535 units is stored as 65535, below half a unit as 1, and both are counted. The unit stands in the "
        "file, too: `langdepth.utils.depth_files.read_depth16` gives back metres",
    ),
    "kitti16": Writer(
        ".png", _write_kitti16, by_name=False, content="the KITTI benchmark's 16-bit PNG: metres x 256, see below"
    ),
    "npy": Writer(".npy", _write_npy, content="float32 metres"),
    "npz": Writer(
        ".npz", _write_npz, content="depth, valid mask, intrinsics, metadata as JSON; `sigma`, where known", camera=True
    ),
    "color": Writer("_color.png", _write_color, content="colors with a legend in metres; not for measuring"),
    "normals": Writer(
        "_normals.png",
        _write_normals,
        content="surface normals as colors: x to the right (red), y up (green), z towards the camera (blue)",
        camera=True,
        needs_camera=True,
    ),
    "html": Writer(
        ".html",
        _write_html,
        content="a page to look at in a browser: photo and depth, a ruler, 3D; see [page](page.md)",
        camera=True,
        image=True,
    ),
    "ply": Writer(".ply", _write_ply, content="point cloud in metres with normals, colored by the image", **_IN_SPACE),
    "glb": Writer(
        ".glb", _write_glb, content="mesh in metres with the image as texture, torn at edges of depth", **_IN_SPACE
    ),
    "rrd": Writer(
        ".rrd", _write_rrd, content="recording for Rerun: camera, image, depth (`langdepth[rerun]`)", **_IN_SPACE
    ),
    "exr": Writer(".exr", _write_exr, content="OpenEXR, channel Z: float32 metres (`langdepth[exr]`)"),
    "pfm": Writer(".pfm", _write_pfm, content="portable float map: float32 metres"),
}


def is_own_result(path: Path) -> bool:
    """Whether a file may be replaced by a result: one of this library, by its content, or an empty file."""
    try:
        with open_regular(path) as file:
            head = file.read(512)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return {"depth.npy", "valid.npy", "metadata.npy"} <= set(archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False
    marked = any(mark in head for mark in (_PLY_MARK, _HTML_MARK, GLB_MARK, OWN_EXR)) or is_own_rrd(head)
    return not head or is_own_png(path) or head.startswith(_NPY_START + _NPY_FACTS) or marked


def require_own(path: Path) -> None:
    """Raise LangdepthError where a result would replace a file of somebody else."""
    if os.path.lexists(path) and not is_own_result(path):
        raise LangdepthError(f"{path} exists and was not written by langdepth; give another --out, or remove it")


def _of_plugin(name: str) -> tuple[str, Writer]:
    found = load_target(plugins("formats")[name].value, f"the output format '{name}'")
    if not isinstance(found, Writer):
        raise UsageError(f"{source_of(plugins('formats')[name])}: the output format '{name}' is no Writer")
    for other, writer in WRITERS.items():
        if writer.suffix == found.suffix:
            source = source_of(plugins("formats")[name])
            raise UsageError(f"{source}: the output format '{name}' has the file names of '{other}'; it is left out")
    return name, found


for _name, _writer in usable(plugins("formats", tuple(WRITERS)), _of_plugin):
    WRITERS[_name] = _writer
