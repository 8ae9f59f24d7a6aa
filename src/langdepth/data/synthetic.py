"""Ray-cast rooms and streets with exact depth, for tests and for ``langdepth data sample``.

A scene is a list of boxes and spheres. The world has the camera's axes: x to the right, y down, z forward, in metres;
floors lie at y = 0, so what stands on them has negative y. One ray goes through the centre of each pixel, with z = 1 in
the camera's frame: the distance along it, in units of its direction, is the depth along the optical axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from langdepth.camera import Camera
from langdepth.errors import UsageError

Array = npt.NDArray[np.float64]

# Scene type: (smallest, largest) side of the floor and height in metres, and the hue (0..1) of its walls.
ROOMS: dict[str, tuple[tuple[float, float], float, float]] = {
    "bathroom": ((1.8, 3.0), 2.3, 0.52),
    "kitchen": ((2.5, 4.0), 2.5, 0.12),
    "bedroom": ((3.0, 4.5), 2.5, 0.75),
    "living_room": ((4.0, 6.0), 2.7, 0.03),
    "office": ((4.0, 7.0), 2.8, 0.60),
    "classroom": ((7.0, 10.0), 3.2, 0.30),
}
STREET = "outdoor_scene"
STREET_LENGTH = 120.0

_SIDES = (32, 2048)


class Rendering(NamedTuple):
    """A picture and its exact depth.

    image: (H, W, 3) uint8 RGB; depth: (H, W) float32 metres along the optical axis, 0 where there is no surface; scene:
    one of ``text.scenes.SCENES``.
    """

    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]
    camera: Camera
    scene: str


@dataclass(frozen=True, kw_only=True)
class Material:
    """Colour and pattern of a surface: a chequer of tiles and a smooth grain.

    colours: (6, 3) RGB in [0, 1], by face (-x, +x, -y, +y, -z, +z); tile: sides of a tile in metres; contrast: of the
    tiles, in [0, 1]; waves: (N, 3), the grain as waves (radians per metre in u, in v, phase).
    """

    colours: Array
    tile: tuple[float, float]
    contrast: float
    waves: Array

    @classmethod
    def draw(cls, rng: np.random.Generator, hue: float, tile: tuple[float, float] | None = None) -> Material:
        """A random material around ``hue``; the faces differ in brightness."""
        hues = hue + rng.normal(0, 0.03, 6)
        brightness, saturation = rng.uniform(0.45, 0.95, 6), rng.uniform(0.1, 0.45, 6)
        side = rng.uniform(0.15, 0.6)
        waves = rng.uniform(-1, 1, (6, 3)) * np.array([1, 1, math.pi]) * np.array([3, 6, 12, 25, 50, 90])[:, None]
        return cls(
            colours=_rgb(hues, saturation, brightness),
            tile=tile or (side, side),
            contrast=rng.uniform(0.1, 0.5),
            waves=waves,
        )

    def shade(self, face: npt.NDArray[np.intp], uv: Array) -> Array:
        """(N, 3) RGB of surface points: their face (N,) and place on it (N, 2) in metres."""
        chequer = np.floor(uv / np.array(self.tile)).sum(-1) % 2
        grain = np.sin(uv @ self.waves[:, :2].T + self.waves[:, 2]).mean(-1)
        return self.colours[face] * ((1 - self.contrast * chequer) * (1 + 0.25 * grain))[:, None]


class Surface(NamedTuple):
    """N points of a shape: normal (N, 3), unit length, towards the viewer; face (N,) in 0..5; uv (N, 2) in metres."""

    normal: Array
    face: npt.NDArray[np.intp]
    uv: Array


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box turned by ``yaw`` radians about the vertical; with ``inside`` it is seen from within, as a room."""

    centre: tuple[float, float, float]
    size: tuple[float, float, float]
    material: Material
    yaw: float = 0.0
    inside: bool = False

    def hit(self, origin: Array, rays: Array) -> Array:
        """Distance (...) along ``rays`` (..., 3) from ``origin`` (3,); infinite where a ray misses."""
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
    """A ball seen from outside."""

    centre: tuple[float, float, float]
    radius: float
    material: Material

    def hit(self, origin: Array, rays: Array) -> Array:
        """Distance (...) along ``rays`` (..., 3) from ``origin`` (3,); infinite where a ray misses."""
        start = origin - self.centre
        a, b, c = (rays**2).sum(-1), rays @ start, start @ start - self.radius**2
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
        (cp, sp), (cr, sr) = _cos_sin(self.pitch), _cos_sin(self.roll)
        rotation_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        rotation_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        return _rotation_y(self.yaw) @ rotation_x @ rotation_z


