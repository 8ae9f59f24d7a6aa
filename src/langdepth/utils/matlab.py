"""Variables of MATLAB files before version 7.3: numbers, texts, cells and structures; what refers to code is refused.

A reader of our own, because scipy's ends the process on some damaged files. Every length is compared with the bytes
that are there before anything is made of it, and a compressed variable is unpacked up to a limit.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from langdepth.utils.arrays import ArrayError, UnreadArrayError
from langdepth.utils.reading import read_bytes

MAX_BYTES = 500_000_000  # of a file, and of a variable once unpacked
_HEADER, _MATRIX, _COMPRESSED, _UTF8 = 128, 14, 15, 16
# How numbers are stored, and the class that they have in MATLAB.
_STORED = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
    16: "u1",
    17: "u2",
}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_CELL, _STRUCT, _CHAR, _COMPLEX = 1, 2, 4, 0x800
_DEEPEST = 8  # cells and structures inside each other


def read_matlab(path: Path, name: str) -> Any:
    """A variable of a MATLAB file of version 5 to 7.2; None where the file has none of this name.

    Numbers are an array without sides of length 1, a text is a str, a cell a list in MATLAB's order of columns, a
    structure a dictionary, several structures a list of them.

    Raises:
        OSError: The file cannot be read, or has more than ``MAX_BYTES``.
        ArrayError: It is damaged, unpacks to more than that, or holds something else.
    """
    content = memoryview(read_bytes(path, MAX_BYTES))
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[_HEADER - 2 : _HEADER]))
    if order is None:
        raise ArrayError("its header is not MATLAB's")
    try:
        rest = content[_HEADER:]
        while len(rest):
            kind, body, rest = _element(rest, order)
            if kind == _COMPRESSED:
                kind, body, _ = _element(_unpacked(body), order)
            if kind == _MATRIX:
                matrix = _matrix(body, order)
                if matrix.name == name:
                    return _value(matrix, order, 0)
    except (struct.error, zlib.error, KeyError, UnicodeDecodeError) as error:
        raise ArrayError("what it holds is not laid out as MATLAB does") from error
    return None


class _Matrix(NamedTuple):
    name: str
    kind: int
    is_complex: bool
    shape: tuple[int, ...]
    content: memoryview


def _element(data: memoryview, order: str) -> tuple[int, memoryview, memoryview]:
    """Kind and bytes of the first element, and what follows it."""
    kind, size = struct.unpack_from(order + "II", data)
    start, end = 8, 8 + size
    if kind >> 16:  # up to four bytes lie inside the head
        kind, start, end = kind & 0xFFFF, 4, 4 + (kind >> 16)
        following = 8
    else:
        following = end if kind == _COMPRESSED else end + -size % 8
    if end > min(len(data), max(following, end)) or (start == 4 and end > 8):
        raise ArrayError("it ends before its last number")
    return kind, data[start:end], data[following:]


def _unpacked(packed: memoryview) -> memoryview:
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(packed, MAX_BYTES)
    if unpacker.unconsumed_tail:
        raise UnreadArrayError(f"it has a variable of more than {MAX_BYTES // 10**6} MB")
    return memoryview(content)


def _matrix(data: memoryview, order: str) -> _Matrix:
    """Name, class and shape of a matrix, and the elements that hold its content."""
    _, flags, data = _element(data, order)
    _, sides, data = _element(data, order)
    _, name, data = _element(data, order)
    (facts,) = struct.unpack_from(order + "I", flags)
    shape = tuple(struct.unpack(f"{order}{len(sides) // 4}i", sides))
    if len(shape) < 2 or min(shape) < 0:
        raise ArrayError(f"it holds an array of shape {shape}")
    return _Matrix(bytes(name).decode("latin-1"), facts & 0xFF, bool(facts & _COMPLEX), shape, data)


def _value(matrix: _Matrix, order: str, depth: int) -> Any:
    count = math.prod(matrix.shape)
    if matrix.kind in _CLASSES:
        if matrix.is_complex:
            raise UnreadArrayError("it holds complex numbers, which are not read")
        numbers = _numbers(matrix.content, order, count).astype(_CLASSES[matrix.kind])
        return numbers.reshape(matrix.shape, order="F").squeeze()
    if matrix.kind == _CHAR:
        return _text(matrix.content, order)
    if matrix.kind not in (_CELL, _STRUCT) or depth == _DEEPEST:
        raise UnreadArrayError("it holds values of a kind that is not read, or in each other too deeply")
    fields, data = [""], matrix.content
    if matrix.kind == _STRUCT:
        _, length, data = _element(data, order)
        _, names, data = _element(data, order)
        (width,) = struct.unpack_from(order + "i", length)
        starts = range(0, len(names), width) if width > 0 else ()
        fields = [bytes(names[start : start + width]).partition(b"\0")[0].decode("latin-1") for start in starts]
    if count * len(fields) * 8 > len(data):  # each has a head
        raise ArrayError("it ends before its last number")
    values: list[Any] = []
    for _ in range(count):
        inside = {}
        for field in fields:
            _, body, data = _element(data, order)
            inside[field] = _value(_matrix(body, order), order, depth + 1) if len(body) else np.empty(0)
        values.append(inside if matrix.kind == _STRUCT else inside[""])
    return values[0] if matrix.kind == _STRUCT and count == 1 else values


def _numbers(data: memoryview, order: str, count: int) -> Any:
    kind, body, _ = _element(data, order)
    dtype = np.dtype(order + _STORED[kind])
    if len(body) != count * dtype.itemsize:
        raise ArrayError("it has fewer or more numbers than it states")
    return np.frombuffer(body, dtype)


def _text(data: memoryview, order: str) -> str:
    kind, body, _ = _element(data, order)
    if kind == _UTF8:
        return bytes(body).decode("utf-8")
    dtype = np.dtype(order + _STORED[kind])
    return "".join(map(chr, np.frombuffer(body, dtype, len(body) // dtype.itemsize).astype(np.uint16).tolist()))
