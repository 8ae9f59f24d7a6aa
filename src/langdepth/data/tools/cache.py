"""Writing the cache of decoded frames that ``data.sets.frame_cache`` reads."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from langdepth.data.base import open_dataset
from langdepth.data.choice import ALL, PairChoice
from langdepth.data.rows import Doubt, Metres, Row, made_of, read_pair, true_edges
from langdepth.data.sets.frame_cache import FORMAT, INDEX, PARTIAL, PARTS, CachedFrame, read_frames
from langdepth.errors import ImageError, LangdepthError, UsageError, nearest
from langdepth.evaluation.protocols import Protocol
from langdepth.utils.files import atomic_path, file_state, real_path, require_marked
from langdepth.utils.locks import locked
from langdepth.utils.threads import reading_threads

CachedPart = Literal["stored", "kb"]
_AT_ONCE = 16


class CacheSummary(NamedTuple):
    """frames: how many the cache has; errors: why other pairs are not in it; added: how many this run decoded."""

    frames: int
    errors: list[str]
    added: int


Encoded = tuple[CachedFrame, list[bytes]]
"""A frame's line, and its content for each of PARTS."""
Encode = Callable[[Row, dict[str, Any]], Encoded]
"""From a row, and what it was made of."""


def write_cache(
    name: str,
    root: str | Path,
    out: str | Path,
    choice: PairChoice = ALL,
    *,
    frame: CachedPart = "stored",
    trust_unit: bool = False,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> CacheSummary:
    """Cache the pairs of a data set in a folder. What an earlier run has cached of the same pairs, as they are, stays.

    Args:
        name: Of the data set.
        root: Its folder.
        out: The folder of the cache.
        choice: Only these pairs.
        frame: "stored" or "kb", the KITTI benchmark's bottom 352 rows and middle 1216 columns.
        trust_unit: See ``data.base.open_dataset``.
        progress: Called after each pair, with how many are done and how many there are.

    Raises:
        UsageError: The folder holds another cache, or images have overlays.
        LangdepthError: The data is missing or of a wrong unit, or the folder cannot be written.
    """
    if frame not in get_args(CachedPart):
        raise UsageError(f"unknown frame '{frame}': {nearest(frame, get_args(CachedPart))}")
    opened = open_dataset(name, root, trust_unit=trust_unit, **vars(choice))
    overlaid = next((row for row in opened.rows if row.path_overlay is not None), None)
    if overlaid is not None:
        raise UsageError(f"{overlaid.path_rgb}: has an overlay; images with masks drawn over them are not cached")
    out = Path(out)
    tables = {row.table for row in opened.rows if row.table is not None}  # which state scales and intrinsics
    head = {
        "format": FORMAT,
        "dataset": name,
        "root": str(real_path(root)),
        "split": opened.split,
        "frame": frame,
        "tables": {os.path.abspath(path): file_state(path) for path in tables},
    }
    try:
        with locked(out):
            encode = partial(_encoded, frame, opened.doubt)
            return _write(out, {**head, "rows": len(opened.rows)}, opened.rows, encode, progress)
    except OSError as error:
        raise LangdepthError(
            f"{out}: cannot be written ({error.strerror or error}); a second run goes on where this one stopped"
        ) from None


def _write(
    out: Path, head: dict[str, Any], pairs: list[Row], encode: Encode, progress: Callable[[int, int], Any]
) -> CacheSummary:
    index, unfinished, origins = out / INDEX, out / PARTIAL, made_of(pairs)
    known, complete = _known(out, head)
    frames = [frame for frame, _ in takewhile(lambda two: two[0].origin == two[1], zip(known, origins, strict=False))]
    frames = frames[: _good(out, frames)]
    kept = len(frames)
    if not (complete and len(known) == kept == len(pairs)):
        with atomic_path(unfinished) as temporary:
            temporary.write_text("".join(f"{json.dumps(line)}\n" for line in (head, *map(vars, frames))), "utf-8")
        index.unlink(missing_ok=True)
        with ExitStack() as stack:
            table = stack.enter_context(unfinished.open("a", encoding="utf-8"))
            files = [
                stack.enter_context(_opened_at(out / name, sum(frame.lengths[part] for frame in frames)))
                for part, name in enumerate(PARTS)
            ]
            pool = stack.enter_context(reading_threads(os.cpu_count()))
            for first in range(kept, len(pairs), _AT_ONCE):  # no more than that in memory
                chunk = slice(first, first + _AT_ONCE)
                for frame, contents in pool.map(encode, pairs[chunk], origins[chunk]):
                    for file, content in zip(files, contents, strict=True):
                        file.write(content)
                        file.flush()
                    table.write(json.dumps(vars(frame)) + "\n")
                    table.flush()
                    frames.append(frame)
                    progress(len(frames), len(pairs))
        os.replace(unfinished, index)
    errors = [frame.error for frame in frames if frame.error]
    return CacheSummary(len(frames) - len(errors), errors, len(frames) - kept)


def _known(out: Path, head: dict[str, Any]) -> tuple[list[CachedFrame], bool]:
    """The frames of an earlier run, and whether it came to its end. Raises UsageError for another cache."""
    path = next((path for path in (out / INDEX, out / PARTIAL) if path.is_file()), None)
    if path is None:
        for name in PARTS:
            require_marked(out / name)
        return [], False
    known, frames, whole = read_frames(path)
    for key in sorted(head.keys() & known.keys() - {"rows", "format", "tables"}):
        if known[key] != head[key]:
            raise UsageError(f"{out}: holds a cache with {key} {known[key]}, not {head[key]}; choose another folder")
    if known.get("format") != FORMAT:
        return [], False
    return frames, whole and path.name == INDEX and known.get("tables") == head["tables"]


def _good(out: Path, frames: list[CachedFrame]) -> int:
    """How many of the frames are in the files as they were written, from the first on."""
    with ExitStack() as stack:
        files = [stack.enter_context(_opened_at(out / name, None)) for name in PARTS]
        for number, frame in enumerate(frames):
            contents = [file.read(length) for file, length in zip(files, frame.lengths, strict=True)]
            if tuple(map(zlib.crc32, contents)) != frame.checksums:
                return number
    return len(frames)


def _opened_at(path: Path, end: int | None) -> BinaryIO:
    """The file for reading and writing; cut off at ``end`` and there, or at its beginning. Raises LangdepthError."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise LangdepthError(f"{path}: is a link or no regular file; remove it, or choose another folder")
    path.touch()
    file = path.open("r+b")
    if end is not None:
        file.truncate(end)
        file.seek(end)
    return file


def _encoded(part: CachedPart, doubt: Doubt | None, row: Row, origin: dict[str, Any]) -> Encoded:
    try:
        pixels, metres, camera = read_pair(row, doubt)
        edges = true_edges(row, metres.shape)
    except ImageError as error:
        return CachedFrame(origin, (0, 0), error=str(error)), [b""] * len(PARTS)
    window = Protocol(name=part, frame=part).frame_slices(*metres.shape)
    pixels, metres = pixels[window], metres[window]
    intrinsics = None
    if camera is not None:
        intrinsics = camera.fx, camera.fy, camera.cx - window[1].start, camera.cy - window[0].start
    numbers, scale = as_numbers(metres, row.depth_scale)
    contents = [pixels.tobytes(), numbers.tobytes(), b"" if edges is None else edges[window].tobytes()]
    checksums, (height, width) = tuple(map(zlib.crc32, contents)), metres.shape
    return CachedFrame(origin, (height, width), scale, intrinsics, edges is not None, checksums), contents


def as_numbers(metres: Metres, scale: float) -> tuple[npt.NDArray[np.uint16], float]:
    """Depth (H, W), 0 = unknown, in 16 bits, and its metres per unit: ``scale`` if nothing is lost by it."""
    farthest = float(metres.max(initial=0))
    numbers = np.rint(metres / scale)
    if farthest > 65535.4 * scale or not np.allclose(numbers * scale, metres, rtol=1e-6, atol=0):
        scale = farthest / 65535
        numbers = np.rint(metres / scale)
    numbers[(metres > 0) & (numbers < 1)] = 1
    return numbers.astype("<u2"), scale
