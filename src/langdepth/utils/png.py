"""PNG files: the mark of those that this library writes, and metadata that is large or broken. Imports no Pillow."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from langdepth.utils.reading import open_regular

if TYPE_CHECKING:
    import numpy.typing as npt

PNG_TAG = "langdepth"  # key of the text that marks the PNG files which this library writes
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_METADATA = 1_000_000  # bytes of one chunk once it is unpacked, above which Pillow refuses the whole file
_MAX_IN_ALL = 32_000_000
_MOST_CHUNKS = 64  # of which the mark is one; a file has a handful before its pixels
_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")


def without_broken_metadata(stream: IO[bytes]) -> IO[bytes]:
    """A PNG without the ancillary chunks that a decoder would stumble over; the stream itself where there are none.

    Those are chunks that are larger than ``MAX_METADATA`` once unpacked, whose checksum is wrong, or that cannot be
    unpacked. What the pixels need is never left out.
    """
    start = stream.tell()
    chunks, total = list[tuple[int, int, bool]](), 0  # place, length of all of it, whether it is kept
    for place, length, name in _chunks(stream):
        keep = True
        if name not in _NEEDED:
            size = _unpacked(stream, length, name)
            keep = size is not None and total + size <= _MAX_IN_ALL
            total += (size or 0) if keep else 0
        chunks.append((place, 12 + length, keep))
    stream.seek(start)
    if all(keep for *_, keep in chunks):
        return stream
    content = io.BytesIO()
    content.write(SIGNATURE)
    for place, length, keep in chunks:
        if keep:
            stream.seek(place)
            content.write(stream.read(length))
    content.seek(0)
    return content


def write_own_png(file: IO[bytes], pixels: npt.NDArray[Any], **facts: Any) -> None:
    """Write (H, W, 3) uint8 or (H, W) uint16 with a text that marks it as this library's: it is not taken for a photo.

    Every row is kept as its difference from the one above: for depth and its colors that gives files as small as
    Pillow's, which tries five ways for each row, in less than half the time.
    """
    import numpy as np

    height, width = pixels.shape[:2]
    bits, color = (8, 2) if pixels.ndim == 3 else (16, 0)
    rows = np.ascontiguousarray(pixels, "u1" if color else ">u2").view(np.uint8).reshape(height, -1)
    filtered = np.full((height, 1 + rows.shape[1]), 2, np.uint8)  # 2, before each row: "up"
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    text = f"{PNG_TAG}\0{json.dumps(facts)}".encode("ascii")
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    file.write(SIGNATURE)
    for name, data in ((b"IHDR", head), (b"tEXt", text), (b"IDAT", zlib.compress(filtered.data, 1)), (b"IEND", b"")):
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def is_own_png(path: str | Path) -> bool:
    """Whether a PNG file says that this library wrote it."""
    key = PNG_TAG.encode() + b"\0"
    try:
        with open_regular(path) as file:
            before_pixels = takewhile(lambda chunk: chunk[2] != b"IDAT", islice(_chunks(file), _MOST_CHUNKS))
            return any(name == b"tEXt" and file.read(len(key)) == key for _, _, name in before_pixels)
    except OSError:
        return False


def grey_bits(head: bytes) -> int | None:
    """Bits per pixel of a PNG of one channel of brightness, by its first 26 bytes; None for anything else."""
    grey = head.startswith(SIGNATURE) and head[12:16] == b"IHDR" and head[25:26] == b"\0"
    return head[24] if grey else None


def _chunks(stream: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Place, length of the data and name of each chunk, as long as there are any; the stream is left at the data."""
    place = stream.tell() + len(SIGNATURE)
    name = b""
    while name != b"IEND":
        stream.seek(place)
        head = stream.read(8)
        if len(head) < 8:
            return
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        yield place, length, name
        place += 12 + length


def _unpacked(stream: IO[bytes], length: int, name: bytes) -> int | None:
    """Bytes that a chunk takes once unpacked; None where it is broken or takes more than ``MAX_METADATA``."""
    if length > MAX_METADATA:
        return None
    data, checksum = stream.read(length), stream.read(4)
    if len(data) < length or zlib.crc32(name + data) != int.from_bytes(checksum, "big"):
        return None
    packed = _packed_part(name, data)
    if packed is None:
        return length
    try:
        unpacked = zlib.decompressobj().decompress(packed, MAX_METADATA + 1)
    except zlib.error:
        return None
    return len(unpacked) if len(unpacked) <= MAX_METADATA else None


def _packed_part(name: bytes, data: bytes) -> bytes | None:
    """What is compressed in a chunk of text or of a color profile; None for all others."""
    if name in (b"zTXt", b"iCCP"):  # keyword, 0, method
        return data[data.find(b"\0") + 2 :]
    if name == b"iTXt":  # keyword, 0, flag, method, language, 0, translated keyword, 0
        _, _, rest = data.partition(b"\0")
        return rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else None
    return None
