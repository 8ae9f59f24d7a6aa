"""Arrays from ``.npy`` and ``.npz`` files that somebody else wrote: shape and size are known before memory is taken."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from langdepth.utils.reading import open_regular


class ArrayError(ValueError):
    """What is wrong with a file of arrays, without its name."""


class UnreadArrayError(ArrayError):
    """What a file of arrays holds that is not read, though it need not be damaged."""


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
        raise UnreadArrayError("it holds Python objects, which are not opened")
    if dtype.kind in "cmM":
        raise UnreadArrayError(f"it holds values of type {dtype}, which are not read")
    check(shape, dtype)
    if math.prod(shape) * dtype.itemsize > stored_bytes:
        raise ArrayError("it ends before its last number")
    stream.seek(start)
    try:
        content: npt.NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    except ValueError:  # the header takes a part of those bytes
        raise ArrayError("it ends before its last number") from None
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
        if len(members) < len(archive.infolist()):
            raise UnreadArrayError("it holds two arrays of one name")
        name = choose(list(members))
        if name not in members:
            raise ArrayError(f"it has no array '{name}'")
        info = members[name]
        with archive.open(info) as member:
            return read_npy(member, check, info.file_size)
