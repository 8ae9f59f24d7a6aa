"""Arrays from ``.npy`` and ``.npz`` files that somebody else wrote: shape and size are known before memory is taken."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from langdepth.utils.reading import open_regular

MAX_MATLAB_BYTES = 500_000_000  # of a variable, before MATLAB 7.3
_MATLAB_HEADER, _COMPRESSED, _BLOCK = 128, 15, 1 << 20


class ArrayError(ValueError):
    """What is wrong with a file of arrays, without its name."""


Check = Callable[[tuple[int, ...], np.dtype[Any]], None]


def read_npy(stream: IO[bytes], check: Check, stored_bytes: int) -> npt.NDArray[Any]:
    """The array of an ``.npy`` stream. ``check(shape, dtype)`` raises for one that is not wanted, before it is read.

    Raises ArrayError for a damaged header, objects, and content that is shorter than the header says.
    """
    start = stream.tell()
    try:
        version = npy.read_magic(stream)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(stream)
    except Exception as error:  # whatever the parser of a Python literal raises
        raise ArrayError("its .npy header is damaged") from error
    if dtype.hasobject:
        raise ArrayError("it holds Python objects, which are not opened")
    check(shape, dtype)
    if math.prod(shape) * dtype.itemsize > stored_bytes:
        raise ArrayError("it ends before its last number")
    stream.seek(start)
    content: npt.NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    return content


def load_npy(path: Path, check: Check = lambda shape, dtype: None) -> npt.NDArray[Any]:
    """The array of an ``.npy`` file; see ``read_npy``."""
    with open_regular(path) as stream:
        return read_npy(stream, check, path.stat().st_size)


def read_npz(
    stream: IO[bytes], choose: Callable[[Sequence[str]], str], check: Check = lambda shape, dtype: None
) -> npt.NDArray[Any]:
    """One array of an ``.npz``: the one that ``choose(names)`` names; nothing else is unpacked. See ``read_npy``."""
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        name = choose(list(members))
        if name not in members:
            raise ArrayError(f"it has no array '{name}'")
        info = members[name]
        with archive.open(info) as member:
            return read_npy(member, check, info.file_size)


def load_matlab(path: Path, name: str, **options: Any) -> Any:
    """A variable of a MATLAB file before 7.3, None where it has none; ``options`` are those of ``scipy.io.loadmat``.

    Raises ArrayError where the file unpacks to more than ``MAX_MATLAB_BYTES`` per variable.
    """
    from scipy.io import loadmat

    with open_regular(path) as stream:
        order: Literal["big", "little"] = "big" if stream.read(_MATLAB_HEADER)[-2:] == b"MI" else "little"
        while len(head := stream.read(8)) == 8:
            kind, size = (int.from_bytes(number, order) for number in (head[:4], head[4:]))
            content = stream.read(min(size, MAX_MATLAB_BYTES))
            if max(size, _unpacked_bytes(content) if kind == _COMPRESSED else 0) > MAX_MATLAB_BYTES:
                raise ArrayError(f"a variable has more than {MAX_MATLAB_BYTES // 10**6} MB")
    return loadmat(path, variable_names=[name], **options).get(name)


def _unpacked_bytes(content: bytes) -> int:
    """How much zlib makes of it; of what is too much, not all is counted."""
    unpacker, total = zlib.decompressobj(), 0
    for start in range(0, len(content), _BLOCK):
        block = content[start : start + _BLOCK]
        while block and total <= MAX_MATLAB_BYTES:
            total += len(unpacker.decompress(block, _BLOCK))
            block = unpacker.unconsumed_tail
    return total
