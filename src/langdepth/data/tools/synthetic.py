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
    "bathroom": ((2.0, 2.7), 2.4, 0.52),
    "kitchen": ((2.6, 3.6), 2.5, 0.13),
    "bedroom": ((3.0, 3.9), 2.5, 0.65),
    "living_room": ((3.6, 4.8), 2.6, 0.08),
    "office": ((3.2, 4.4), 2.7, 0.58),
    "classroom": ((5.0, 6.5), 3.0, 0.16),
}
STREET = "outdoor_scene"
STREET_LENGTH = 120.0
CASTS_NO_SHADOW = 2.2  # metres of radius: shells, floors and facades, which hide no lamp from what is before them

_SIDES = (32, 2048)


class Rendering(NamedTuple):
    """An image and its exact depth.

    image: (H, W, 3) uint8 RGB; depth: (H, W) float32 metres along the optical axis, 0 where there is no surface; scene:
    one of ``text.scenes.SCENES``.
    """

    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]
    camera: Camera
    scene: str


@dataclass(frozen=True, kw_only=True)
class Material:
    """Colour and pattern of a surface: tiles (planks, bricks, panes) with joints between them, and a smooth grain.

    colours: (6, 3) RGB in [0, 1], by face (-x, +x, -y, +y, -z, +z); tile: sides of a tile in metres; joint: its width
    in metres, 0 for none; contrast: how much darker joints are, in [0, 1], and half of it how much tiles differ; waves:
    (N, 3), the grain as waves (radians per metre in u, in v, phase); grain: its strength.
    """

    colours: Array
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
            colours=_rgb(hues, np.full(6, rng.uniform(*saturation)), value.clip(0, 1)),
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
        return self.colours[face] * pattern[:, None]


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
    """A ball seen from outside."""

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
        (cp, sp), (cr, sr) = _cos_sin(self.pitch), _cos_sin(self.roll)
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
    colour = np.array([0.85, 0.9, 0.95]) + elevation.clip(0, 1) * np.array([-0.5, -0.35, -0.05])
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
        colour[mask] = shape.material.shade(surface.face, surface.uv) * (0.35 + strength * lit)[:, None]
    image = np.rint(colour.clip(0, 1) * 255).astype(np.uint8)
    return image, np.where(seen, depth, 0).astype(np.float32)


# Furniture as boxes: (centre x, bottom y, centre z, width, height, depth) in metres, its back at positive z, and the
# name of what it is made of.
Part = tuple[float, float, float, float, float, float, str]


def _legs(width: float, height: float, depth: float, thick: float = 0.05) -> list[Part]:
    x, z = width / 2 - thick, depth / 2 - thick
    return [(sx * x, 0, sz * z, thick, height, thick, "wood") for sx in (-1, 1) for sz in (-1, 1)]


FURNITURE: dict[str, list[Part]] = {
    "bed": [
        (0, 0, 0, 1.6, 0.32, 2.0, "wood"),
        (0, 0.32, -0.02, 1.55, 0.2, 1.92, "cloth"),
        (0, 0, 1.0, 1.65, 1.0, 0.06, "wood"),
        (-0.38, 0.52, 0.7, 0.6, 0.12, 0.4, "white"),
        (0.38, 0.52, 0.7, 0.6, 0.12, 0.4, "white"),
    ],
    "table": [(0, 0.7, 0, 1.2, 0.04, 0.75, "wood"), *_legs(1.2, 0.7, 0.75)],
    "desk": [
        (0, 0.71, 0, 1.4, 0.03, 0.7, "wood"),
        *_legs(1.4, 0.71, 0.7),
        (0, 0.86, 0.15, 0.5, 0.32, 0.03, "black"),
        (0, 0.74, 0.17, 0.2, 0.12, 0.12, "black"),
    ],
    "chair": [
        (0, 0.42, 0, 0.42, 0.05, 0.42, "cloth"),
        (0, 0.47, 0.19, 0.42, 0.45, 0.04, "cloth"),
        *_legs(0.42, 0.42, 0.42, 0.04),
    ],
    "sofa": [
        (0, 0, 0, 1.9, 0.42, 0.85, "cloth"),
        (0, 0.42, 0.32, 1.9, 0.42, 0.2, "cloth"),
        (-0.88, 0.42, 0, 0.16, 0.2, 0.85, "cloth"),
        (0.88, 0.42, 0, 0.16, 0.2, 0.85, "cloth"),
    ],
    "cabinet": [(0, 0, 0, 0.9, 1.9, 0.4, "doors")],
    "sideboard": [(0, 0, 0, 1.3, 0.75, 0.42, "doors"), (0.2, 0.75, 0.05, 0.8, 0.5, 0.06, "black")],
    "counter": [
        (0, 0, 0, 1.8, 0.86, 0.6, "doors"),
        (0, 0.86, -0.01, 1.8, 0.04, 0.62, "stone"),
        (0, 1.45, 0.14, 1.8, 0.7, 0.32, "doors"),
    ],
    "fridge": [(0, 0, 0, 0.62, 1.75, 0.62, "white")],
    "tub": [(0, 0, 0, 1.55, 0.55, 0.7, "white")],
    "sink": [
        (0, 0, 0, 0.6, 0.78, 0.42, "doors"),
        (0, 0.78, 0, 0.62, 0.08, 0.46, "white"),
        (0, 1.2, 0.2, 0.55, 0.7, 0.02, "glass"),
    ],
    "toilet": [(0, 0, -0.1, 0.36, 0.4, 0.5, "white"), (0, 0.4, 0.18, 0.38, 0.38, 0.16, "white")],
    "door": [(0, 0, 0, 0.86, 2.0, 0.04, "doors")],
    "window": [(0, 0.95, 0, 1.3, 1.15, 0.03, "window")],
    "frame": [(0, 1.35, 0, 0.7, 0.5, 0.03, "cloth")],
    "board": [(0, 0.9, 0, 2.2, 1.1, 0.03, "board")],
}
# What stands along the back wall, and in the middle or at the sides.
FURNISHED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bathroom": (("tub", "sink", "toilet", "door"), ("cabinet",)),
    "kitchen": (("counter", "fridge", "counter", "window"), ("table", "chair", "chair")),
    "bedroom": (("bed", "cabinet", "window", "frame"), ("chair", "sideboard")),
    "living_room": (("sofa", "sideboard", "window", "frame"), ("table", "chair", "cabinet")),
    "office": (("desk", "cabinet", "desk", "window"), ("chair", "chair", "table")),
    "classroom": (("board", "cabinet", "board", "door"), ("table", "chair", "table", "chair", "table")),
}


