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
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from langdepth.data.base import DATASETS, DatasetCard, Search, keep, layout, open_dataset
from langdepth.data.rows import (
    FACTS,
    Decoder,
    Doubt,
    Intrinsics,
    Mask,
    Metres,
    Row,
    file_state,
    made_of,
    read_pair,
    true_edges,
)
from langdepth.errors import ImageError, LangdepthError, UsageError, nearest
from langdepth.evaluation.protocols import Protocol
from langdepth.utils.files import atomic_path, file_stamp, locked, real_path
from langdepth.utils.images import MAX_PIXELS, DecodedImage
from langdepth.utils.reading import read_bytes
from langdepth.utils.threads import reading_threads

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
Frame = Literal["stored", "kb"]
FORMAT = 3  # to be raised where the files change, or the same originals give other frames
PARTS = IMAGES, DEPTHS, EDGES = "images.u8", "depths.u16", "edges.u8"
INDEX, PARTIAL = "index.jsonl", "index.partial"
_AGAIN = "run 'langdepth data cache' again"
_MAX_INDEX = 1 << 30  # bytes; a line has about a thousand
_AT_ONCE = 16


@dataclass(frozen=True)
class Stored:
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


# Reading


def card(root: Path) -> DatasetCard:
    """``CARD`` with the training splits of what was cached below ``root``."""
    head = _read_index(root / INDEX)[0] if (root / INDEX).is_file() else {}
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
        why = f"the cache is not complete; {_AGAIN}" if begun else f"holds no cache; known layouts: {CARD.layouts[0]}"
        raise LangdepthError(f"{root}: {why}")
    head, lines, whole = _read_index(root / INDEX)
    if head.get("format", FORMAT) != FORMAT:
        raise LangdepthError(f"{root}: the cache was written by another version of langdepth; {_AGAIN}")
    if not whole:
        raise LangdepthError(f"{root / INDEX}: is damaged; {_AGAIN}")
    for part, name in enumerate(PARTS):
        size = (root / name).stat().st_size if (root / name).is_file() else 0
        wanted = sum(line.lengths[part] for line in lines)
        if size != wanted:
            raise LangdepthError(f"{root / name}: has {size} bytes instead of {wanted}; {_AGAIN}")
    files = {file: state for line in lines for file, state in line.origin["files"].items()}
    changed = [file for file, state in files.items() if file_state(Path(file)) not in (None, state)]
    if changed:
        raise LangdepthError(
            f"{root}: the cache is outdated: {len(changed)} of its original files have changed since, first "
            f"{changed[0]}; {_AGAIN}"
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

    def __init__(self, root: Path, frames: list[Stored]) -> None:
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
            raise ImageError(f"{path}: frame {number} ({row.key}) is damaged; {_AGAIN}")
        return found


@lru_cache(maxsize=8)
def _mapped(path: Path, stamp: object) -> npt.NDArray[np.uint8]:
    return np.memmap(path, np.uint8, "r")


def _read_index(path: Path) -> tuple[dict[str, Any], list[Stored], bool]:
    """First line, the lines after it before one that is damaged, and whether all are there and good."""
    lines: list[Stored] = []
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


def _stored(values: dict[str, Any]) -> Stored:
    """A line of the index. Raises ValueError, TypeError or KeyError where it is not what was written."""
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    line = Stored(**plain)
    whole = (*line.size, *line.checksums)
    if len(line.size) != 2 or len(line.checksums) != len(PARTS) or not all(type(number) is int for number in whole):
        raise TypeError
    lens = line.intrinsics
    if lens is not None and not (len(lens) == 4 and all(isinstance(number, int | float) for number in lens)):
        raise TypeError
    if not (isinstance(line.edges, bool) and isinstance(line.error, str) and isinstance(line.origin, dict)):
        raise TypeError
    if not isinstance(line.origin.get("files"), dict):
        raise TypeError
    if not 0 <= math.prod(line.size) <= MAX_PIXELS or min(line.size) < 0 or not 0 < line.scale < np.inf:
        raise ValueError
    if not {*FACTS, "files"} <= line.origin.keys():
        raise KeyError
    return line


# Writing


class Written(NamedTuple):
    """frames: how many the cache has; errors: why other pairs are not in it; added: how many this run decoded."""

    frames: int
    errors: list[str]
    added: int


Encoded = Callable[[Row, dict[str, Any]], tuple["Stored", list[bytes]]]
"""From a row, and what it was made of, to a frame's line and its content for each of PARTS."""


def write_cache(
    name: str,
    root: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    frame: Frame = "stored",
    trust_unit: bool = False,
    truth_root: str | Path | None = None,
    listed: str | Path | None = None,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Written:
    """Cache the pairs of the data set ``name`` below ``root``, or of one ``split``, in the folder ``out``.

    ``truth_root``, ``listed``: where the ground truth lies and which pairs are read, see ``data.base.find_rows``.
    ``frame``: "stored" or "kb", the KITTI benchmark's bottom 352 rows and middle 1216 columns. What an earlier run has
    cached of the same pairs is kept, unless it is damaged or its files have changed; ``progress(done, total)`` is
    called after each pair. Raises UsageError for a folder that holds another cache and images with overlays,
    LangdepthError for data that is missing or of a wrong unit, and for a folder that cannot be written.
    """
    if frame not in get_args(Frame):
        raise UsageError(f"unknown frame '{frame}': {nearest(frame, get_args(Frame))}")
    opened = open_dataset(name, root, split, trust_unit=trust_unit, truth_root=truth_root, pairs=listed)
    pairs, encoded = opened.rows, partial(_encoded, frame, opened.doubt)
    overlaid = next((row for row in pairs if row.path_overlay is not None), None)
    if overlaid is not None:
        raise UsageError(f"{overlaid.path_rgb}: has an overlay; images with masks drawn over them are not cached")
    out = Path(out)
    head = {"format": FORMAT, "dataset": name, "root": str(real_path(Path(root))), "split": split, "frame": frame}
    if listed is not None:
        head["split"] = Path(listed).name
    try:
        with locked(out):
            return _write(out, {**head, "rows": len(pairs)}, pairs, encoded, progress)
    except OSError as error:
        raise LangdepthError(
            f"{out}: cannot be written ({error.strerror or error}); a second run goes on where this one stopped"
        ) from None


def _write(
    out: Path, head: dict[str, Any], pairs: list[Row], encoded: Encoded, progress: Callable[[int, int], Any]
) -> Written:
    out.mkdir(parents=True, exist_ok=True)
    index, unfinished = out / INDEX, out / PARTIAL
    lines: list[Stored] = []
    complete = False
    for path in (index, unfinished):
        if path.is_file():
            known, lines, whole = _read_index(path)
            complete = whole and path == index and len(lines) == len(pairs)
            stated = head.keys() & known.keys() - {"rows", "format"}
            other = [key for key in sorted(stated) if known[key] != head[key]]
            if other:
                raise UsageError(
                    f"{out}: holds a cache with {other[0]} {known[other[0]]}, not {head[other[0]]}; "
                    "choose another folder"
                )
            if known.get("format") != FORMAT:
                lines, complete = [], False
            break
    origins = made_of(pairs)
    lines = [line for line, _ in takewhile(lambda two: two[0].origin == two[1], zip(lines, origins, strict=False))]
    lines = lines[: _good(out, lines)]
    kept = len(lines)
    if not (complete and kept == len(pairs)):
        with atomic_path(unfinished) as temporary:
            temporary.write_text(
                "".join(f"{json.dumps(line)}\n" for line in (head, *map(vars, lines))), encoding="utf-8"
            )
        index.unlink(missing_ok=True)
        with ExitStack() as stack:
            table = stack.enter_context(unfinished.open("a", encoding="utf-8"))
            files = [
                stack.enter_context(_opened_at(out / name, sum(line.lengths[part] for line in lines)))
                for part, name in enumerate(PARTS)
            ]
            for line, contents in _decoded(pairs[kept:], origins[kept:], encoded):
                for file, content in zip(files, contents, strict=True):
                    file.write(content)
                    file.flush()
                table.write(json.dumps(vars(line)) + "\n")
                table.flush()
                lines.append(line)
                progress(len(lines), len(pairs))
        os.replace(unfinished, index)
    errors = [line.error for line in lines if line.error]
    return Written(len(lines) - len(errors), errors, len(lines) - kept)


def _good(out: Path, lines: list[Stored]) -> int:
    """How many of the frames are in the files as they were written, from the first on."""
    with ExitStack() as stack:
        files = [stack.enter_context(_opened_at(out / name, None)) for name in PARTS]
        for number, line in enumerate(lines):
            contents = [file.read(length) for file, length in zip(files, line.lengths, strict=True)]
            if tuple(map(zlib.crc32, contents)) != line.checksums:
                return number
    return len(lines)


def _opened_at(path: Path, end: int | None) -> BinaryIO:
    """The file for reading and writing; cut off at ``end`` and there, or at its beginning."""
    path.touch()
    file = path.open("r+b")
    if end is not None:
        file.truncate(end)
        file.seek(end)
    return file


def _decoded(pairs: list[Row], origins: list[dict[str, Any]], encoded: Encoded) -> Iterator[tuple[Stored, list[bytes]]]:
    with reading_threads(os.cpu_count()) as pool:
        for first in range(0, len(pairs), _AT_ONCE):  # no more than so many in memory
            chunk = slice(first, first + _AT_ONCE)
            yield from pool.map(encoded, pairs[chunk], origins[chunk])


def _encoded(frame: Frame, doubt: Doubt | None, row: Row, origin: dict[str, Any]) -> tuple[Stored, list[bytes]]:
    """A frame's line, and its content for each of PARTS."""
    try:
        pixels, metres, camera = read_pair(row, doubt)
        edges = true_edges(row, metres.shape)
    except ImageError as error:
        return Stored(origin, (0, 0), error=str(error)), [b""] * len(PARTS)
    window = Protocol(name=frame, frame=frame).frame_window(*metres.shape)
    pixels, metres = pixels[window], metres[window]
    intrinsics = None
    if camera is not None:
        intrinsics = camera.fx, camera.fy, camera.cx - window[1].start, camera.cy - window[0].start
    numbers, scale = as_numbers(metres, row.depth_scale)
    contents = [pixels.tobytes(), numbers.tobytes(), b"" if edges is None else edges[window].tobytes()]
    checksums = tuple(map(zlib.crc32, contents))
    height, width = metres.shape
    return Stored(origin, (height, width), scale, intrinsics, edges is not None, checksums), contents


def as_numbers(metres: Metres, scale: float) -> tuple[npt.NDArray[np.uint16], float]:
    """Depth (H, W), 0 = unknown, in 16 bits, and its metres per unit: ``scale`` if nothing is lost by it."""
    farthest = float(metres.max(initial=0))
    numbers = np.rint(metres / scale)
    if farthest > 65535.4 * scale or not np.allclose(numbers * scale, metres, rtol=1e-6, atol=0):
        scale = farthest / 65535
        numbers = np.rint(metres / scale)
    numbers[(metres > 0) & (numbers < 1)] = 1
    return numbers.astype("<u2"), scale
