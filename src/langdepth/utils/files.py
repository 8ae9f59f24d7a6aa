"""Files that have their final name only when they are complete.

A file is written under a name of its own beside its target (``temporary_path``), flushed to the disk and renamed. What
a killed process leaves behind is recognised by that name and removed by the next one that writes into the folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langdepth.errors import LangdepthError
from langdepth.utils.reading import open_regular

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_NAME = 255  # bytes; what file systems take
_LONGEST_SUFFIX = 16
_ABANDONED_AFTER = 2 * 24 * 3600  # seconds without a change; no writer is idle for so long
_FULL = 1 << 20  # bytes; with less than this a disk counts as full
_OWNED = re.compile(r"\..*\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-\d+-[0-9a-f]+\.partial(\.[^.]*)?", re.DOTALL)
_swept: set[str] = set()  # folders that this process has rid of leftovers


def expanded(path: str | Path) -> Path:
    """The path with a home folder in the place of "~", where it is known; ``Path.expanduser`` raises RuntimeError."""
    return Path(os.path.expanduser(path))


def real_path(path: str | Path) -> Path:
    """The path without links. One that points at itself stays as it is; ``Path.resolve`` raises RuntimeError there."""
    return Path(os.path.realpath(path))


def file_stamp(path: str | Path) -> tuple[str, int, int, int]:
    """What changes when another file is found under a name or its content is written again; a key for caches.

    Raises OSError.
    """
    status = os.stat(path)
    return os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns


def file_identity(path: str | Path) -> tuple[int, int] | None:
    """What names of one file share, links of both kinds among them; None where there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def file_state(path: Path) -> list[int] | None:
    """Size and time of change, None where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


# One file


def temporary_path(path: Path) -> Path:
    """A new name beside ``path`` for a file in the making, which no other process, thread or machine chooses.

    It begins with a dot, which readers of folders skip, and keeps the suffix, by which some writers choose the format.
    """
    suffix = path.suffix if len(path.suffix) <= _LONGEST_SUFFIX else ""
    unique = f"{machine()}-{os.getpid()}-{threading.get_ident()}-{secrets.token_hex(8)}"
    end = f".{unique}.partial{suffix}"
    stem = os.fsdecode(os.fsencode(path.name)[: LONGEST_NAME - 1 - len(os.fsencode(end))])
    return path.with_name(f".{stem}{end}")


@contextmanager
def atomic_path(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success it is renamed to ``path``, on an exception removed.

    An existing ``path`` stays as it was until the new one is complete.

    Args:
        path: The final name; its folder is made if it is missing.
        durable: Wait until the content is on the disk before it is renamed, so that a power failure leaves the old or
            the new file. Not needed where readers verify a checksum.

    Raises:
        LangdepthError: Naming ``path``, when the place cannot be written (no permission, a file where a folder should
            be, disk full).
    """
    with atomic_paths(path, durable=durable) as (temporary,):
        yield temporary


@contextmanager
def atomic_paths(*paths: str | Path, durable: bool = True) -> Iterator[list[Path]]:
    """``atomic_path`` for files that belong together: all are complete before the first is renamed, in their order.

    The last one should be what readers open first.
    """
    parts: dict[Path, Path] = {}
    for path in map(Path, paths):
        if "\0" in str(path):
            raise LangdepthError(f"{path}: cannot be written (no file has a zero byte in its name)")
        parts[path] = temporary_path(path)
    try:
        for path in parts:
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent)
        yield [*parts.values()]
        for path, temporary in parts.items():
            if durable:
                _flush(temporary)
            if path.is_dir() and not path.is_symlink():  # the others would have been renamed
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        for path, temporary in parts.items():
            os.replace(temporary, path)
    except LangdepthError:
        raise
    except OSError as error:
        names = _named(error)
        for path, temporary in parts.items():
            if not names or names & {path, temporary, *path.parents}:
                raise LangdepthError(f"{path}: cannot be written ({_reason(error, path.parent)})") from error
        raise  # something else went wrong inside, for example reading another file
    finally:
        for temporary in parts.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _named(error: OSError) -> set[Path]:
    """The files that an error is about; of a copy both, the one that is read and the one that is written."""
    return {Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if name is not None}


def _reason(error: OSError, folder: Path) -> str:
    """Why something was not written. NumPy and Pillow do not say that a disk is full."""
    if error.strerror:
        return error.strerror
    return os.strerror(errno.ENOSPC) if _is_full(folder) else str(error)


def _is_full(folder: Path) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(folder).free < _FULL
    return False


