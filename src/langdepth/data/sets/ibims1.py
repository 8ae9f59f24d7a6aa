"""iBims-1: a hundred rooms, measured by a laser scanner.

Layouts below the root, with the names of the images in imagelist.txt:

    (ibims1_core_mat/)NAME.mat                                      as published: image, depth, masks
    rgb, depth, mask_invalid, mask_transp, each with NAME.png       (ibims1_core_raw) depth up to 50 m in 16 bits
    rgb/NAME.png, masked_depth/NAME.png                             depth in millimetres, made by the user

Depth is unknown where the scanner saw nothing and, in the published files, where a mask says that it is wrong or that
the surface is transparent. The depth edges that people chose (in the .mat files, or edges/NAME.png) are what boundary
errors are measured by. The planes of the published files are not read.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from langdepth.data.base import DatasetCard, Search, first_layout
from langdepth.data.lists import list_of, read_list
from langdepth.data.rows import FILES, Decoder, Intrinsics, Mask, Metres, Row
from langdepth.errors import ImageError
from langdepth.utils.files import file_stamp
from langdepth.utils.images import DecodedImage, decoding, read_image
from langdepth.utils.matlab import read_matlab
from langdepth.utils.reading import visible

CARD = DatasetCard(
    name="ibims1",
    title="iBims-1",
    unit="metres in .mat, 50/65535 m (depth) or millimetres (masked_depth) in 16-bit PNG",
    depth_scale=0.001,
    invalid="0, and what mask_invalid and mask_transp leave out",
    intrinsics="calib of each .mat file; not read in the other layouts",
    depth_range=(0.5, 50.0),
    median_range=(0.8, 20.0),
    scenes="none",
    licence="CC BY-NC-SA 4.0",
    where="https://www.asg.ed.tum.de/lmf/ibims1 (ibims1_core_mat.zip or ibims1_core_raw.zip)",
    layouts=(
        "imagelist.txt and ibims1_core_mat/NAME.mat",
        "imagelist.txt and {rgb,depth,mask_invalid,mask_transp,edges}/NAME.png",
        "imagelist.txt and {rgb,masked_depth}/NAME.png",
    ),
    splits={"test": 100},
    split="test",
    protocol="ibims1",
)
MASKS = ("mask_invalid", "mask_transp")
_MAX_MAT_BYTES = 64_000_000


def rows(search: Search) -> list[Row]:
    """See ``data.base.Layout``."""
    return first_layout(CARD, search, _converted, _raw, _published, folders=("", "ibims1_core_mat", "ibims1_core_raw"))


def _converted(base: Path, split: str) -> list[Row]:
    return _rows(base, split, "rgb/{}.png", "masked_depth/{}.png") if (base / "masked_depth").is_dir() else []


def _raw(base: Path, split: str) -> list[Row]:
    there = (base / "mask_invalid").is_dir()
    return _rows(base, split, "rgb/{}.png", "depth/{}.png", RAW, 50 / 65535, MASKS) if there else []


def _published(base: Path, split: str) -> list[Row]:
    return _rows(base, split, "{}.mat", "{}.mat", PUBLISHED, 1.0) if visible(base, "*.mat") else []


def _rows(
    base: Path,
    split: str,
    image: str,
    depth: str,
    decoder: Decoder = FILES,
    scale: float = 0.001,
    drawn: tuple[str, ...] = (),
) -> list[Row]:
    """``drawn``: folders with an image for each depth map."""
    if decoder.edges is None and (base / "edges").is_dir():
        decoder, drawn = decoder._replace(edges=partial(_drawn, name="edges")), (*drawn, "edges")
    return [
        Row(
            key=image.format(name),
            path_rgb=base / image.format(name),
            path_depth=base / depth.format(name),
            needs=tuple(base / folder / f"{name}.png" for folder in drawn),
            depth_scale=scale,
            decoder=decoder,
            source="ibims1",
            scene_run=name,
            split=split,
            size=(480, 640),
        )
        for name, *_ in read_list(list_of(base, "imagelist.txt"))
    ]


def _content(path: Path) -> Any:
    """The fields of a published file."""
    if path.stat().st_size > _MAX_MAT_BYTES:
        raise ImageError("is larger than an image of this data set may be")
    return _loaded(path, file_stamp(path))


@lru_cache(maxsize=4)  # image, depth, edges and camera are asked for one after the other
def _loaded(path: Path, stamp: object) -> Any:
    content = read_matlab(path, "data")
    if not isinstance(content, dict):
        raise ImageError("has no structure data")
    return content


def _image(row: Row) -> DecodedImage:
    with decoding(str(row.path_rgb)):
        return read_image(np.asarray(_content(row.path_rgb)["rgb"]))


def _depth(row: Row) -> Metres:
    with decoding(str(row.path_depth)):
        data = _content(row.path_depth)
        valid = (np.asarray(data["mask_invalid"]) > 0) & (np.asarray(data["mask_transp"]) > 0)
        return np.where(valid, data["depth"], 0).astype(np.float32)


def _edges(row: Row) -> Mask:
    with decoding(str(row.path_depth)):
        return np.asarray(_content(row.path_depth)["edges"]) > 0


def _raw_depth(row: Row) -> Metres:
    metres = FILES.depth(row)
    for name in MASKS:
        mask = _drawn(row, name)
        if mask.shape != metres.shape:
            raise ImageError(
                f"{row.path_depth}: its {name} is {mask.shape[1]}x{mask.shape[0]}; both must have one size"
            )
        metres[~mask] = 0
    return metres


def _drawn(row: Row, name: str) -> Mask:
    """A mask beside the depth maps, True where it is not black."""
    return read_image(row.path_depth.parents[1] / name / row.path_depth.name).pixels[..., 0] > 0


def _intrinsics(row: Row) -> Intrinsics | None:
    with decoding(str(row.path_rgb)):
        matrix = _content(row.path_rgb).get("calib")
        if matrix is None:
            return None
        (fx, _, _), (_, fy, _), (cx, cy, _) = np.asarray(matrix, dtype=np.float64).tolist()  # transposed
        if not (0 < fx < np.inf and 0 < fy < np.inf):
            raise ImageError(f"its calib has the focal lengths {fx:g} and {fy:g}")
    return fx, fy, cx - 1, cy - 1  # MATLAB counts pixels from 1


PUBLISHED = Decoder(_image, _depth, _edges, _intrinsics)
RAW = Decoder(FILES.image, _raw_depth)
