"""Archives and container files of the data sets, as trees that can be read: safely, resumably, with a manifest.

While work is going on, ``.langdepth-incomplete`` lies in the folder. ``langdepth-manifest.csv`` gets a line (path,
size, sha256, source) for each file that is complete. A second run skips those that came from the same source and still
have their checksum; ``langdepth data check`` compares with it, too.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from langdepth.data.base import INCOMPLETE, MANIFEST, Member, find_rows, layout
from langdepth.data.tools.archives import ARCHIVES, MemberReader, checked_members, is_archive, opened
from langdepth.errors import LangdepthError, UsageError, text_flaw
from langdepth.utils.files import atomic_path, real_path, require_marked
from langdepth.utils.locks import locked
from langdepth.utils.reading import file_sha256, read_bytes, visible

_MAX_MANIFEST = 1 << 30  # of five million files
_SPARE = 64_000_000  # bytes that stay free on the disk
# How the manifest is opened: any name that a file can have is kept.
_TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}


class ManifestEntry(NamedTuple):
    """A line of the manifest. source: name, size and time of change of what the file was written from."""

    size: int
    sha256: str
    source: str


Source = tuple[Path, list[Member]]  # an archive or a container file, and what comes from it


class Extraction:
    """``total`` files being written below ``out``; ``progress(done, total)`` is called after each."""

    def __init__(self, out: Path, total: int, progress: Callable[[int, int], Any]) -> None:
        self.out = out
        self.total = total
        self.progress = progress
        self.manifest = read_manifest(out)
        if (out / MANIFEST).exists() or (out / MANIFEST).is_symlink():
            self._rewrite_manifest()  # without the line that a stopped run left half, and no longer a link
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

    def write(self, member: Member, read: MemberReader) -> None:
        """Write ``member`` unless it is there as an earlier run wrote it from the same source.

        Raises LangdepthError for a path that leads out of the folder, another size than stated, and a place that
        cannot be written; nothing half-written stays.
        """
        target = self._target(member.path)
        if member.always_write or not self._is_whole(target, self.manifest.get(member.path)):
            self._write(member, target, read(member))
        self._written.add(member.path)
        self.done += 1
        self.progress(self.done, self.total)

    def _target(self, name: str) -> Path:
        target = self.out / name
        if not real_path(target).is_relative_to(real_path(self.out)):
            raise LangdepthError(f"{name}: lies outside {self.out} through a link")
        return target

    def _is_whole(self, target: Path, known: ManifestEntry | None) -> bool:
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
        self.manifest[member.path] = ManifestEntry(count, digest.hexdigest(), self._source)
        with _writing(self.out / MANIFEST), (self.out / MANIFEST).open("a", **_TEXT) as file:
            csv.writer(file).writerow((member.path, *self.manifest[member.path]))

    def _rewrite_manifest(self) -> None:
        with atomic_path(self.out / MANIFEST) as path, path.open("w", **_TEXT) as file:
            csv.writer(file).writerows((name, *entry) for name, entry in self.manifest.items())


def read_manifest(root: Path) -> dict[str, ManifestEntry]:
    """Path -> what was written there; empty without a manifest. A line that a stopped run left half is passed over."""
    try:
        lines = io.TextIOWrapper(io.BytesIO(read_bytes(root / MANIFEST, _MAX_MANIFEST)), **_TEXT)
        rows = list(csv.reader(line for line in lines if "\0" not in line))  # zeros: what a power failure leaves
    except FileNotFoundError:
        return {}
    except (OSError, csv.Error) as error:
        raise LangdepthError(f"{root / MANIFEST}: not readable as a manifest ({text_flaw(error)})") from None
    whole = (row for row in rows if len(row) == 4 and row[1].isdecimal() and len(row[1]) < 20 and len(row[2]) == 64)
    return {path: ManifestEntry(int(size), digest, source) for path, size, digest, source in whole}


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
    files = [path for path in candidates if is_archive(path) or path.name in exports]
    if not files:
        kinds = ", ".join((*exports, *(f"*{suffix}" for suffix in ARCHIVES)))
        raise UsageError(f"{source}: {name} is prepared from one of {kinds}, or a folder of them; give one of these")
    given = [(path, checked_members(path) if is_archive(path) else exports[path.name](path)) for path in files]
    sources = _each_file_once(given)
    members = [member for _, members in sources for member in members]
    _require_own(out, members)
    with locked(out), _room(out, members):
        work = Extraction(out, len(members), progress)
        for path, members in sources:
            with work.reading(path), opened(path) as read:
                for member in members:
                    work.write(member, read)
    return work


def _require_own(out: Path, members: list[Member]) -> None:
    """Raise LangdepthError where files of another size would be replaced that no earlier run has written."""
    if (out / INCOMPLETE).exists():
        return
    known = read_manifest(out)
    for member in members:
        if member.path not in known and not member.is_in(out):
            require_marked(out / member.path)


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
        _require_same(earlier, path, pairs)
    homes = {PurePosixPath(name).parent for name in first}
    folders = {folder.as_posix() for home in homes for folder in (home, *home.parents)}
    for name, (path, _) in first.items():
        if name in folders:
            raise LangdepthError(f"{path}: member {name!r} is a file, and a folder of other members")
    return kept


def _require_same(earlier: Path, path: Path, pairs: list[tuple[Member, Member]]) -> None:
    """Raise LangdepthError unless the members of two sources that have one name have one content."""
    with opened(earlier) as read_earlier, opened(path) as read:
        for same, member in pairs:
            sized = same.exact and same.size == member.size
            if not (sized and _digest(read_earlier(same)) == _digest(read(member))):
                raise LangdepthError(
                    f"{path}: {member.path!r} is in {earlier}, too, and differs; prepare them into two folders"
                )


def _digest(content: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for block in content:
        digest.update(block)
    return digest.digest()
