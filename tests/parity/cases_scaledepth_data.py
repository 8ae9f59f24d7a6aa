"""Lists and files of the data sets that ScaleDepth is evaluated on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from langdepth.data.base import find_rows, layout
from langdepth.data.rows import Row, known_depth
from langdepth.data.sets import diode, kitti, sunrgbd, vkitti2
from tests.parity.runner import Compared, Tolerance

# Name in the file -> data set, split, its list, and the folders that the official paths begin with.
LISTED = {
    "kitti": ("kitti", "test", "", ""),
    "sunrgbd": ("sunrgbd", "test", sunrgbd.LIST, ""),
    "ibims": ("ibims1", "test", "imagelist.txt", ""),
    "diode": ("diode-indoor", "val", diode.INDOOR.listed, ""),
    "hypersim": ("hypersim", "test", "hypersim_list2.txt", ""),
    "ddad": ("ddad", "val", "camera01.txt", ""),
    "diml": ("diml-outdoor", "test", "test_outdoor.txt", ""),
    "vkitti2": ("vkitti2", "test", vkitti2.LIST, vkitti2.PREFIX),
}


def listings(arrays: Mapping[str, np.ndarray]) -> Compared:
    """Paths, labels and focal lengths that follow from the lines of the lists, and of NYU from the names of files."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "nyu")
        for name, home in (("file", "images/test"), ("depth_file", "annotations/test")):
            _touch(root / home / path for path in arrays[f"nyu.{name}"].tolist())
        rows = find_rows("nyu", root, "test")
        files = [(row.path_rgb.relative_to(root / "images/test"), row.path_depth) for row in rows]
        yield "nyu.file", np.array([image.as_posix() for image, _ in files]), Tolerance()
        depths = [depth.relative_to(root / "annotations/test").as_posix() for _, depth in files]
        yield "nyu.depth_file", np.array(depths), Tolerance()
        for short, (name, split, listed, prefix) in LISTED.items():
            if f"{short}.split_lines" not in arrays:
                continue
            root, lines = Path(folder, name), arrays[f"{short}.split_lines"].tolist()
            for kind in ("image", "depth"):
                _touch(root / path.removeprefix(prefix) for path in arrays[f"{short}.{kind}"].tolist())
            if listed:
                (root / listed).write_text("\n".join(lines) + "\n")
            good = [line.split()[0] for line in lines if line.split()[1:2] != ["None"]]
            with patch.object(kitti, "shipped", lambda _, good=good: good):
                rows = sorted(find_rows(name, root, split), key=lambda row: row.path_rgb)
            for kind in ("image", "depth"):
                paths = [row.path_rgb if kind == "image" else row.path_depth for row in rows]
                found = [prefix + path.relative_to(root).as_posix() for path in paths]
                yield f"{short}.{kind}", np.array(found), Tolerance()
            yield f"{short}.category_id", np.array([row.scene for row in rows]), Tolerance()
            if short == "sunrgbd":  # the official reader takes the focal length of no other list
                yield f"{short}.focal", np.array([row.intrinsics[0] for row in rows if row.intrinsics]), Tolerance()


def decoded(arrays: Mapping[str, np.ndarray]) -> Compared:
    """Stored 16-bit numbers to metres."""
    scales = {name: layout(name).CARD.depth_scale for name in ("nyu", "kitti", "vkitti2", "sunrgbd")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "depth.png")
        Image.fromarray(arrays["depth_decode.raw"]).save(path)
        for name, scale in scales.items():
            row = Row(key=name, path_rgb=path, path_depth=path, depth_scale=scale or 1.0)
            if name == "sunrgbd":
                row = replace(row, decoder=sunrgbd.ROTATED)
            yield f"depth_decode.{name}", known_depth(row), Tolerance(rtol=1e-7)


def _touch(paths: Iterator[Path]) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
