"""Ray casting of boxes and spheres, with exact depth.

The world has the camera's axes: x to the right, y down, z forward, in metres. One ray goes through the centre of each
pixel, with z = 1 in the camera's frame: the distance along it, in units of its direction, is the depth along the
optical axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from langdepth.camera import Camera

Array = npt.NDArray[np.float64]

CASTS_NO_SHADOW = 2.2  # metres of radius: shells, floors and facades, which hide no lamp from what is before them


@dataclass(frozen=True, kw_only=True)
class Material:
    """Color and pattern of a surface: tiles (planks, bricks, panes) with joints between them, and a smooth grain.

    colors: (6, 3) RGB in [0, 1], by face (-x, +x, -y, +y, -z, +z); tile: sides of a tile in metres; joint: its width
    in metres, 0 for none; contrast: how much darker joints are, in [0, 1], and half of it how much tiles differ; waves:
    (N, 3), the grain as waves (radians per metre in u, in v, phase); grain: its strength.
    """

    colors: Array
    tile: tuple[float, float]
    contrast: float
    waves: Array
    joint: float = 0.0
    grain: float = 0.05

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        hue: float,
        tile: tuple[float, float] | None = None,
        *,
        saturation: tuple[float, float] = (0.1, 0.45),
        brightness: tuple[float, float] = (0.45, 0.9),
        contrast: tuple[float, float] = (0.0, 0.15),
        joint: float = 0.0,
        grain: float = 0.02,
    ) -> Material:
        """A random material around ``hue``; the faces differ a little in brightness."""
        hues = hue + rng.normal(0, 0.02) + rng.normal(0, 0.005, 6)
        value = rng.uniform(*brightness) * rng.uniform(0.95, 1.05, 6)
        side = rng.uniform(0.15, 0.6)
        waves = rng.uniform(-1, 1, (6, 3)) * np.array([1, 1, math.pi]) * np.array([1, 2, 5, 12, 40, 90])[:, None]
        return cls(
            colors=_rgb(hues, np.full(6, rng.uniform(*saturation)), value.clip(0, 1)),
            tile=tile or (side, side),
            contrast=rng.uniform(*contrast),
            waves=waves,
            joint=joint,
            grain=grain,
        )

    def shade(self, face: npt.NDArray[np.intp], uv: Array) -> Array:
        """(N, 3) RGB of surface points: their face (N,) and place on it (N, 2) in metres."""
        place = uv / np.array(self.tile)
        number = np.floor(place)
        differ = np.sin(number @ np.array([12.9898, 78.233])) * 43758.5453
        pattern = 1 - 0.5 * self.contrast * (differ - np.floor(differ))
        if self.joint:
            edge = (np.minimum(place - number, 1 - place + number) * np.array(self.tile)).min(-1)
            pattern = pattern * (1 - self.contrast * (edge < self.joint / 2))
        if self.grain:
            pattern = pattern * (1 + self.grain * np.sin(uv @ self.waves[:, :2].T + self.waves[:, 2]).mean(-1))
        return self.colors[face] * pattern[:, None]


class Surface(NamedTuple):
    """N points of a shape: normal (N, 3), unit length, towards the viewer; face (N,) in 0..5; uv (N, 2) in metres."""

    normal: Array
    face: npt.NDArray[np.intp]
    uv: Array


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box turned by ``yaw`` radians about the vertical; with ``inside`` it is a room around the camera."""

    centre: tuple[float, float, float]
    size: tuple[float, float, float]
    material: Material
    yaw: float = 0.0
    inside: bool = False

    @property
    def radius(self) -> float:
        """Of the ball around it."""
        return math.hypot(*self.size) / 2

    def hit(self, origin: Array, rays: Array) -> Array:
        """Distance (...) along ``rays`` (..., 3) from ``origin`` (3,) or (..., 3); infinite where a ray misses."""
        turn, half = _rotation_y(self.yaw), np.array(self.size) / 2
        start, rays = (origin - self.centre) @ turn, rays @ turn
        rays = np.where(rays == 0, 1e-12, rays)
        first, second = (-half - start) / rays, (half - start) / rays
        enter, leave = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
        if self.inside:
            return np.where(leave > 0, leave, np.inf)
        return np.where((enter > 0) & (enter <= leave), enter, np.inf)

    def surface(self, points: Array) -> Surface:
        """The surface at ``points`` (N, 3) that lie on it."""
        turn, half = _rotation_y(self.yaw), np.array(self.size) / 2
        local = (points - self.centre) @ turn
        axis = np.abs(local / half).argmax(-1)
        side = np.take_along_axis(local, axis[:, None], -1)[:, 0] > 0
        outward = np.eye(3)[axis] * np.where(side, 1.0, -1.0)[:, None]
        normal = (-outward if self.inside else outward) @ turn.T
        others = np.array([[2, 1], [0, 2], [0, 1]])[axis]  # on upright faces v is the height
        return Surface(normal, 2 * axis + side, np.take_along_axis(local, others, -1))