def _materials(rng: np.random.Generator) -> dict[str, Material]:
    """What furniture is made of, by the names that ``FURNITURE`` uses."""
    dull, none = (0.0, 0.06), (0.0, 0.02)
    return {
        "wood": Material.draw(rng, 0.08, (0.12, 2.0), saturation=(0.25, 0.5), brightness=(0.35, 0.7)),
        "cloth": Material.draw(rng, rng.uniform(), saturation=(0.1, 0.5), brightness=(0.3, 0.75), contrast=none,
                               grain=0.0),
        "white": Material.draw(rng, 0.15, saturation=dull, brightness=(0.85, 0.95), contrast=none, grain=0.0),
        "black": Material.draw(rng, 0.6, saturation=dull, brightness=(0.08, 0.15), contrast=none, grain=0.0),
        "stone": Material.draw(rng, 0.1, saturation=dull, brightness=(0.3, 0.6), contrast=none, grain=0.0),
        "glass": Material.draw(rng, 0.55, saturation=dull, brightness=(0.65, 0.8), contrast=none, grain=0.0),
        "board": Material.draw(rng, 0.4, saturation=(0.0, 0.3), brightness=(0.25, 0.9), contrast=none, grain=0.0),
        "window": Material.draw(rng, 0.57, (0.65, 1.15), saturation=dull, brightness=(0.95, 1.0), contrast=(0.5, 0.6),
                                joint=0.06, grain=0.0),
        "doors": Material.draw(rng, 0.09, (0.45, 0.62), saturation=(0.0, 0.45), brightness=(0.5, 0.9),
                               contrast=(0.3, 0.5), joint=0.015),
    }  # fmt: skip


def _placed(name: str, x: float, z: float, yaw: float, materials: dict[str, Material]) -> list[Box]:
    """The boxes of a piece of furniture whose centre stands at (x, z), its back turned to ``yaw`` (0: positive z)."""
    (c, s), boxes = _cos_sin(yaw), []
    for dx, bottom, dz, wide, tall, deep, material in FURNITURE[name]:
        centre = (x + c * dx + s * dz, -bottom - tall / 2, z - s * dx + c * dz)
        boxes.append(Box(centre=centre, size=(wide, tall, deep), yaw=yaw, material=materials[material]))
    return boxes


def _depth_of(name: str) -> float:
    return max(part[2] + part[5] / 2 for part in FURNITURE[name])


def _width_of(name: str) -> float:
    return 2 * max(abs(part[0]) + part[3] / 2 for part in FURNITURE[name])


