"""Arrays from HDF5 files that somebody else wrote: their own numbers only, and never more than fits into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from langdepth.errors import ImageError
from langdepth.utils.files import file_stamp
from langdepth.utils.images import MAX_PIXELS, decoding
from langdepth.utils.reading import require_regular

MAX_CHUNK_BYTES = 256_000_000


def read_hdf5(path: Path, names: Sequence[str], item: int | None = None) -> npt.NDArray[Any]:
    """The first of the arrays ``names`` that an HDF5 file has, or the ``item`` of it. Raises ImageError."""
    with decoding(str(path)):
        require_regular(path)
        file = _open_hdf5(path, file_stamp(path), os.getpid())
        name = next((name for name in names if name in file), None)
        if name is None:
            raise ImageError(f"has none of the arrays {', '.join(names)}; found {', '.join(sorted(file)[:8])}")
        array, place = own_dataset(file, name), () if item is None else (item,)
        if np.prod(array.shape[len(place) :], dtype=np.int64) > 3 * MAX_PIXELS:  # known before anything is read
            raise ImageError(f"'{name}' of shape {array.shape} is larger than an image may be")
        content: npt.NDArray[Any] = array[place]
        return content


def own_dataset(file: Any, name: str, *, references: bool = False) -> Any:
    """An array of an HDF5 file that lies in that file alone, in pieces that fit into memory. Raises ImageError.

    references: it holds references to others, not numbers.
    """
    import h5py

    link = file.get(name, getlink=True)
    array = None if isinstance(link, h5py.ExternalLink) else file[name]
    if not isinstance(array, h5py.Dataset):
        raise ImageError(f"'{name}' is no array of this file")
    if array.file.filename != file.filename or array.external or array.is_virtual:
        raise ImageError(f"'{name}' lies in another file, which is not opened")
    if references != array.dtype.hasobject or not (references or array.dtype.kind in "biuf"):
        raise ImageError(f"'{name}' holds {'no references' if references else f'{array.dtype}, no real numbers'}")
    chunk = int(np.prod(array.chunks or (1,), dtype=np.float64)) * array.dtype.itemsize
    if chunk > MAX_CHUNK_BYTES:  # a reader unpacks whole chunks
        raise ImageError(f"'{name}' is stored in pieces of {chunk / 1e6:,.0f} MB, more than {MAX_CHUNK_BYTES // 10**6}")
    return array


@lru_cache(maxsize=4)
def _open_hdf5(path: Path, stamp: object, process: int) -> Any:
    """An HDF5 file, kept open; each process has its own, since a forked handle would share its place in the file."""
    import h5py

    return h5py.File(path, "r")