@dataclass(frozen=True, kw_only=True)
class Sphere:
    """A ball."""

    centre: tuple[float, float, float]
    radius: float
    material: Material

    def hit(self, origin: Array, rays: Array) -> Array:
        """Distance (...) along ``rays`` (..., 3) from ``origin`` (3,) or (..., 3); infinite where a ray misses."""
        start = origin - self.centre
        a, b, c = (rays**2).sum(-1), (rays * start).sum(-1), (start * start).sum(-1) - self.radius**2
        root = b**2 - a * c
        distance = (-b - np.sqrt(np.maximum(root, 0))) / a
        return np.where((root > 0) & (distance > 0), distance, np.inf)

    def surface(self, points: Array) -> Surface:
        """The surface at ``points`` (N, 3) that lie on it."""
        normal = (points - self.centre) / self.radius
        longitude, latitude = np.arctan2(normal[:, 0], normal[:, 2]), np.arcsin(normal[:, 1].clip(-1, 1))
        uv = np.stack((longitude, latitude), -1) * self.radius
        return Surface(normal, np.zeros(len(points), dtype=np.intp), uv)


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the camera stands, and its turn in radians: ``yaw`` to the right, ``pitch`` upwards, ``roll`` clockwise."""

    position: tuple[float, float, float]
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0

    @property
    def rotation(self) -> Array:
        """(3, 3): directions of the camera's frame to those of the world."""
        (cp, sp), (cr, sr) = cos_sin(self.pitch), cos_sin(self.roll)
        rotation_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        rotation_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        return _rotation_y(self.yaw) @ rotation_x @ rotation_z


def render(
    shapes: Sequence[Box | Sphere],
    camera: Camera,
    pose: Pose,
    light: tuple[float, float, float],
    reach: float | None = None,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Image (H, W, 3) uint8 and depth (H, W) float32 metres, 0 where no shape is hit; a sky is painted there.

    ``light`` is the place of the lamp or sun; what it does not reach is lit by the rest of the scene. A lamp's light
    falls off with the distance, from ``reach`` metres on.
    """
    u, v = np.meshgrid(
        (np.arange(camera.width) - camera.cx) / camera.fx, (np.arange(camera.height) - camera.cy) / camera.fy
    )
    rays = np.stack((u, v, np.ones_like(u)), -1) @ pose.rotation.T
    origin = np.array(pose.position)
    nearest, depth = np.full(u.shape, -1), np.full(u.shape, np.inf)
    for number, shape in enumerate(shapes):
        distance = _hit(shape, origin, rays)
        nearer = distance < depth
        nearest[nearer], depth[nearer] = number, distance[nearer]
    seen = np.isfinite(depth)
    elevation = -rays[..., 1:2] / np.linalg.norm(rays, axis=-1, keepdims=True)
    color = np.array([0.85, 0.9, 0.95]) + elevation.clip(0, 1) * np.array([-0.5, -0.35, -0.05])
    casting = [shape for shape in shapes if shape.radius < CASTS_NO_SHADOW]
    for number, shape in enumerate(shapes):
        mask = nearest == number
        points = origin + depth[mask][:, None] * rays[mask]
        surface = shape.surface(points)
        to_light = np.array(light) - points
        far = np.linalg.norm(to_light, axis=-1)
        lit = (surface.normal * to_light).sum(-1).clip(0) / far
        start = points + 1e-3 * surface.normal
        for other in casting:
            lit[_hit(other, start, to_light) < 1] = 0
        strength = 0.45 * (reach / far).clip(0.5, 1.6) if reach else 0.45
        color[mask] = shape.material.shade(surface.face, surface.uv) * (0.35 + strength * lit)[:, None]
    image = np.rint(color.clip(0, 1) * 255).astype(np.uint8)
    return image, np.where(seen, depth, 0).astype(np.float32)


def _hit(shape: Box | Sphere, origin: Array, rays: Array) -> Array:
    """``shape.hit``, worked out only for rays that meet the ball around it."""
    towards = np.array(shape.centre) - origin
    along = rays @ towards if towards.ndim == 1 else np.einsum("...i,...i", rays, towards)
    room_left = np.einsum("...i,...i", towards, towards) - 1.001 * shape.radius**2
    near = along * np.abs(along) >= room_left * np.einsum("...i,...i", rays, rays)
    distance = np.full(rays.shape[:-1], np.inf)
    distance[near] = shape.hit(origin if origin.ndim == 1 else origin[near], rays[near])
    return distance


def cos_sin(angle: float) -> tuple[float, float]:
    return math.cos(angle), math.sin(angle)


def _rotation_y(angle: float) -> Array:
    c, s = cos_sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """(N, 3) RGB of hues (taken modulo 1), saturations and values in [0, 1]."""
    distance = np.abs((hue[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return value[:, None] * (1 - saturation[:, None] * (1 - distance.clip(0, 1)))