def _furnish(rng: np.random.Generator, scene: str, wide: float, deep: float, eye: tuple[float, float]) -> list[Box]:
    """Furniture along the back wall and the side walls, and in the middle; none within a metre of ``eye``."""
    materials = _materials(rng)
    back, others = (list(names) for names in FURNISHED[scene])
    rng.shuffle(back)
    rng.shuffle(others)
    boxes, x = [], -wide / 2 + 0.1
    for name in back:
        space = _width_of(name)
        if x + space > wide / 2 - 0.1:
            break
        boxes += _placed(name, x + space / 2, deep / 2 - _depth_of(name) - 0.01, 0.0, materials)
        x += space + rng.uniform(0.1, 0.5)
    for side, name in zip((-1, 1), ("window" if rng.uniform() < 0.5 else "door", "frame"), strict=True):
        z = rng.uniform(-0.05, 0.25) * deep
        boxes += _placed(name, side * (wide / 2 - 0.02), z, side * math.pi / 2, materials)
    for number, name in enumerate(others):
        if number % 2:
            side = rng.choice((-1, 1))
            place = side * (wide / 2 - _depth_of(name) - 0.02), rng.uniform(-0.1, 0.15) * deep, side * math.pi / 2
        else:
            place = *rng.uniform(-0.28, 0.28, 2) * (wide, deep), rng.uniform(-0.4, 0.4)
        if math.hypot(place[0] - eye[0], place[1] - eye[1]) > 1.0 + _width_of(name) / 2:
            boxes += _placed(name, *place, materials)
    return boxes


