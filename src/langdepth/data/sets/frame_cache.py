"""Decoded images and depth in flat files that are mapped into memory: the data set "cache".

Layout of the folder:

    images.u8, depths.u16   the frames one behind the other, each (H, W, 3) bytes and (H, W) little-endian numbers
    edges.u8                (H, W) bytes, 1 on a true edge, of the frames whose data set states edges
    index.jsonl             a line about the whole (what was cached, and how), then a line per frame

Depth is ``number * scale`` metres with the scale of the frame's line: that of the original file where nothing is lost
by it, else the finest that reaches the frame's farthest point. While frames are being added the index is called
``index.partial``, which a later run continues and nothing reads. Every frame has checksums, verified whenever it is
read; sizes and times of the original files are compared when the cache is opened, where these files are there.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from langdepth.data.base import DATASETS, DatasetCard, Search, keep, layout
from langdepth.data.rows import (
    FACTS,
    Decoder,
    Intrinsics,
    Mask,
    Metres,
    Row,
)
from langdepth.errors import ImageError, LangdepthError, UsageError
from langdepth.text.scenes import SCENES
from langdepth.utils.files import file_stamp, file_state
from langdepth.utils.images import MAX_PIXELS, DecodedImage
from langdepth.utils.reading import read_bytes

CARD = DatasetCard(
    name="cache",
    title="Decoded frames of another data set",
    unit="metres per unit of 16 bits, as each frame's line says",
    depth_scale=None,
    invalid="0",
    intrinsics="those of the data set",
    depth_range=(0.001, 1000.0),
    median_range=(0.3, 300.0),
    scenes="those of the data set",
    licence="that of the data set",
    where="langdepth data cache writes it",
    layouts=("index.jsonl, images.u8, depths.u16, edges.u8",),
    splits={},
    split=None,
    protocol="full",
)
FORMAT = 3  # to be raised where the files change, or the same originals give other frames
PARTS = IMAGES, DEPTHS, EDGES = "images.u8", "depths.u16", "edges.u8"
INDEX, PARTIAL = "index.jsonl", "index.partial"
AGAIN = "run 'langdepth data cache' again"
_MAX_INDEX = 1 << 30  # bytes; a line has about a thousand


@dataclass(frozen=True)
class CachedFrame:
    """A line of the index. size: (height, width); checksums: of each of PARTS; origin: see ``rows.made_of``.

    edges: whether it has true edges. error: why there is no frame, for an unusable pair (then its size is 0, 0).
    """

    origin: dict[str, Any]
    size: tuple[int, int]
    scale: float = 1.0
    intrinsics: Intrinsics | None = None
    edges: bool = False
    checksums: tuple[int, ...] = (0,) * len(PARTS)
    error: str = ""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Bytes in each of PARTS."""
        pixels = self.size[0] * self.size[1]
        return 3 * pixels, 2 * pixels, self.edges * pixels


def card(root: Path) -> DatasetCard:
    """``CARD`` with the training splits of what was cached below ``root``."""
    head = read_frames(root / INDEX)[0] if (root / INDEX).is_file() else {}
    name = str(head.get("dataset"))
    return replace(CARD, training=layout(name).CARD.training) if name in DATASETS else CARD


def rows(search: Search) -> list[Row]:
    """The frames of the cache, see ``data.base.Layout``."""
    if search.truth_root is not None:
        raise UsageError(
            f"{search.root}: cached frames have their ground truth beside them; leave {search.truth_root} out"
        )
    try:
        found = _rows(search.root)
    except LangdepthError as error:
        if search.problems is None:
            raise
        search.problems.append(error)
        return []
    return found if search.split is None else keep(found, "split", search.split, search.root)