@contextmanager
def foreign_writer(folder: Path) -> Iterator[None]:
    """What another library raises inside because the disk of ``folder`` is full, as OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # of any kind
        if _is_full(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def make_folder(folder: Path, path: Path | None = None) -> None:
    """Make a folder, so that it is known before the work whether ``path``, which will lie in it, can be written.

    Raises:
        LangdepthError: Naming ``path`` (without it the folder), when the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        reason = _reason(error, folder)
        raise LangdepthError(f"{path or folder}: cannot be written ({reason}); give another place") from None


def require_marked(path: Path, *marks: bytes) -> None:
    """Raise LangdepthError where ``path`` is somebody else's file: not empty, and none of ``marks`` near its start."""
    if os.path.lexists(path) and not is_marked(path, *marks):
        raise LangdepthError(f"{path} exists and was not written by langdepth; give another name, or remove it")


def is_marked(path: Path, *marks: bytes) -> bool:
    """Whether a file is empty, or has one of ``marks`` near its start."""
    with suppress(OSError), open_regular(path) as file:
        start = file.read(1 << 20)
        return not start or any(mark in start for mark in marks)
    return False


def write_json(content: Any, path: Path) -> None:
    """Plain data as indented JSON; NaN is refused."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def second_name(path: Path, name: Path) -> None:
    """Let the complete file ``path`` be found as ``name``, too: a hard link, or a copy where there are none.

    Files are replaced as a whole and never changed, so that the two go their own ways from the next write on.

    Raises:
        LangdepthError: Naming ``name``, when the place cannot be written.
    """
    with atomic_path(name, durable=False) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def write_tensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str], *, durable: bool = True
) -> None:
    """Write a ``.safetensors`` file by ``atomic_path``. Raises LangdepthError.

    The library's own way to write files names its temporary ones so that nobody knows whose they are.
    """
    from safetensors.torch import save

    content = save(dict(tensors), dict(metadata))
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def _flush(path: Path) -> None:
    """Wait until the file is on the disk. Raises OSError where that fails."""
    descriptor = os.open(path, os.O_RDWR)  # Windows flushes only what may be written
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that knows no flushing
            raise
    finally:
        os.close(descriptor)


# What killed processes leave


@lru_cache(maxsize=1)
def machine() -> str:
    """Eight hex digits for the set of processes that share numbers: this boot of this machine, or a container of it."""
    facts = [platform.node()]
    with suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(facts).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def is_alive(process: int) -> bool:
    """Whether a process of this machine with the number exists; where that cannot be known, it does."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        pass
    return True


def remove_leftovers(folder: str | Path, *, exclusive: bool = False) -> None:
    """Remove from a folder the temporary files and folders of processes that have ended.

    Args:
        folder: Where they lie; folders below it are left alone.
        exclusive: Nobody else may write here, so those of other machines are leftovers, too. Otherwise these are only
            when nothing has changed in them for two days.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            owner = _OWNED.fullmatch(entry.name)
            if owner is not None and _is_leftover(entry, owner, exclusive):
                _remove(Path(entry.path))


def _is_leftover(entry: os.DirEntry[str], owner: re.Match[str], exclusive: bool) -> bool:
    here = owner["machine"] == machine()
    if here and not is_alive(int(owner["process"][:12])):
        return True
    try:
        idle = time.time() - entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return False
    return idle > _ABANDONED_AFTER or (exclusive and not here)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _sweep(folder: Path) -> None:
    """Remove leftovers, once per folder and process."""
    place = os.path.abspath(folder)
    if place not in _swept:
        _swept.add(place)
        remove_leftovers(folder)


@contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """A folder for the time of the work; what a killed process left of such folders is removed first.

    Args:
        beside: The folder is made next to this path and its name begins like it; None: in the system's folder for
            temporary files.

    Raises:
        LangdepthError: Naming that place, when something inside cannot be written (no permission, disk full).
    """
    target = Path(tempfile.gettempdir(), "langdepth") if beside is None else beside
    folder = temporary_path(target)
    make_folder(target.parent, target)
    try:
        remove_leftovers(target.parent)
        folder.mkdir(mode=0o700 if beside is None else 0o777)
        yield folder
    except OSError as error:
        names = _named(error)
        inside = not names or any(folder in (name, *name.parents) for name in names)
        if isinstance(error, LangdepthError) or not inside:
            raise  # something else went wrong inside, for example reading another file
        raise LangdepthError(f"{target}: cannot be written ({_reason(error, target.parent)})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# What lies where another file should


def not_the_file_itself(path: str | Path) -> str | None:
    """What a file is that a failed download or checkout left instead of another, or None."""
    try:
        with open_regular(path) as file:
            return other_content(file.read(512))
    except OSError:
        return None


def other_content(head: bytes) -> str | None:
    """The same for the first bytes of a file."""
    if not head:
        return "empty (0 bytes)"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs instead of the file; fetch the file with 'git lfs pull'"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page instead of the file, as downloads give that need a login or a confirmation; fetch it again"
    return None
