"""Folders that one process at a time works in."""

from __future__ import annotations

import errno
import json
import os
import platform
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from langdepth.errors import LangdepthError
from langdepth.utils.files import is_alive, machine, remove_leftovers
from langdepth.utils.reading import read_bytes

LOCK = ".langdepth-lock"
_NO_LOCK = "is no lock of langdepth but a link or another kind of file; remove it"
_GRACE = 10.0  # seconds that workers of a killed run may take to notice it


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep every other process from working in a folder, which is made if it is missing.

    Raises:
        LangdepthError: When another process holds it, naming that one; and when the folder cannot be written.
    """
    folder = Path(folder)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquire(folder)
    except OSError as error:
        raise LangdepthError(f"{folder}: cannot be written ({error.strerror or error})") from None
    try:
        remove_leftovers(folder, exclusive=True)
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        os.close(lock)
        with suppress(OSError):
            for place in made:
                place.rmdir()  # where nothing came of the work


def _acquire(folder: Path) -> int:
    """Take the lock; returns its descriptor. Raises LangdepthError naming who has it, OSError for an unusable place.

    The workers of a killed run hold its lock until they notice; they get time for that.
    """
    until = time.monotonic() + _GRACE
    while True:
        lock = _try_lock(folder / LOCK)
        if lock is not None:
            break
        holder = _holder(folder)
        dead = holder.get("machine") == machine() and not is_alive(holder["process"])
        if holder and (not dead or time.monotonic() > until):
            raise LangdepthError(
                f"{folder}: is in use by process {holder['process']} on {holder['host']} since {holder['since']}; wait "
                "until that run has ended, or choose another folder"
            )
        if time.monotonic() > until:
            raise LangdepthError(f"{folder}: is in use by another process; wait for it, or choose another folder")
        time.sleep(0.05)
    facts = {
        "process": os.getpid(),
        "host": platform.node(),
        "machine": machine(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    os.truncate(lock, 0)
    os.write(lock, json.dumps(facts).encode())
    return lock


def _try_lock(path: Path) -> int | None:
    """A descriptor of the locked file, or None where somebody else has it. Raises OSError.

    The library filelock leaves its files behind, and older versions empty them, in which the holder names itself.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise LangdepthError(f"{path}: {_NO_LOCK}") from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # what is written there would be lost
        os.close(descriptor)
        raise LangdepthError(f"{path}: {_NO_LOCK}")
    try:
        _lock_descriptor(descriptor)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, PermissionError, FileNotFoundError):  # held; the last: it was released just now
        pass
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):  # a file system that knows no locks
            return descriptor
        os.close(descriptor)
        raise
    os.close(descriptor)  # held, or the file that was locked is no longer the one at the path
    return None


def _lock_descriptor(descriptor: int) -> None:
    """Lock an open file. Raises BlockingIOError or PermissionError where it is locked."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the content, which others may read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(folder: Path) -> dict[str, Any]:
    """What the process that has the lock says of itself; empty where it has not said anything yet."""
    try:
        content = json.loads(read_bytes(folder / LOCK, 4096))
        return {"process": int(content["process"]), **{key: str(content[key]) for key in ("host", "machine", "since")}}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
