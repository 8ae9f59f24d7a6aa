"""Ray-cast rooms and streets with exact depth, for tests and for ``langdepth data sample``.

Floors lie at y = 0, so what stands on them has negative y.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from langdepth.camera import Camera
from langdepth.data.tools.raycast import Box, Material, Pose, Sphere, cos_sin, render
from langdepth.errors import UsageError

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
    (c, s), boxes = cos_sin(yaw), []
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
    """The image (H, W, 3) as a camera records it: darker towards the corners, a little soft, with noise."""
    height, width = image.shape[:2]
    y, x = np.linspace(-1, 1, height)[:, None, None], np.linspace(-1, 1, width)[None, :, None]
    soft = np.pad(image * (1 - 0.25 * (x * x + y * y)), ((1, 1), (1, 1), (0, 0)), mode="edge")
    soft = (soft[:-2] + 2 * soft[1:-1] + soft[2:]) / 4
    soft = (soft[:, :-2] + 2 * soft[:, 1:-1] + soft[:, 2:]) / 4
    noisy = soft + rng.normal(0, 2, image.shape) + rng.normal(0, 3, (height, width, 1))
    return np.rint(noisy.clip(0, 255)).astype(np.uint8)


def room(index: int, *, height: int, width: int, seed: int = 0) -> Rendering:
    """A furnished room with a camera somewhere inside; the same for the same ``index`` and ``seed``.

    Depth is known everywhere. The scene type sets the size, colors and furniture of the room, so a network can learn
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

    # The camera stands in the half of the room before z = 0 and points roughly at its middle.
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


def _check_size(height: int, width: int) -> None:
    low, high = _SIDES
    if not (low <= height <= high and low <= width <= high):
        raise UsageError(f"size {width}x{height}: each side must lie between {low} and {high} pixels")