def _rows(root: Path) -> list[Row]:
    if not (root / INDEX).is_file():
        begun = (root / PARTIAL).is_file()
        why = f"the cache is not complete; {AGAIN}" if begun else f"holds no cache; known layouts: {CARD.layouts[0]}"
        raise LangdepthError(f"{root}: {why}")
    head, lines, whole = read_frames(root / INDEX)
    if head.get("format", FORMAT) != FORMAT:
        raise LangdepthError(f"{root}: the cache was written by another version of langdepth; {AGAIN}")
    if not whole:
        raise LangdepthError(f"{root / INDEX}: is damaged; {AGAIN}")
    for part, name in enumerate(PARTS):
        size = (root / name).stat().st_size if (root / name).is_file() else 0
        wanted = sum(line.lengths[part] for line in lines)
        if size != wanted:
            raise LangdepthError(f"{root / name}: has {size} bytes instead of {wanted}; {AGAIN}")
    tables = head.get("tables")
    files = dict(tables) if isinstance(tables, dict) else {}
    files |= {file: state for line in lines for file, state in line.origin["files"].items()}
    changed = [file for file, state in files.items() if file_state(Path(file)) not in (None, state)]
    if changed:
        raise LangdepthError(
            f"{root}: the cache is outdated: {len(changed)} of its original files have changed since, first "
            f"{changed[0]}; {AGAIN}"
        )
    frames = [line for line in lines if not line.error]
    if not frames:
        raise LangdepthError(f"{root}: the cache has no frames")
    stored = _Frames(root, frames)
    return [
        Row(
            path_rgb=root / IMAGES,
            path_depth=root / DEPTHS,
            item=number,
            decoder=stored.decoder if frame.edges else stored.decoder._replace(edges=None),
            depth_scale=frame.scale,
            size=frame.size,
            intrinsics=frame.intrinsics,
            **{name: frame.origin[name] for name in FACTS},
        )
        for number, frame in enumerate(frames)
    ]


class _Frames:
    """Where the frames lie in the files."""

    def __init__(self, root: Path, frames: list[CachedFrame]) -> None:
        self.root = root
        self.frames = frames
        self.ends = np.cumsum([frame.lengths for frame in frames], axis=0)
        self.decoder = Decoder(self._image, self._depth, self._edges)

    def _image(self, row: Row) -> DecodedImage:
        return DecodedImage(pixels=self._read(row, IMAGES).reshape(*self.frames[row.item or 0].size, 3))

    def _depth(self, row: Row) -> Metres:
        numbers = self._read(row, DEPTHS).view("<u2").reshape(self.frames[row.item or 0].size)
        return numbers.astype(np.float32) * np.float32(row.depth_scale)

    def _edges(self, row: Row) -> Mask:
        return self._read(row, EDGES).reshape(self.frames[row.item or 0].size) != 0

    def _read(self, row: Row, name: str) -> npt.NDArray[np.uint8]:
        number, path, part = row.item or 0, self.root / name, PARTS.index(name)
        try:
            content = _mapped(path, file_stamp(path))
        except (OSError, ValueError) as error:
            raise ImageError(f"{path}: cannot be read ({error})") from None
        frame, end = self.frames[number], self.ends[number, part]
        found = content[end - frame.lengths[part] : end]
        if zlib.crc32(found.data) != frame.checksums[part]:
            raise ImageError(f"{path}: frame {number} ({row.key}) is damaged; {AGAIN}")
        return found


@lru_cache(maxsize=8)
def _mapped(path: Path, stamp: object) -> npt.NDArray[np.uint8]:
    return np.memmap(path, np.uint8, "r")


def read_frames(path: Path) -> tuple[dict[str, Any], list[CachedFrame], bool]:
    """First line, the lines after it before one that is damaged, and whether all are there and good."""
    lines: list[CachedFrame] = []
    try:
        first, *texts = read_bytes(path, _MAX_INDEX).decode(errors="replace").splitlines()
        head = dict(json.loads(first))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}, lines, False
    for text in texts:
        try:
            lines.append(_stored(json.loads(text)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return head, lines, False
    return head, lines, head.get("format") == FORMAT and len(lines) == head.get("rows")


def _stored(values: dict[str, Any]) -> CachedFrame:
    """A line of the index. Raises ValueError, TypeError, KeyError or AttributeError where it is no such line."""
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    line = CachedFrame(**plain)
    lens, numbers = line.intrinsics, (*line.size, *line.checksums)
    if not (
        (len(line.size), len(line.checksums)) == (2, len(PARTS))
        and all(type(number) is int and number >= 0 for number in numbers)
        and math.prod(line.size) <= MAX_PIXELS
        and 0 < line.scale < np.inf
        and (lens is None or (len(lens) == 4 and all(isinstance(number, int | float) for number in lens)))
        and isinstance(line.edges, bool)
        and isinstance(line.error, str)
        and isinstance(line.origin["files"], dict)
        and all(isinstance(line.origin[name], FACTS[name]) for name in FACTS)
        and -1 <= line.origin["scene"] < len(SCENES)
    ):
        raise ValueError
    return line