def _photographed(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The image (H, W, 3) as a camera sees it: darker towards the corners, a little soft, with noise."""
    height, width = image.shape[:2]
    y, x = np.linspace(-1, 1, height)[:, None, None], np.linspace(-1, 1, width)[None, :, None]
    soft = np.pad(image * (1 - 0.25 * (x * x + y * y)), ((1, 1), (1, 1), (0, 0)), mode="edge")
    soft = (soft[:-2] + 2 * soft[1:-1] + soft[2:]) / 4
    soft = (soft[:, :-2] + 2 * soft[:, 1:-1] + soft[:, 2:]) / 4
    noisy = soft + rng.normal(0, 2, image.shape) + rng.normal(0, 3, (height, width, 1))
    return np.rint(noisy.clip(0, 255)).astype(np.uint8)


def room(index: int, *, height: int, width: int, seed: int = 0) -> Rendering:
    """A furnished room with a camera somewhere inside; the same for the same ``index`` and ``seed``.

    Depth is known everywhere. The scene type sets the size, colours and furniture of the room, so a network can learn
    it; the camera's field of view is about that of NYU Depth v2. Raises UsageError for a side outside 32 to 2048
    pixels.
    """
    _check_size(height, width)
    rng = np.random.default_rng([seed, index, 0])
    scene = list(ROOMS)[rng.integers(len(ROOMS))]
    (low, high), tall, hue = ROOMS[scene]
    wide, deep = rng.uniform(low, high, 2)
    tiled = scene in ("bathroom", "kitchen")
    walls = Material.draw(rng, hue, saturation=(0.03, 0.25), brightness=(0.7, 0.92), contrast=(0.0, 0.02), grain=0.0)
    floor = (
        Material.draw(rng, 0.1, (0.33, 0.33), saturation=(0.02, 0.15), brightness=(0.5, 0.8), joint=0.008)
        if tiled
        else Material.draw(rng, 0.08, (1.4, 0.14), saturation=(0.2, 0.5), brightness=(0.35, 0.65), joint=0.004)
    )
    ceiling = Material.draw(rng, 0.1, saturation=(0, 0.05), brightness=(0.88, 0.97), contrast=(0, 0.01), grain=0.0)
    slab = (wide + 1, 0.2, deep + 1)
    shapes: list[Box | Sphere] = [
        Box(centre=(0, -tall / 2, 0), size=(wide, tall + 0.2, deep), material=walls, inside=True),
        Box(centre=(0, 0.1, 0), size=slab, material=floor),
        Box(centre=(0, -tall - 0.1, 0), size=slab, material=ceiling),
    ]

    # The camera stands in the half of the room before z = 0 and looks roughly at its middle, as somebody holds it.
    x, z = rng.uniform(-0.3, 0.3) * wide, rng.uniform(-0.42, -0.25) * deep
    yaw = math.atan2(-x, deep * 0.3 - z) + rng.normal(0, 0.25)
    pose = Pose(
        position=(x, -rng.uniform(1.3, 1.6), z), yaw=yaw, pitch=rng.uniform(-0.3, -0.08), roll=rng.normal(0, 0.02)
    )
    shapes += _furnish(rng, scene, wide, deep, (x, z))
    camera = Camera.from_fov(rng.uniform(60, 66), width, height, source="data set")
    lamp = (rng.uniform(-0.2, 0.2) * wide, -tall * 0.93, rng.uniform(-0.2, 0.1) * deep)
    image, depth = render(shapes, camera, pose, light=lamp, reach=2.0)
    return Rendering(_photographed(image, rng), depth, camera, scene)


def street(index: int, *, height: int, width: int, seed: int = 0) -> Rendering:
    """A street between facades, with cars and trees; the same for the same ``index`` and ``seed``.

    The sky has no depth. Raises UsageError for a side outside 32 to 2048 pixels.
    """
    _check_size(height, width)
    rng = np.random.default_rng([seed, index, 1])
    half = rng.uniform(5, 8)
    asphalt = Material.draw(rng, 0.6, (half / 2, 6.0), saturation=(0, 0.06), brightness=(0.3, 0.45), contrast=(0, 0.1))
    paint = Material.draw(rng, 0.1, saturation=(0, 0.03), brightness=(0.7, 0.85), contrast=(0, 0.02))
    stone = Material.draw(rng, 0.1, (0.5, 0.5), saturation=(0, 0.1), brightness=(0.4, 0.6), joint=0.02)
    glass = Material.draw(rng, 0.6, saturation=(0, 0.2), brightness=(0.1, 0.2), contrast=(0, 0.02))
    ground_size = (100.0, 1.0, STREET_LENGTH)
    shapes: list[Box | Sphere] = [Box(centre=(0, 0.5, STREET_LENGTH / 2), size=ground_size, material=asphalt)]
    for z in np.arange(4, 60, 6.0):
        shapes.append(Box(centre=(0, -0.005, float(z)), size=(0.15, 0.01, 3.0), material=paint))
    for side in (-1, 1):
        walk = (side * (half + 6), -0.06, STREET_LENGTH / 2)
        shapes.append(Box(centre=walk, size=(12, 0.12, STREET_LENGTH), material=stone))
        z = -5.0
        while z < STREET_LENGTH - 10:
            length, tall, back = rng.uniform(8, 20), rng.uniform(6, 16), rng.uniform(2, 4)
            facade = Material.draw(rng, rng.uniform(0, 0.15), (rng.uniform(1.8, 2.8), 3.1), saturation=(0.05, 0.4),
                                   brightness=(0.2, 0.4), contrast=(-1.2, -0.7),
                                   joint=rng.uniform(0.9, 1.4))  # fmt: skip
            length = min(length, STREET_LENGTH - z)
            centre = (side * (half + back + 5), -tall / 2, z + length / 2)
            shapes.append(Box(centre=centre, size=(10, tall, length), material=facade))
            z += length + rng.choice([0.0, 4.0])
        for z in np.arange(7, 70, 8.0) + rng.uniform(-2, 2, 8):
            if rng.uniform() < 0.55:
                paintwork = Material.draw(rng, rng.uniform(), saturation=(0, 0.6), brightness=(0.2, 0.8),
                                          contrast=(0, 0.02), grain=0.0)  # fmt: skip
                x, yaw = side * (half - 1.1), rng.normal(0, 0.03)
                shapes.append(Box(centre=(x, -0.6, float(z)), size=(1.75, 0.8, 4.2), yaw=yaw, material=paintwork))
                shapes.append(Box(centre=(x, -1.2, float(z) + 0.2), size=(1.55, 0.5, 2.2), yaw=yaw, material=glass))
            elif rng.uniform() < 0.6:
                place = (side * (half + 0.8), float(z))
                leaves = Material.draw(rng, 0.28, (0.12, 0.12), brightness=(0.25, 0.45), contrast=(0.5, 0.9))
                trunk = Material.draw(rng, 0.08, brightness=(0.2, 0.35))
                shapes.append(Box(centre=(place[0], -1.3, place[1]), size=(0.3, 2.6, 0.3), material=trunk))
                shapes.append(Sphere(centre=(place[0], -3.9, place[1]), radius=1.7, material=leaves))
    pose = Pose(
        position=(rng.uniform(-0.3, 0.3) * half, -1.65, 0),
        yaw=rng.normal(0, 0.06),
        pitch=rng.normal(0, 0.03),
        roll=rng.normal(0, 0.01),
    )
    camera = Camera.from_fov(rng.uniform(58, 66), width, height, source="data set")
    image, depth = render(shapes, camera, pose, light=(200, -300, -200))
    return Rendering(_photographed(image, rng), depth, camera, STREET)


def _hit(shape: Box | Sphere, origin: Array, rays: Array) -> Array:
    """``shape.hit``, worked out only for rays that meet the ball around it."""
    towards = np.array(shape.centre) - origin
    along = rays @ towards if towards.ndim == 1 else np.einsum("...i,...i", rays, towards)
    room_left = np.einsum("...i,...i", towards, towards) - 1.001 * shape.radius**2
    near = along * np.abs(along) >= room_left * np.einsum("...i,...i", rays, rays)
    distance = np.full(rays.shape[:-1], np.inf)
    distance[near] = shape.hit(origin if origin.ndim == 1 else origin[near], rays[near])
    return distance


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
