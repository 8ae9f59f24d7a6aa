"""What an ONNX file holds, read without a runtime: its tensors, the kinds of its nodes, the files that belong to it.

ONNX is protobuf: a message is a list of fields, each a number with a whole number, a few bytes or a message.
Imports neither torch nor onnx.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from langdepth.utils.files import file_stamp
from langdepth.utils.reading import open_regular

KEY = "langdepth"  # of the entry in the metadata that states what our files are
BESIDE = ("words", "imagine", "draw")  # what that entry calls the other ONNX files of a system
_EXPONENTS: dict[int, tuple[str, int]] = {
    1: ("<u4", 0x7F800000),
    10: ("<u2", 0x7C00),
    11: ("<u8", 0x7FF0000000000000),
    16: ("<u2", 0x7F80),
}
"""Of float32, float16, float64 and bfloat16, by ONNX's number: the bits that are all set in what is not finite."""
_Value = int | memoryview


class OnnxFlaw(ValueError):
    """Why a file is refused, in a few words."""


@dataclass
class _Tensor:
    """Its values lie in ``chunks`` or ``numbers``, or in another file: ``location`` with ``offset`` and ``length``."""

    name: str = ""
    kind: int = 0
    chunks: list[memoryview] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    outside: dict[str, str] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """The other file, empty where there is none. Raises OnnxFlaw where it is not in the same folder."""
        location = self.outside.get("location", "")
        if PureWindowsPath(location).anchor or ".." in PurePosixPath(location.replace("\\", "/")).parts:
            raise OnnxFlaw(f"tensor '{self.name}' is said to lie outside its folder")
        return location

    def within(self, content: memoryview) -> memoryview:
        """Its bytes in the other file, which holds ``content``."""
        start, length = (int(self.outside.get(key, "0")) for key in ("offset", "length"))
        end = start + length if length else len(content)
        if not 0 <= start <= end <= len(content):
            raise OnnxFlaw(f"tensor '{self.name}' is said to lie beyond the end of {self.location}")
        return content[start:end]


class _Tensors:
    """The tensors of files in one folder, each of which is opened once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: dict[str, memoryview] = {}

    def require_finite(self, tensor: _Tensor) -> None:
        """Raise OnnxFlaw, and OSError where its file cannot be read."""
        if tensor.kind not in _EXPONENTS:
            return
        dtype, exponent = _EXPONENTS[tensor.kind]
        parts = tensor.chunks
        if location := tensor.location:
            if location not in self._opened:
                self._opened[location] = _content(self.folder / location)
            parts = [tensor.within(self._opened[location])]
        if tensor.numbers:  # halves may be stored as whole numbers
            parts = [*parts, memoryview(np.array(tensor.numbers, np.uint16).tobytes())]
        for part in parts:
            if len(part) % np.dtype(dtype).itemsize:
                raise OnnxFlaw(f"tensor '{tensor.name}' is cut off")
            if len(part) and (np.frombuffer(part, dtype) & exponent).max() == exponent:
                raise OnnxFlaw(f"tensor '{tensor.name}' holds values that are not finite; export it again")


def _content(path: Path) -> memoryview:
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def is_onnx(path: str | Path) -> bool:
    """Whether a name is that of an ONNX file."""
    return str(path).lower().endswith(".onnx")


# Protobuf


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A whole number and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise IndexError


def _fields(data: _Value) -> Iterator[tuple[int, _Value]]:
    """Number and value of each field of a message. Raises OnnxFlaw, also where ``data`` is none."""
    try:
        assert isinstance(data, memoryview)
        place, end = 0, len(data)
        while place < end:
            key, place = _varint(data, place)
            if key & 7 == 0:
                number, place = _varint(data, place)
                yield key >> 3, number
                continue
            size = {1: 8, 5: 4}.get(key & 7)
            if key & 7 == 2:
                size, place = _varint(data, place)
            if size is None or place + size > end:
                raise IndexError
            yield key >> 3, data[place : place + size]
            place += size
    except (IndexError, AssertionError):
        raise OnnxFlaw("damaged, truncated or not an ONNX file") from None


def _text(data: _Value) -> str:
    return bytes(data).decode("utf-8", "replace") if isinstance(data, memoryview) else ""


def _entry(data: _Value) -> tuple[str, str]:
    """Key and value."""
    parts = dict(_fields(data))
    return _text(parts.get(1, 0)), _text(parts.get(2, 0))


def _tensor(data: _Value) -> _Tensor:
    tensor = _Tensor()
    for number, value in _fields(data):
        if number == 2 and isinstance(value, int):
            tensor.kind = value
        elif number == 8:
            tensor.name = _text(value)
        elif number in (4, 9, 10) and isinstance(value, memoryview):  # float_data, raw_data, double_data
            tensor.chunks.append(value)
        elif number == 5:  # int32_data
            tensor.numbers += [value & 0xFFFF] if isinstance(value, int) else _varints(value)
        elif number == 13:
            tensor.outside |= [_entry(value)]
    return tensor


def _varints(data: memoryview) -> list[int]:
    place, found = 0, []
    try:
        while place < len(data):
            value, place = _varint(data, place)
            found.append(value & 0xFFFF)
    except IndexError:
        raise OnnxFlaw("damaged, truncated or not an ONNX file") from None
    return found


# ONNX


def _graph(content: memoryview) -> Iterator[tuple[int, _Value]]:
    """The fields of the graph. Raises OnnxFlaw."""
    graphs = [value for number, value in _fields(content) if number == 7]
    for graph in graphs:
        yield from _fields(graph)


def states_langdepth(path: Path) -> bool:
    """Whether a graph's file, of ONNX or OpenVINO, is one of ours."""
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            return True  # nothing is lost
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(KEY.encode()) >= 0


