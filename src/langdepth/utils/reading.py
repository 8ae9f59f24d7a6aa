"""Opening small files that somebody else wrote: regular files only, and never more bytes than such a file has.

A pipe would block for ever, and a device or a sparse file would fill the memory. All of these raise OSError with a
reason in ``strerror``, as the file system does, so that callers need one handler.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

MAX_TEXT_BYTES = 1 << 28  # of an index with a million rows
MAX_LINE = 1_000_000  # characters of a line of CSV


def require_regular(path: str | Path) -> None:
    """Raise OSError for a folder, a pipe or a device, and for a file that is missing."""
    _require_possible(path)
    _require_regular(os.stat(path).st_mode, path)


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a regular file for reading. Raises OSError for everything else, without waiting."""
    _require_possible(path)
    return open(path, "rb", opener=_open_at_once)


def _require_possible(path: str | Path) -> None:
    if "\0" in str(path):  # for which Python raises ValueError
        raise FileNotFoundError(errno.ENOENT, "no file has a zero byte in its name", str(path))


def _open_at_once(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(mode: int, path: str | Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))


def read_bytes(path: str | Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The content of a regular file of at most ``limit`` bytes. Raises OSError."""
    with open_regular(path) as file:
        stored = os.fstat(file.fileno()).st_size
        if stored <= limit:
            content = file.read(min(limit, max(stored, 1 << 20)) + 1)  # as much memory is taken at once
            if len(content) <= limit:
                return content
    size = f"{limit / 1e6:.0f} MB" if limit >= 10**6 else f"{limit} bytes"
    raise OSError(errno.EFBIG, f"has more than {size}, far more than such a file", str(path))


def read_text(path: str | Path, limit: int = MAX_TEXT_BYTES) -> str:
    """The UTF-8 text, with or without a byte order mark, of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: The file cannot be read, is not regular or is too large.
        UnicodeDecodeError: It is not UTF-8.
    """
    return read_bytes(path, limit).decode("utf-8-sig")


def read_csv(path: str | Path, limit: int = MAX_TEXT_BYTES) -> Rows:
    """The rows of a CSV file of at most ``limit`` bytes. Raises OSError as ``read_bytes`` does.

    While its header and rows are read, the reader raises UnicodeDecodeError for what is not UTF-8 and csv.Error for
    what is no CSV, two columns of one name, a row with something in a cell beyond the header's (empty ones, which
    spreadsheets leave, are none), and a line of more than ``MAX_LINE`` characters, before it takes memory for the rest.
    """
    return Rows(_lines(read_bytes(path, limit)), strict=True)


class Rows(csv.DictReader):  # DictReader[str] works from Python 3.12 on
    """Rows of which no cell is dropped or hides another one."""

    @property
    def fieldnames(self) -> Sequence[str] | None:  # type: ignore[override]
        names = super().fieldnames
        twice = next((name for name, count in Counter(names or ()).items() if count > 1 and name), None)
        if twice is not None:
            raise csv.Error(f"two columns are called {twice}")
        return names

    def __next__(self) -> dict[str, str]:
        row: dict[Any, Any] = super().__next__()
        beyond = row.pop(None, [])
        if any(beyond):
            columns = len(self.fieldnames or ())
            cells = f"{columns + len(beyond)} cells, its header {columns}"
            raise csv.Error(f"line {self.line_num} has {cells}; quote texts with commas")
        return row


def _lines(content: bytes) -> Iterator[str]:
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
    while line := text.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise csv.Error(f"a line of more than {MAX_LINE} characters")
        yield line


def visible(folder: Path, pattern: str) -> list[Path]:
    """What below ``folder`` matches ``pattern``, in order, without files and folders whose name begins with a dot.

    Those are files that are still being written (``utils.files.atomic_path``) and what other computers add ("._NAME").
    """
    above = len(folder.parts)
    return sorted(path for path in folder.glob(pattern) if not any(part.startswith(".") for part in path.parts[above:]))


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file's content in hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
