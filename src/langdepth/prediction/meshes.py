"""Depth maps in space: surface normals, point clouds (PLY), meshes (glTF binary), recordings (Rerun)."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from langdepth._version import __version__
from langdepth.camera import Camera
from langdepth.errors import UsageError

Floats = npt.NDArray[np.float32]
GLB_MARK = b'{"asset":{"version":"2.0","generator":"langdepth '
_GLTF, _JSON, _BIN = b"glTF", b"JSON", b"BIN\0"
_APPLICATION = "langdepth"
_MOST_VERTICES = 1 << 20
_LARGEST_TEXTURE = 8192  # pixels of a side; what graphics cards hold
_NORMAL_REACH = 1 / 64  # of the longer side
_STEEPEST_DEGREES = 82.0  # between the view and a triangle's normal; what is steeper spans two surfaces
_FLOAT, _UINT32, _VERTICES, _INDICES = 5126, 5125, 34962, 34963  # of OpenGL


@dataclass(frozen=True, kw_only=True)
class Space:
    """A depth map in space.

    depth: (H, W) float32, 0 where there is no value. image: (H, W, 3) uint8. facts: one line about what it is.
    """

    depth: Floats
    camera: Camera
    image: npt.NDArray[np.uint8] | None
    facts: str

    @cached_property
    def points(self) -> Floats:
        """(H, W, 3) in the camera's frame, NaN where there is no value."""
        with np.errstate(over="ignore", invalid="ignore"):
            points = self.camera.unproject(self.depth)
        known = (self.depth > 0) & np.isfinite(points).all(-1)  # a huge depth may have no place in float32
        return np.where(known[..., None], points, np.float32(np.nan))

    @cached_property
    def normals(self) -> Floats:
        """(H, W, 3) of length 1, towards the camera; 0 where there is no value, or none beside it.

        Over a small part of the image, since the map of a network has few pixels of its own and is flat between them.
        """
        reach = max(1, min(round(max(self.depth.shape) * _NORMAL_REACH), min(self.depth.shape) // 2))
        known = self.points[..., 2] > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            inverse = np.where(known, 1 / self.depth, 0)  # which changes evenly across a plane
            smooth = _box_sum(known, reach // 2) / _box_sum(inverse, reach // 2)
            points = self.camera.unproject(np.where(known, smooth, np.nan).astype(np.float32))
            normal = np.cross(_slope(points, 0, reach), _slope(points, 1, reach))
            normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        return np.nan_to_num(normal, nan=0, posinf=0, neginf=0).astype(np.float32)


def _box_sum(values: npt.NDArray[Any], reach: int) -> npt.NDArray[np.float64]:
    """Sums (H, W) over ``reach`` pixels to each side."""
    sums = np.pad(values.astype(np.float64), reach)
    for axis in (0, 1):
        sums = np.insert(np.cumsum(sums, axis), 0, 0, axis)
        start, end = (np.arange(values.shape[axis]) + shift for shift in (0, 2 * reach + 1))
        sums = np.take(sums, end, axis) - np.take(sums, start, axis)
    return sums


def _slope(points: Floats, axis: int, step: int) -> Floats:
    """How points (H, W, 3) change along an axis, by those ``step`` pixels away on both sides: more by the flatter side.

    So a pixel beside an edge takes the surface that it is on. NaN where neither side has points.
    """
    near, far = np.arange(points.shape[axis] - step), np.arange(step, points.shape[axis])
    change = np.take(points, far, axis) - np.take(points, near, axis)
    total, weights = np.zeros_like(points), np.zeros_like(points[..., :1])
    for place in ((step, 0), (0, step)):
        side = np.pad(change, [place if one == axis else (0, 0) for one in range(3)], constant_values=np.nan)
        flatness = (np.abs(side[..., 2:]) + 1e-3 * points[..., 2:]) ** -2.0
        total += np.where(np.isnan(flatness), 0, side * flatness)
        weights += np.nan_to_num(flatness, nan=0)
    return total / weights


def normals_image(space: Space) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8: x to the right, y up and z towards the camera from -1 at 0 to 1 at 255; black without value."""
    normals = space.normals * np.array((1, -1, -1), np.float32)
    colors = np.rint((normals + 1) * 127.5).astype(np.uint8)
    return np.where(space.normals.any(-1, keepdims=True), colors, np.uint8(0))


def write_ply(space: Space, file: IO[bytes], max_points: int | None = None) -> None:
    """Points with normals and, where there is an image, its colors."""
    kept = np.flatnonzero(np.isfinite(space.points).all(-1))
    if max_points is not None and len(kept) > max_points:
        kept = kept[np.linspace(0, len(kept) - 1, max_points).astype(np.int64)]
    fields = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    if space.image is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
    vertices = np.empty(len(kept), dtype=fields)
    vertices["x"], vertices["y"], vertices["z"] = space.points.reshape(-1, 3)[kept].T
    vertices["nx"], vertices["ny"], vertices["nz"] = space.normals.reshape(-1, 3)[kept].T
    if space.image is not None:
        vertices["red"], vertices["green"], vertices["blue"] = space.image.reshape(-1, 3)[kept].T
    kinds = {"<f4": "float", "u1": "uchar"}
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment {space.facts}; x right, y down, z forward",
        f"comment camera from {space.camera.source}",
        f"element vertex {len(vertices)}",
        *(f"property {kinds[kind]} {name}" for name, kind in fields),
        "end_header",
    ]
    file.write(("\n".join(header) + "\n").encode("ascii", "replace"))
    file.write(vertices.view(np.uint8).data)  # no copy


# Meshes


def mesh_of(space: Space) -> tuple[Floats, npt.NDArray[np.uint32], Floats]:
    """Vertices (N, 3) in the camera's frame, triangles (M, 3), and places (N, 2) in the image, (0, 0) its top left.

    Neighboring pixels are joined (of large maps every second, third ...), but not across edges of depth: a triangle
    that is seen nearly from the side is left out.
    """
    height, width = space.depth.shape
    step = max(1, math.ceil(math.sqrt(height * width / _MOST_VERTICES)))
    rows, columns = np.arange(0, height, step), np.arange(0, width, step)
    points = space.points[::step, ::step].reshape(-1, 3)
    corner = np.arange(points.shape[0], dtype=np.uint32).reshape(len(rows), len(columns))
    a, b, c, d = corner[:-1, :-1], corner[1:, :-1], corner[:-1, 1:], corner[1:, 1:]
    triangles = np.concatenate([np.stack((a, b, c), -1).reshape(-1, 3), np.stack((c, b, d), -1).reshape(-1, 3)])
    triangles = triangles[_faces_the_camera(points[triangles[:, 0]], points[triangles[:, 1]], points[triangles[:, 2]])]
    used, triangles = np.unique(triangles, return_inverse=True)
    v, u = np.meshgrid((rows + 0.5) / height, (columns + 0.5) / width, indexing="ij")
    places = np.stack((u, v), -1).reshape(-1, 2).astype(np.float32)
    return points[used], triangles.reshape(-1, 3).astype(np.uint32), places[used]


def _faces_the_camera(a: Floats, b: Floats, c: Floats) -> npt.NDArray[np.bool_]:
    """Whether triangles (N, 3) x 3 are seen from the front more than from the side; not where a corner is missing."""
    normal, middle = np.cross(b - a, c - a), a + b + c
    with np.errstate(invalid="ignore"):
        toward = np.abs((normal * middle).sum(-1))
        limit = math.cos(math.radians(_STEEPEST_DEGREES))
        front: npt.NDArray[np.bool_] = toward > limit * np.linalg.norm(normal, axis=-1) * np.linalg.norm(
            middle, axis=-1
        )
    return front


def write_glb(space: Space, file: IO[bytes]) -> None:
    """The mesh as binary glTF 2.0, y up and the camera looking along -z, with the image as an unlit texture.

    Where no pixels can be joined the file has an empty scene, as one image must not end the work on others.
    """
    vertices, triangles, places = mesh_of(space)
    content: dict[str, Any] = {"asset": {"version": "2.0", "generator": f"langdepth {__version__}"}, "scene": 0}
    if not len(triangles):
        _write_chunks(content | {"scenes": [{}]}, [], file)
        return
    vertices = np.ascontiguousarray(vertices * np.array((1, -1, -1), np.float32))
    parts = [vertices.tobytes(), places.tobytes(), triangles.tobytes()]
    bounds = {"min": vertices.min(0).tolist(), "max": vertices.max(0).tolist()}
    primitive: dict[str, Any] = {"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "indices": 2, "material": 0}
    material: dict[str, Any] = {"doubleSided": True, "extensions": {"KHR_materials_unlit": {}}}
    content |= {
        "extensionsUsed": ["KHR_materials_unlit"],
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "depth"}],
        "meshes": [{"primitives": [primitive], "extras": {"about": space.facts, "camera": space.camera.source}}],
        "materials": [material],
        "accessors": [
            {"bufferView": 0, "componentType": _FLOAT, "count": len(vertices), "type": "VEC3", **bounds},
            {"bufferView": 1, "componentType": _FLOAT, "count": len(places), "type": "VEC2"},
            {"bufferView": 2, "componentType": _UINT32, "count": triangles.size, "type": "SCALAR"},
        ],
    }
    if space.image is not None:
        parts.append(_texture(space.image))
        content["images"] = [{"bufferView": 3, "mimeType": "image/jpeg"}]
        content["textures"] = [{"source": 0}]
        material["pbrMetallicRoughness"] = {"baseColorTexture": {"index": 0}, "metallicFactor": 0}
    padded = [part + b"\0" * (-len(part) % 4) for part in parts]
    starts = np.cumsum([0, *map(len, padded)]).tolist()
    uses: list[dict[str, int]] = [{"target": _VERTICES}, {"target": _VERTICES}, {"target": _INDICES}, {}]
    content["bufferViews"] = [
        {"buffer": 0, "byteOffset": start, "byteLength": len(part), **use}
        for start, part, use in zip(starts, parts, uses, strict=False)
    ]
    content["buffers"] = [{"byteLength": starts[-1]}]
    _write_chunks(content, padded, file)


def _write_chunks(content: dict[str, Any], binary: list[bytes], file: IO[bytes]) -> None:
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    chunks = [(_JSON, [text]), *([(_BIN, binary)] if binary else [])]
    size = 12 + sum(8 + sum(map(len, parts)) for _, parts in chunks)
    if size >= 1 << 32:
        raise UsageError("glb: the mesh has more than 4 GB, the most that such a file holds")
    file.write(_GLTF + (2).to_bytes(4, "little") + size.to_bytes(4, "little"))
    for kind, parts in chunks:
        file.write(sum(map(len, parts)).to_bytes(4, "little") + kind)
        file.writelines(parts)


def _texture(pixels: npt.NDArray[np.uint8]) -> bytes:
    image, content = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_LARGEST_TEXTURE, _LARGEST_TEXTURE))
    image.save(content, "JPEG", quality=92)
    return content.getvalue()


# Recordings


def write_rrd(space: Space, file: IO[bytes]) -> None:
    """A recording for Rerun's viewer: the camera with its image and depth map in space."""
    try:
        import rerun
    except ImportError:
        raise UsageError("rrd files need a package: pip install 'langdepth[rerun]'") from None
    if space.camera.lens is not None:
        raise UsageError("rrd holds pinhole cameras; leave --keep-distortion out")
    height, width = space.depth.shape
    recording = rerun.RecordingStream(_APPLICATION)
    content = recording.memory_recording()
    recording.log("about", rerun.TextDocument(space.facts), static=True)
    pinhole = rerun.Pinhole(
        image_from_camera=space.camera.matrix + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]),  # from the corner
        resolution=(width, height),
        camera_xyz=rerun.ViewCoordinates.RDF,
    )
    recording.log("camera", pinhole, static=True)
    if space.image is not None:
        recording.log("camera/image", rerun.Image(space.image).compress(jpeg_quality=92), static=True)
    recording.log("camera/depth", rerun.DepthImage(space.depth, meter=1.0), static=True)
    file.write(content.drain_as_bytes())
    recording.disconnect()


def is_own_rrd(head: bytes) -> bool:
    """Whether a file that begins so is a recording of this library."""
    return head.startswith(b"RRF2") and _APPLICATION.encode() in head
