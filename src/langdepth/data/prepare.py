"""Archives and container files of the data sets, as trees that can be read: safely, resumably, with a manifest.

While work is going on, ``.langdepth-incomplete`` lies in the folder. ``langdepth-manifest.csv`` gets a line (path,
size, sha256, source) for each file that is complete. A second run skips those that came from the same source and still
have their checksum; ``langdepth data check`` compares with it, too.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple

from langdepth.data.base import INCOMPLETE, find_rows, layout
from langdepth.errors import LangdepthError, UsageError
from langdepth.io import atomic_path, file_sha256, visible

MANIFEST = "langdepth-manifest.csv"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 5_000_000
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")  # what computers add to folders, and "._NAME"
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_BLOCK = 1 << 20
_SPARE = 1 << 26  # bytes that stay free on the disk
# How the manifest is opened: any name that a file can have is kept.
_TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}


class Written(NamedTuple):
    """A line of the manifest. source: name, size and time of change of what the file was written from."""

    size: int
    sha256: str
    source: str


class Extraction:
    """Files being written below ``out``; ``progress(done, total)`` is called after each."""

    def __init__(self, out: Path, progress: Callable[[int, int], Any]) -> None:
        self.out = out
        self.progress = progress
        self.manifest = read_manifest(out)
        if (out / MANIFEST).exists():
            self._rewrite_manifest()  # without the line that a stopped run left half
        self.total = self.done = 0
        self._source = ""
        self._written: set[str] = set()

    def expect(self, count: int) -> None:
        """``count`` more files are to come."""
        self.total += count

    @contextmanager
    def reading(self, source: Path) -> Iterator[None]:
        """Inside, files are written from ``source``; those that it gave earlier and gives no more are removed."""
        status = source.stat()
        self._source = f"{source.name} {status.st_size} {status.st_mtime_ns}"
        self._written = set()
        yield
        given = {path for path, entry in self.manifest.items() if entry.source == self._source}
        for path in given - self._written:
            self._target(path).unlink(missing_ok=True)
            del self.manifest[path]
        if given - self._written:
            self._rewrite_manifest()

    def write(
        self, path: Path, content: Callable[[], Iterable[bytes]], size: int | None = None, anew: bool = False
    ) -> None:
        """Write ``path``, relative to the folder, unless it is there as an earlier run wrote it from the same source.

        ``size``: how many bytes it must have. ``anew``: write it in any case. Raises LangdepthError for a path that
        leads out of the folder, another size, and a place that cannot be written; nothing half-written stays.
        """
        name = path.as_posix()
        target = self._target(name)
        if anew or not self._is_whole(target, self.manifest.get(name)):
            self._write(name, target, content(), size)
        self._written.add(name)
        self.done += 1
        self.progress(self.done, self.total)

    def _target(self, name: str) -> Path:
        target = self.out / name
        if not target.resolve().is_relative_to(self.out.resolve()):
            raise LangdepthError(f"{name}: lies outside {self.out} through a link")
        return target

    def _is_whole(self, target: Path, known: Written | None) -> bool:
        return (
            known is not None
            and known.source == self._source
            and _has_size(target, known.size)
            and file_sha256(target) == known.sha256
        )

    def _write(self, name: str, target: Path, content: Iterable[bytes], size: int | None) -> None:
        digest, count = hashlib.sha256(), 0
        with atomic_path(target) as temporary:
            with temporary.open("wb") as file:
                for block in content:
                    file.write(block)
                    digest.update(block)
                    count += len(block)
            if size is not None and count != size:
                raise LangdepthError(f"{name}: has {count} bytes instead of {size}")
        self.manifest[name] = Written(count, digest.hexdigest(), self._source)
        with _writing(self.out / MANIFEST), (self.out / MANIFEST).open("a", **_TEXT) as file:
            csv.writer(file).writerow((name, *self.manifest[name]))

    def _rewrite_manifest(self) -> None:
        with atomic_path(self.out / MANIFEST) as path, path.open("w", **_TEXT) as file:
            csv.writer(file).writerows((name, *entry) for name, entry in self.manifest.items())


def read_manifest(root: Path) -> dict[str, Written]:
    """Path -> what was written there; empty without a manifest. A line that a stopped run left half is passed over."""
    try:
        with (root / MANIFEST).open(**_TEXT) as file:
            rows = list(csv.reader(line for line in file if "\0" not in line))  # zeros: what a power failure leaves
    except FileNotFoundError:
        return {}
    whole = (row for row in rows if len(row) == 4 and row[1].isdecimal() and len(row[2]) == 64)
    return {path: Written(int(size), digest, source) for path, size, digest, source in whole}


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
    candidates = visible(source, "*") if source.is_dir() else [source]
    files = [path for path in candidates if _is_archive(path) or path.name in exported]
    if not files:
        kinds = ", ".join((*exported, *(f"*{suffix}" for suffix in ARCHIVES)))
        raise UsageError(f"{source}: is nothing that {name} is prepared from; give one of {kinds}, or a folder of them")
    archives = [(path, _checked_members(path)) for path in files if _is_archive(path)]
    with _room(out, [member for _, members in archives for member in members]):
        work = Extraction(out, progress)
        work.expect(sum(len(members) for _, members in archives))
        for path, members in archives:
            with work.reading(path), _opened(path) as archive:
                for member in members:
                    work.write(Path(member.path), partial(_content, path, archive, member), member.size)
        for path in files:
            if export is not None and not _is_archive(path):
                with work.reading(path):
                    export(path, work)
    return work


def prepared_root(name: str, out: Path) -> Path:
    """Where the data set ``name`` can be read in ``out``: there, or where folders alone in their folder lead to it."""
    place = out
    while not _has_pairs(name, place):
        folders = [path for path in visible(place, "*") if path.is_dir()]
        if len(folders) != 1:
            return out
        place = folders[0]
    return place


def _has_pairs(name: str, root: Path) -> bool:
    try:
        return bool(find_rows(name, root, problems=[]))
    except LangdepthError:
        return False


@contextmanager
def _room(out: Path, members: list[Member]) -> Iterator[None]:
    """The folder ``out``, marked as incomplete until the work inside has ended well.

    Raises LangdepthError where it cannot be written, or the disk cannot take what is not there of ``members``.
    """
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        needed = sum(member.size for member in members if not _has_size(out / member.path, member.size))
        free = shutil.disk_usage(out).free - _SPARE
        if needed > free:
            raise LangdepthError(
                f"{out}: {needed / 1e9:.2f} GB are to be written, {max(0, free) / 1e9:.2f} GB are free"
            )
        marker = out / INCOMPLETE
        if marker.exists():
            for path in out.rglob(".*.partial*"):  # what a killed run was writing
                path.unlink()
        marker.touch()
    yield
    marker.unlink(missing_ok=True)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Why a place cannot be written, as one line."""
    try:
        yield
    except OSError as error:
        raise LangdepthError(f"{error.filename or place}: cannot be written ({error.strerror})") from None


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


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


def _content(archive: Path, opened: Callable[[Any], IO[bytes]], member: Member) -> Iterator[bytes]:
    """A member's content in blocks. Raises LangdepthError for a damaged one."""
    with _damage(archive, f"member {member.path}"), opened(member.info) as file:
        while block := file.read(_BLOCK):
            yield block


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
            if kind == "folder" or any(part in LITTER or part.startswith("._") for part in target.split("/")):
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
            kind = "folder" if info.filename.endswith(("/", "\\")) else "file"
            if stat.S_ISLNK(mode):
                kind = "link"
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "device"
            elif info.flag_bits & 1:
                kind = "file with a password"
            elif info.compress_type not in _ZIP_METHODS:
                kind = f"file compressed by method {info.compress_type}, which Python cannot read"
            yield info.filename, info.file_size, kind, info


def _tar_members(path: Path) -> Iterator[tuple[str, int, str, Any]]:
    with tarfile.open(path) as archive:
        for info in archive:
            kind = "link" if info.issym() or info.islnk() else "device"
            yield info.name, info.size, "folder" if info.isdir() else "file" if info.isfile() else kind, info
        while archive.fileobj is not None and archive.fileobj.read(_BLOCK):
            pass  # to its end, where a compressed file's checksum is
