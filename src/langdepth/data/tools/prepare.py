"""Archives and container files of the data sets, as trees that can be read: safely, resumably, with a manifest.

While work is going on, ``.langdepth-incomplete`` lies in the folder. ``langdepth-manifest.csv`` gets a line (path,
size, sha256, source) for each file that is complete. A second run skips those that came from the same source and still
have their checksum; ``langdepth data check`` compares with it, too.
"""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import math
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple

from langdepth.data.base import INCOMPLETE, Member, find_rows, layout
from langdepth.errors import LangdepthError, UsageError, text_flaw
from langdepth.utils.files import atomic_path, locked, real_path
from langdepth.utils.reading import file_sha256, read_bytes, visible

MANIFEST = "langdepth-manifest.csv"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 5_000_000
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")  # what computers add to folders, and "._NAME"
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_BLOCK, _SMALL_BLOCK = 1 << 20, 1 << 14
_LONGEST_NAME, _LONGEST_PATH = 255, 3000  # bytes; systems take 255 and, with the folder, 4096
_DEEPEST = 100  # folders above a file
_MAX_HEADER = 1 << 20  # bytes of a header that tells the name or the facts of a member of a tape
_MAX_RATIO = 100  # how much larger than an archive its content may be
_SMALL = 1_000_000_000  # bytes that it may have in any case
_MAX_DICTIONARY = 256_000_000  # bytes that unpacking LZMA may keep in memory; "xz -9" wants 64 MiB
_TOO_LARGE_DICTIONARY = f"wants a dictionary of more than {_MAX_DICTIONARY // 10**6} MB to be unpacked; refused"
_MAX_MANIFEST = 1 << 30  # of five million files
_SPARE = 64_000_000  # bytes that stay free on the disk
# How the manifest is opened: any name that a file can have is kept.
_TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}


class Written(NamedTuple):
    """A line of the manifest. source: name, size and time of change of what the file was written from."""

    size: int
    sha256: str
    source: str


Source = tuple[Path, list[Member]]  # an archive or a container file, and what comes from it
Reader = Callable[[Member], Iterable[bytes]]


class Extraction:
    """``total`` files being written below ``out``; ``progress(done, total)`` is called after each."""

    def __init__(self, out: Path, total: int, progress: Callable[[int, int], Any]) -> None:
        self.out = out
        self.total = total
        self.progress = progress
        self.manifest = read_manifest(out)
        if (out / MANIFEST).exists():
            self._rewrite_manifest()  # without the line that a stopped run left half
        self.done = 0
        self._source = ""
        self._written: set[str] = set()

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

    def write(self, member: Member, read: Reader) -> None:
        """Write ``member`` unless it is there as an earlier run wrote it from the same source.

        Raises LangdepthError for a path that leads out of the folder, another size than stated, and a place that
        cannot be written; nothing half-written stays.
        """
        target = self._target(member.path)
        if member.anew or not self._is_whole(target, self.manifest.get(member.path)):
            self._write(member, target, read(member))
        self._written.add(member.path)
        self.done += 1
        self.progress(self.done, self.total)

    def _target(self, name: str) -> Path:
        target = self.out / name
        if not real_path(target).is_relative_to(real_path(self.out)):
            raise LangdepthError(f"{name}: lies outside {self.out} through a link")
        return target

    def _is_whole(self, target: Path, known: Written | None) -> bool:
        return (
            known is not None
            and known.source == self._source
            and target.is_file()
            and target.stat().st_size == known.size
            and file_sha256(target) == known.sha256
        )

    def _write(self, member: Member, target: Path, content: Iterable[bytes]) -> None:
        digest, count = hashlib.sha256(), 0
        with atomic_path(target, durable=False) as temporary:  # the manifest has its checksum
            with temporary.open("wb") as file:
                for block in content:
                    file.write(block)
                    digest.update(block)
                    count += len(block)
            if member.exact and count != member.size:
                raise LangdepthError(f"{member.path}: has {count} bytes instead of {member.size}")
        self.manifest[member.path] = Written(count, digest.hexdigest(), self._source)
        with _writing(self.out / MANIFEST), (self.out / MANIFEST).open("a", **_TEXT) as file:
            csv.writer(file).writerow((member.path, *self.manifest[member.path]))

    def _rewrite_manifest(self) -> None:
        with atomic_path(self.out / MANIFEST) as path, path.open("w", **_TEXT) as file:
            csv.writer(file).writerows((name, *entry) for name, entry in self.manifest.items())


def read_manifest(root: Path) -> dict[str, Written]:
    """Path -> what was written there; empty without a manifest. A line that a stopped run left half is passed over."""
    try:
        lines = io.TextIOWrapper(io.BytesIO(read_bytes(root / MANIFEST, _MAX_MANIFEST)), **_TEXT)
        rows = list(csv.reader(line for line in lines if "\0" not in line))  # zeros: what a power failure leaves
    except FileNotFoundError:
        return {}
    except (OSError, csv.Error) as error:
        raise LangdepthError(f"{root / MANIFEST}: not readable as a manifest ({text_flaw(error)})") from None
    whole = (row for row in rows if len(row) == 4 and row[1].isdecimal() and len(row[1]) < 20 and len(row[2]) == 64)
    return {path: Written(int(size), digest, source) for path, size, digest, source in whole}


