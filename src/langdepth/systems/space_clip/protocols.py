"""How SPACE-CLIP's program evaluates today, and how it did when its published numbers were measured."""

from __future__ import annotations

from langdepth.evaluation.protocols import Protocol

NYU = Protocol(name="space-clip-nyu-reference", flip=True, max_depth=10.0)
# KITTI's frames are squeezed; the window is that of the squeezed frame.
KITTI = Protocol(
    name="space-clip-kitti-reference", frame_size=(352, 704), flip=True, crop="eigen-kitti", max_depth=80.0
)
# The program of February 2026, which the README's numbers stem from, divided out the scale of every image.
NYU_MEDIAN = Protocol(
    name="space-clip-nyu-median-reference", flip=True, max_depth=10.0, alignment="median", min_pixels=1
)
KITTI_MEDIAN = Protocol(
    name="space-clip-kitti-median-reference",
    frame_size=(352, 704),
    flip=True,
    max_depth=80.0,
    alignment="median",
    min_pixels=1,
)
PROTOCOLS = (NYU, NYU_MEDIAN, KITTI, KITTI_MEDIAN)
