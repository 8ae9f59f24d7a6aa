"""Archives of data sets: what members they have, once all are found harmless, and their content in blocks.

An archive is refused as a whole, before anything is written, for one member that leads out of the folder, is no plain
file or has a name that no file can have, and for content far larger than itself. The filters of tarfile are no help
here: they change such members or pass over them, and there are none for zip.
"""

from __future__ import annotations

import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from langdepth.data.base import INCOMPLETE, MANIFEST, Member
from langdepth.errors import LangdepthError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 5_000_000
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")  # what computers add to folders, and "._NAME"
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_BLOCK, _SMALL_BLOCK = 1 << 20, 1 << 14
_LONGEST_NAME, _LONGEST_PATH = 255, 3000  # bytes; systems take 255 and, with the folder, 4096
_DEEPEST = 100  # folders above a file
_MAX_HEADER = 1 << 20  # bytes of a header with the name or the facts of a member of a tar file
_MAX_RATIO = 100  # how much larger than an archive its content may be
_SMALL = 1_000_000_000  # bytes that it may have in any case
_MAX_DICTIONARY = 256_000_000  # bytes that unpacking LZMA may keep in memory; "xz -9" wants 64 MiB
_TOO_LARGE_DICTIONARY = f"wants a dictionary of more than {_MAX_DICTIONARY // 10**6} MB to be unpacked; refused"

MemberReader = Callable[[Member], Iterable[bytes]]


def _is_zip(path: Path) -> bool:
    return path.name.lower().endswith(".zip")


def is_archive(path: Path) -> bool:
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
def opened(path: Path) -> Iterator[MemberReader]:
    """What reads the members of a source."""
    if not is_archive(path):
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


def checked_members(path: Path) -> list[Member]:
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