def prepare(
    name: str, source: str | Path, out: str | Path, progress: Callable[[int, int], Any] = lambda done, total: None
) -> Extraction:
    """Unpack or convert what the data set ``name`` is published as into ``out``.

    ``source``: an archive, a file that the data set's module can export (``EXPORTS``: name -> what comes from it), or a
    folder with such files. What an earlier run has completed is kept. Raises UsageError for a source that is neither,
    LangdepthError for an archive that is damaged or has members that nobody should unpack, for sources that contradict
    each other, and when the disk is full.
    """
    source, out = Path(source), Path(out)
    exports: dict[str, Callable[[Path], list[Member]]] = getattr(layout(name), "EXPORTS", {})
    if not source.exists():
        raise LangdepthError(f"{source}: no such file or folder")
    candidates = visible(source, "*") if source.is_dir() else [source]
    files = [path for path in candidates if _is_archive(path) or path.name in exports]
    if not files:
        kinds = ", ".join((*exports, *(f"*{suffix}" for suffix in ARCHIVES)))
        raise UsageError(f"{source}: is nothing that {name} is prepared from; give one of {kinds}, or a folder of them")
    given = [(path, _checked_members(path) if _is_archive(path) else exports[path.name](path)) for path in files]
    sources = _each_file_once(given)
    members = [member for _, members in sources for member in members]
    with locked(out), _room(out, members):
        work = Extraction(out, len(members), progress)
        for path, members in sources:
            with work.reading(path), _opened(path) as read:
                for member in members:
                    work.write(member, read)
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
        needed = sum(member.size for member in members if not member.is_in(out))
        free = shutil.disk_usage(out).free
        if needed and needed + _SPARE > free:
            raise LangdepthError(
                f"{out}: {math.ceil(needed / 1e6):,} MB are to be written and {_SPARE // 10**6} MB to stay free, but "
                f"only {free // 10**6:,} MB are free"
            )
        marker = out / INCOMPLETE
        if marker.exists():
            for path in out.rglob(".*.partial*"):  # what a killed run was writing; nobody else may
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


def _each_file_once(sources: list[Source]) -> list[Source]:
    """``sources`` without what an earlier one has, too. Raises LangdepthError where they contradict each other."""
    first: dict[str, tuple[Path, Member]] = {}
    kept: list[Source] = []
    again: dict[tuple[Path, Path], list[tuple[Member, Member]]] = defaultdict(list)
    for path, members in sources:
        kept.append((path, []))
        for member in members:
            earlier, same = first.setdefault(member.path, (path, member))
            if earlier == path:
                kept[-1][1].append(member)
            else:
                again[earlier, path].append((same, member))
    for (earlier, path), pairs in again.items():
        with _opened(earlier) as read_earlier, _opened(path) as read:
            for same, member in pairs:
                sized = same.exact and same.size == member.size
                if not (sized and _digest(read_earlier(same)) == _digest(read(member))):
                    raise LangdepthError(
                        f"{path}: {member.path!r} is in {earlier}, too, and differs; prepare them into two folders"
                    )
    folders: set[str] = set()
    for name in first:
        folder = name.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    for name, (path, _) in first.items():
        if name in folders:
            raise LangdepthError(f"{path}: member {name!r} is a file, and a folder of other members")
    return kept


def _digest(content: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for block in content:
        digest.update(block)
    return digest.digest()


# Archives


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
        flaw = re.search(_OWN_WORDS, str(error))  # tarfile quotes them among its own
        reason = f"is damaged ({flaw[0]})" if flaw else "is damaged, truncated or of another kind; fetch it again"
        raise LangdepthError(f"{archive}: {what} {reason}") from None


def _content(archive: Path, opened: Callable[[Any], IO[bytes]], member: Member) -> Iterator[bytes]:
    """A member's content in blocks. Raises LangdepthError for a damaged one."""
    with _damage(archive, f"member {member.path}"), opened(member.info) as file:
        while block := file.read(_BLOCK):
            yield block


@contextmanager
def _opened(path: Path) -> Iterator[Reader]:
    """What reads the members of a source."""
    if not _is_archive(path):
        yield lambda member: [member.info()]
    elif _is_zip(path):
        with zipfile.ZipFile(path) as pack:
            yield partial(_content, path, pack.open)
    else:
        with tarfile.open(path) as tape:
            yield partial(_content, path, tape.extractfile)  # type: ignore[arg-type]  # None for what is no file


def _require_modest_memory(path: Path) -> None:
    """Raise LangdepthError where any part of an archive compressed by LZMA wants more than ``_MAX_DICTIONARY``."""
    decoder, unpacked = lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY), 0
    with path.open("rb") as file:
        block = file.read(_SMALL_BLOCK)
        while block or not decoder.needs_input:
            try:
                unpacked += len(decoder.decompress(block, _BLOCK))
            except lzma.LZMAError as error:
                if "Memory usage" in str(error):
                    raise LangdepthError(f"{path}: {_TOO_LARGE_DICTIONARY}") from None
                return  # not LZMA, or damaged, which is found where it is unpacked
            _require_modest_size(path, unpacked)
            if decoder.eof:  # another part may follow
                block = decoder.unused_data or file.read(_SMALL_BLOCK)
                decoder = lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY)
            else:
                block = file.read(_SMALL_BLOCK) if decoder.needs_input else b""