def require_sound(path: Path) -> None:
    """Refuse what no exported file has, before anything computes: numbers that are not finite, loops and branches.

    Raises:
        OnnxFlaw: Saying what is wrong.
        OSError: The file, or one with its tensors, cannot be read.
    """
    content, tensors = _content(path), _Tensors(path.parent)
    if any(number == 25 for number, _ in _fields(content)):  # functions, inside which nodes may lie
        raise OnnxFlaw("has functions, which langdepth never exports; refused")
    for number, value in _graph(content):
        if number == 1:
            _require_plain(value)
        elif number == 15:
            raise OnnxFlaw("has sparse tensors, which langdepth never exports; refused")
        elif number == 5:
            tensors.require_finite(_tensor(value))


def _require_plain(node: _Value) -> None:
    """Raise OnnxFlaw for a node with graphs inside: a loop, which may run for ever, or a branch."""
    parts = list(_fields(node))
    for number, attribute in parts:
        if number == 5 and any(inner in (6, 11) for inner, _ in _fields(attribute)):
            kind = next((_text(value) for number, value in parts if number == 4), "")
            raise OnnxFlaw(f"has a node of the kind '{kind}', which langdepth never exports; refused")


def files_of(path: str | Path) -> list[Path]:
    """What an ONNX file is read from: itself, files with its tensors, the system's other graphs. Others stand alone."""
    found = [Path(path)]
    for file in found:  # which grows
        if is_onnx(file):
            with suppress(OSError, ValueError):  # of names that cannot be
                beside = (file.parent / name for name in _names_beside(file_stamp(file), file))
                found += [one for one in beside if one.is_file() and one not in found]
    return found


@lru_cache(maxsize=16)
def _names_beside(_: tuple[str, int, int, int], path: Path) -> tuple[str, ...]:
    """``_``: the file's stamp."""
    names: dict[str, None] = {}
    try:
        content = _content(path)
        for number, value in _graph(content):
            if number == 5:
                names[_tensor(value).location] = None
        metadata = dict(_entry(value) for number, value in _fields(content) if number == 14)
        facts = json.loads(metadata.get(KEY, "{}"))
        names |= {Path(facts[key]).name: None for key in BESIDE if facts.get(key)}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        pass  # opening it says what is wrong
    names.pop("", None)
    return tuple(names)
