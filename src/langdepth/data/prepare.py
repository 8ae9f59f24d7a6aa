"""Archives and container files of the data sets, as trees that can be read: safely, resumably, with a manifest.

While work is going on, ``.langdepth-incomplete`` lies in the folder. ``langdepth-manifest.csv`` gets a line (path,
size, sha256) for each file that is complete; a second run skips those, and ``langdepth data check`` compares with it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple

from langdepth.data.base import layout
from langdepth.errors import LangdepthError, UsageError
from langdepth.io import atomic_path

MANIFEST = "langdepth-manifest.csv"
INCOMPLETE = ".langdepth-incomplete"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 5_000_000
_BLOCK = 1 << 20
_SPARE = 1 << 26  # bytes that stay free on the disk


class Written(NamedTuple):
    """A line of the manifest."""

    size: int
    sha256: str


class Extraction:
    """Files being written below ``out``; ``progress(done, total)`` is called after each."""

    def __init__(self, out: Path, progress: Callable[[int, int], Any]) -> None:
        self.out = out
        self.progress = progress
        self.manifest = read_manifest(out)
        if self.manifest:  # anew, without the line that a stopped run left half
            with atomic_path(out / MANIFEST) as path, path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows((name, *entry) for name, entry in self.manifest.items())
        self.total = self.done = 0

    def expect(self, count: int) -> None:
        """``count`` more files are to come."""
        self.total += count

    def write(self, path: Path, content: Callable[[], bytes | IO[bytes]], size: int | None = None) -> None:
        """Write ``path``, relative to the folder, unless an earlier run did.

        ``size``: how many bytes it must have. Raises LangdepthError for a path that leads out of the folder, another
        size, and a place that cannot be written; nothing half-written stays.
        """
        target = self.out / path
        if not target.resolve().is_relative_to(self.out.resolve()):
            raise LangdepthError(f"{path}: lies outside {self.out} through a link")
        known = self.manifest.get(path.as_posix())
        there = target.stat().st_size if target.is_file() else None
        if known is None or there != known.size or size not in (None, known.size):
            self._write(path, target, content, size)
        self.done += 1
        self.progress(self.done, self.total)

    def _write(self, path: Path, target: Path, content: Callable[[], bytes | IO[bytes]], size: int | None) -> None:
        given = content()
        digest, count = hashlib.sha256(), 0
        with io.BytesIO(given) if isinstance(given, bytes) else given as source, atomic_path(target) as temporary:
            with temporary.open("wb") as file:
                while block := source.read(_BLOCK):
                    file.write(block)
                    digest.update(block)
                    count += len(block)
            if size is not None and count != size:
                raise LangdepthError(f"{path}: has {count} bytes instead of {size}")
        self.manifest[path.as_posix()] = Written(count, digest.hexdigest())
        with (self.out / MANIFEST).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow((path.as_posix(), *self.manifest[path.as_posix()]))


def read_manifest(root: Path) -> dict[str, Written]:
    """Path -> what was written there; empty without a manifest. A line that a stopped run left half is passed over."""
    try:
        lines = (root / MANIFEST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    rows = (row for row in csv.reader(lines) if len(row) == 3 and row[1].isdecimal() and len(row[2]) == 64)
    return {path: Written(int(size), digest) for path, size, digest in rows}


def prepare(
    name: str, source: str | Path, out: str | Path, progress: Callable[[int, int], Any] = lambda done, total: None
) -> Extraction:
    """Unpack or convert what the data set ``name`` is published as into ``out``.

    ``source``: an archive, a file that the data set's module can export, or a folder with such files. What an earlier
    run has completed is kept. Raises UsageError for a source that is neither, LangdepthError for an archive that is
    damaged or has members that lead out of it, and when the disk is full.
    """
    source, out = Path(source), Path(out)
    module = layout(name)
    export: Callable[[Path, Extraction], None] | None = getattr(module, "export", None)
    exported: tuple[str, ...] = getattr(module, "EXPORTED", ())
    if not source.exists():
        raise LangdepthError(f"{source}: no such file or folder")
    candidates = sorted(source.iterdir()) if source.is_dir() else [source]
    files = [path for path in candidates if _is_archive(path) or path.name in exported]
    if not files:
        kinds = ", ".join((*exported, *(f"*{suffix}" for suffix in ARCHIVES)))
        raise UsageError(f"{source}: is nothing that {name} is prepared from; give one of {kinds}, or a folder of them")
    archives = [(path, _checked_members(path)) for path in files if _is_archive(path)]
    with _room(out, sum(member.size for _, members in archives for member in members)):
        work = Extraction(out, progress)
        work.expect(sum(len(members) for _, members in archives))
        for path, members in archives:
            with _opened(path) as archive:
                for member in members:
                    with _damage(path, f"member {member.path}"):
                        work.write(Path(member.path), partial(archive, member.info), member.size)
        for path in files:
            if export is not None and not _is_archive(path):
                export(path, work)
    return work


@contextmanager
def _room(out: Path, needed: int) -> Iterator[None]:
    """The folder ``out``, marked as incomplete until the work inside has ended well."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out).free - _SPARE
        if needed > free:
            raise LangdepthError(
                f"{out}: {needed / 1e9:.2f} GB are to be written, {max(0, free) / 1e9:.2f} GB are free"
            )
        marker = out / INCOMPLETE
        marker.touch()
    except OSError as error:
        raise LangdepthError(f"{out}: cannot be written ({error.strerror})") from None
    yield
    marker.unlink(missing_ok=True)