def render(
    shapes: Sequence[Box | Sphere], camera: Camera, pose: Pose, light: tuple[float, float, float]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Image (H, W, 3) uint8 and depth (H, W) float32 metres, 0 where no shape is hit; a sky is painted there.

    ``light`` is the place of the lamp or sun. Nothing throws shadows.
    """
    u, v = np.meshgrid(
        (np.arange(camera.width) - camera.cx) / camera.fx, (np.arange(camera.height) - camera.cy) / camera.fy
    )
    rays = np.stack((u, v, np.ones_like(u)), -1) @ pose.rotation.T
    origin = np.array(pose.position)
    distances = np.stack([shape.hit(origin, rays) for shape in shapes])
    nearest, depth = distances.argmin(0), distances.min(0)
    seen = np.isfinite(depth)
    elevation = -rays[..., 1:2] / np.linalg.norm(rays, axis=-1, keepdims=True)
    colour = np.array([0.85, 0.9, 0.95]) + elevation.clip(0, 1) * np.array([-0.5, -0.35, -0.05])
    for number, shape in enumerate(shapes):
        mask = seen & (nearest == number)
        points = origin + depth[mask][:, None] * rays[mask]
        surface = shape.surface(points)
        to_light = np.array(light) - points
        to_light /= np.linalg.norm(to_light, axis=-1, keepdims=True)
        bright = 0.45 + 0.55 * (surface.normal * to_light).sum(-1).clip(0, 1)
        colour[mask] = shape.material.shade(surface.face, surface.uv) * bright[:, None]
    image = np.rint(colour.clip(0, 1) * 255).astype(np.uint8)
    return image, np.where(seen, depth, 0).astype(np.float32)


def room(index: int, *, height: int, width: int, seed: int = 0) -> Rendering:
    """A furnished room with a camera somewhere inside; the same for the same ``index`` and ``seed``.

    Depth is known everywhere. The scene type sets the size and colours of the room, so a network can learn it. Raises
    UsageError for a side outside 32 to 2048 pixels.
    """
    _check_size(height, width)
    rng = np.random.default_rng([seed, index, 0])
    scene = list(ROOMS)[rng.integers(len(ROOMS))]
    (low, high), tall, hue = ROOMS[scene]
    wide, deep = rng.uniform(low, high, 2)
    walls = Material.draw(rng, hue)
    shell = Box(centre=(0, -tall / 2, 0), size=(wide, tall, deep), material=walls, inside=True)

    # The camera stands in the half of the room behind z = 0 and looks roughly at its middle.
    x, z = rng.uniform(-0.35, 0.35) * wide, rng.uniform(-0.45, -0.2) * deep
    yaw = math.atan2(-x, -z) + rng.normal(0, 0.35)
    pose = Pose(
        position=(x, -rng.uniform(1.2, 1.7), z), yaw=yaw, pitch=rng.uniform(-0.4, 0.05), roll=rng.normal(0, 0.03)
    )

    shapes: list[Box | Sphere] = [shell]
    for _ in range(rng.integers(4, 9)):
        size, turn, at = (
            rng.uniform((0.3, 0.3, 0.3), (1.2, 1.3, 1.0)),
            rng.uniform(0, math.pi),
            rng.uniform(-0.45, 0.45, 2),
        )
        material, ball = Material.draw(rng, rng.uniform()), rng.uniform(0.08, 0.3)
        place = (float(at[0] * wide), float(at[1] * deep))
        if math.hypot(place[0] - x, place[1] - z) < 1.1:  # keeps the camera outside of things
            continue
        shapes.append(Box(centre=(place[0], -size[1] / 2, place[1]), size=tuple(size), yaw=turn, material=material))
        if rng.uniform() < 0.4:
            shapes.append(Sphere(centre=(place[0], -size[1] - ball, place[1]), radius=ball, material=material))
    camera = Camera.from_fov(rng.uniform(55, 70), width, height, source="data set")
    image, depth = render(shapes, camera, pose, light=(0, -tall * 0.95, 0))
    return Rendering(image, depth, camera, scene)


def street(index: int, *, height: int, width: int, seed: int = 0) -> Rendering:
    """A street between facades with cars and balls of trees; the same for the same ``index`` and ``seed``.

    The sky has no depth. Raises UsageError for a side outside 32 to 2048 pixels.
    """
    _check_size(height, width)
    rng = np.random.default_rng([seed, index, 1])
    half = rng.uniform(5, 9)
    ground = Material.draw(rng, 0.6, tile=(half / 2, 4.0))
    ground_size = (100.0, 1.0, STREET_LENGTH)
    shapes: list[Box | Sphere] = [Box(centre=(0, 0.5, STREET_LENGTH / 2), size=ground_size, material=ground)]
    for side in (-1, 1):
        z = -5.0
        while z < STREET_LENGTH - 10:
            length, tall, back = rng.uniform(8, 20), rng.uniform(6, 18), rng.uniform(0, 2)
            facade = Material.draw(rng, rng.uniform(0, 0.15), tile=(rng.uniform(1.2, 2.5), 3.0))
            length = min(length, STREET_LENGTH - z)
            centre = (side * (half + back + 5), -tall / 2, z + length / 2)
            shapes.append(Box(centre=centre, size=(10, tall, length), material=facade))
            z += length + rng.choice([0.0, 4.0])
        for z in np.arange(6, 70, 8.0) + rng.uniform(-2, 2, 8):
            if rng.uniform() < 0.55:
                car = Material.draw(rng, rng.uniform())
                centre = (side * (half - 1.5), -0.75, float(z))
                shapes.append(Box(centre=centre, size=(1.8, 1.5, 4.2), yaw=rng.normal(0, 0.05), material=car))
            elif rng.uniform() < 0.5:
                leaves = Material.draw(rng, 0.33)
                shapes.append(Sphere(centre=(side * (half - 0.7), -3.2, float(z)), radius=1.2, material=leaves))
    pose = Pose(
        position=(rng.uniform(-0.3, 0.3) * half, -1.65, 0),
        yaw=rng.normal(0, 0.06),
        pitch=rng.normal(0, 0.03),
        roll=rng.normal(0, 0.01),
    )
    camera = Camera.from_fov(rng.uniform(65, 85), width, height, source="data set")
    image, depth = render(shapes, camera, pose, light=(200, -300, -200))
    return Rendering(image, depth, camera, STREET)


def _check_size(height: int, width: int) -> None:
    low, high = _SIDES
    if not (low <= height <= high and low <= width <= high):
        raise UsageError(f"size {width}x{height}: each side must lie between {low} and {high} pixels")


def _cos_sin(angle: float) -> tuple[float, float]:
    return math.cos(angle), math.sin(angle)


def _rotation_y(angle: float) -> Array:
    c, s = _cos_sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """(N, 3) RGB of hues (taken modulo 1), saturations and values in [0, 1]."""
    distance = np.abs((hue[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return value[:, None] * (1 - saturation[:, None] * (1 - distance.clip(0, 1)))