def _require_modest_size(path: Path, unpacked: int) -> None:
    if unpacked > max(_SMALL, _MAX_RATIO * path.stat().st_size):
        raise LangdepthError(f"{path}: unpacks to more than {_MAX_RATIO} times its size; refused")


def _checked_members(path: Path) -> list[Member]:
    """All files of an archive; nothing is written before all are found harmless. Raises LangdepthError."""
    members: dict[str, Member] = {}
    unpacked = 0
    with _damage(path):
        for name, size, kind, info in _zip_members(path) if _is_zip(path) else _tar_members(path):
            target = _inside(path, name)
            if kind == "folder" or any(part in LITTER or part.startswith("._") for part in target.split("/")):
                continue
            if kind != "file":
                raise LangdepthError(f"{path}: member {name!r} is a {kind}; only plain files are unpacked")
            if target in members:
                raise LangdepthError(f"{path}: member {name!r} is there twice")
            flaw = _flaw_of_name(target)
            if flaw is not None:
                raise LangdepthError(f"{path}: member {name!r} {flaw}")
            members[target] = Member(target, size, info)
            if len(members) > MAX_MEMBERS:
                raise LangdepthError(f"{path}: has more than {MAX_MEMBERS} members")
            unpacked += size
            _require_modest_size(path, unpacked)
    return list(members.values())


def _inside(archive: Path, name: str) -> str:
    """The member's path below the folder. Raises LangdepthError where it leads out of it."""
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or PureWindowsPath(name).drive or ".." in plain.parts or "\0" in name:
        raise LangdepthError(f"{archive}: member {name!r} would be written outside the folder")
    return str(plain)


def _flaw_of_name(path: str) -> str | None:
    """Why no file can be written at ``path``, below the folder, or None."""
    parts = path.split("/")
    if path == ".":
        return "is a file without a name"
    if parts[0] in (INCOMPLETE, MANIFEST):
        return "has a name that is not free"
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    if max(lengths) > _LONGEST_NAME or len(path.encode()) > _LONGEST_PATH:
        return "has a name that is too long"
    if len(parts) > _DEEPEST:
        return f"lies {len(parts) - 1} folders deep"
    return None


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
            elif info.compress_type == zipfile.ZIP_LZMA and _dictionary(path, info) > _MAX_DICTIONARY:
                raise LangdepthError(f"{path}: {_TOO_LARGE_DICTIONARY}")
            yield info.filename, info.file_size, kind, info


def _dictionary(path: Path, info: zipfile.ZipInfo) -> int:
    """Bytes of the dictionary that a member compressed by LZMA wants, from the header before its content."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = struct.unpack("<HH", file.read(4))  # of name and further facts
        file.seek(sum(lengths) + 5, os.SEEK_CUR)  # version, length and first byte of the coder's settings
        return int.from_bytes(file.read(4), "little")


_LONG_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


_OWN_WORDS = r"neither a member nor the archive's end is where one should be|a member's header of [\d,]+ MB"


class _Header(tarfile.TarInfo):
    """The header of a member. tarfile takes whatever is none for the end of the archive; here that is all zeros."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
            if header.type in _LONG_HEADERS and header.size > _MAX_HEADER:  # which tarfile reads whole
                raise tarfile.ReadError(f"a member's header of {header.size / 1e6:,.0f} MB")
            return header
        except tarfile.HeaderError:
            if len(buf) < tarfile.BLOCKSIZE or any(buf):
                raise tarfile.ReadError("neither a member nor the archive's end is where one should be") from None
            raise


def _tar_members(path: Path) -> Iterator[tuple[str, int, str, Any]]:
    _require_modest_memory(path)
    with tarfile.open(path, tarinfo=_Header) as archive:
        for info in archive:
            kind = "link" if info.issym() or info.islnk() else "device"
            yield info.name, info.size, "folder" if info.isdir() else "file" if info.isfile() else kind, info
        while archive.fileobj is not None and archive.fileobj.read(_BLOCK):  # to its end, where the checksum is
            _require_modest_size(path, archive.fileobj.tell())