# Archives


class Member(NamedTuple):
    """A file in an archive: where it goes, bytes, and what its archive opens it by."""

    path: str
    size: int
    info: Any


def _is_zip(path: Path) -> bool:
    return path.name.lower().endswith(".zip")


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(ARCHIVES)


@contextmanager
def _damage(archive: Path, what: str = "the archive") -> Iterator[None]:
    """Whatever an unpacker raises for damage, as one line."""
    try:
        yield
    except LangdepthError:
        raise
    except Exception as error:  # BadZipFile, ReadError, zlib.error, LZMAError, EOFError, NotImplementedError ...
        raise LangdepthError(
            f"{archive}: {what} is damaged ({' '.join(str(error).split()) or type(error).__name__})"
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[Callable[[Any], IO[bytes]]]:
    """A function from a member's ``info`` to its content."""
    if _is_zip(path):
        with zipfile.ZipFile(path) as pack:
            yield pack.open
    else:
        with tarfile.open(path) as tape:
            yield tape.extractfile  # type: ignore[misc]  # None for what is no file


def _checked_members(path: Path) -> list[Member]:
    """All files of an archive; nothing is written before all are found harmless. Raises LangdepthError."""
    members: dict[str, Member] = {}
    with _damage(path):
        for name, size, kind, info in _zip_members(path) if _is_zip(path) else _tar_members(path):
            target = _inside(path, name)
            if kind == "folder":
                continue
            if kind != "file":
                raise LangdepthError(f"{path}: member '{name}' is a {kind}; only plain files are unpacked")
            if target in members:
                raise LangdepthError(f"{path}: member '{name}' is there twice")
            members[target] = Member(target, size, info)
            if len(members) > MAX_MEMBERS:
                raise LangdepthError(f"{path}: has more than {MAX_MEMBERS} members")
    return list(members.values())


def _inside(archive: Path, name: str) -> str:
    """The member's path below the folder. Raises LangdepthError where it leads out of it."""
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or PureWindowsPath(name).drive or ".." in plain.parts or "\0" in name:
        raise LangdepthError(f"{archive}: member '{name}' would be written outside the folder")
    if str(plain) in (".", INCOMPLETE, MANIFEST) and not name.endswith("/") and name != ".":
        raise LangdepthError(f"{archive}: member '{name}' has a name that is not free")
    return str(plain)


def _zip_members(path: Path) -> Iterator[tuple[str, int, str, Any]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            kind = "folder" if info.is_dir() else "file"
            if stat.S_ISLNK(mode):
                kind = "link"
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "device"
            elif info.flag_bits & 1:
                kind = "file with a password"
            yield info.filename, info.file_size, kind, info


def _tar_members(path: Path) -> Iterator[tuple[str, int, str, Any]]:
    with tarfile.open(path) as archive:
        for info in archive:
            kind = "link" if info.issym() or info.islnk() else "device"
            yield info.name, info.size, "folder" if info.isdir() else "file" if info.isfile() else kind, info
        while archive.fileobj is not None and archive.fileobj.read(_BLOCK):
            pass  # to its end, where a compressed file's checksum is
