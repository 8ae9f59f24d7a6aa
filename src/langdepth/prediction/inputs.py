"""Which images the words of a command line stand for: files, folders, globs. Imports neither torch nor NumPy.

Every file of a folder is an image to predict, one that is reported as unreadable, one that is left out and counted (a
result of this library, a depth map), or none at all.
"""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

from langdepth.errors import ImageError, LangdepthError, MissingImageError, first_few
from langdepth.prediction.done import RECORD, Done
from langdepth.prediction.video.sources import OWN, container
from langdepth.utils.files import file_state, is_marked, real_path
from langdepth.utils.image_kinds import RAW_REFUSAL, RAW_SUFFIXES, image_kind, read_head
from langdepth.utils.plugins import plugins
from langdepth.utils.png import grey_bits, is_own_png
from langdepth.utils.reading import read_csv

SUFFIXES = {
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".avif", ".heic", ".heif", ".hif", ".tif", ".tiff", ".bmp"),
    *(".gif", ".ppm", ".pgm", ".pnm", ".jp2", ".jxl"),
}
UNREAD_SUFFIXES = {".tga", ".qoi", ".dds", ".sgi", ".pam", ".pfm", ".ico", ".icns", ".pcx"}
STDIN = "-"
_DEPTH_END, _COLOR_END = "_depth.png", "_color.png"
_INDEX, _OVERLAYS = "index.csv", "overlays.csv"


@dataclass
class Images:
    """What was found.

    files: (path as the user wrote it, its place below the folder of results) of each image. problems: what cannot be
    used. results, depth_maps, videos, unread: what was left out; the last is of kinds that are not read, by its ending.
    """

    files: list[tuple[str, Path]] = field(default_factory=list)
    problems: list[LangdepthError] = field(default_factory=list)
    results: list[Path] = field(default_factory=list)
    depth_maps: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)

    @property
    def note(self) -> str | None:
        """One line about what was left out."""
        kinds = {"results of langdepth": self.results, "depth maps": self.depth_maps}
        parts = [f"{len(files)} {kind} ({first_few(files)})" for kind, files in kinds.items() if files]
        notes = [f"left out as no photos: {' and '.join(parts)}"] if parts else []
        if self.videos:
            some = f"{len(self.videos)} video{'s' * (len(self.videos) > 1)} ({first_few(self.videos)})"
            notes.append(
                f"left out: {some}; videos are predicted where they are named: langdepth predict {self.videos[0]}"
            )
        if self.unread:
            files = f"{len(self.unread)} files ({first_few(self.unread)})"
            notes.append(f"not read, by their kind: {files}; convert them to JPEG or PNG")
        return "; ".join(notes) or None


def find_images(words: list[str], out: Path, recursive: bool | None) -> Images:
    """The images that ``words`` stand for, each path once; ``out`` and what lies below it are not searched.

    Args:
        words: Files, folders, globs, or ``STDIN``.
        out: The folder of results.
        recursive: Search the sub-folders of folders; None: no, and there is no option for it.
    """
    found, known = Images(), set[str]()
    several = len(words) > 1
    for word in words:
        problems = len(found.problems)
        candidates = _candidates(word, out, bool(recursive), found.problems, several)
        used = [_sort_in(candidate, found, known) for candidate in candidates]
        if not any(used) and len(found.problems) == problems:
            folder = Path(word).is_dir()
            hint = "; --recursive looks into sub-folders" if folder and recursive is False else ""
            found.problems.append(LangdepthError(f"{word}: no images {'in this folder' if folder else 'match'}{hint}"))
    if found.note and not found.files and not found.problems:
        found.problems.append(LangdepthError(f"nothing to predict; {found.note}"))
    return found


def images_below(
    folder: str | Path, out: str | Path, pattern: str | None = None
) -> tuple[list[Path], list[LangdepthError]]:
    """The images below a folder as paths from there, and what cannot be used.

    Args:
        folder: It and its sub-folders are searched, without those of results.
        out: The file or folder of results.
        pattern: Of the names, for example "**/rgb_*"; by default those of all images.

    Raises:
        LangdepthError: There is no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise LangdepthError(f"{folder}: no such folder")
    word = str(folder) if pattern is None else str(Path(glob.escape(str(folder)), pattern))
    found = find_images([word], Path(out), recursive=True)
    own = real_path(out)
    images = [Path(source) for source, _ in found.files if own not in real_path(source).parents]
    if not images:
        raise next(iter(found.problems), LangdepthError(f"{word}: no images match"))
    return [image.relative_to(folder) for image in images], found.problems


@dataclass(frozen=True)
class _Candidate:
    """A file that may be an image.

    named: whether the user named it, and not a folder or a pattern. meant: whether the user named it alone, so that it
    is predicted even if it is a depth map. result, depth_map: what its folder says it is.
    """

    source: str
    place: Path
    named: bool = False
    meant: bool = False
    result: bool = False
    depth_map: bool = False


def _sort_in(candidate: _Candidate, found: Images, known: set[str]) -> bool:
    """Put one file where it belongs; whether it has to do with images at all."""
    path, suffix = Path(candidate.source), Path(candidate.source).suffix.lower()
    if candidate.source == STDIN:
        found.files.append((candidate.source, candidate.place))
        return True
    name = os.path.abspath(path)  # not what links lead to: each of two links to one file is an image
    if name in known:
        return True
    head = read_head(path)
    kind = image_kind(head)
    raw = bool(head) and suffix in RAW_SUFFIXES and kind in (None, "TIFF", "camera raw")
    if kind is None and not raw and container(head) is not None:
        known.add(name)
        (found.results if _is_recorded(path) or is_marked(path, OWN.encode()) else found.videos).append(path)
        return True
    if not (candidate.named or raw or kind is not None or suffix in SUFFIXES):
        if bool(head) and suffix in UNREAD_SUFFIXES:
            known.add(name)
            found.unread.append(path)
            return True
        return False
    known.add(name)
    if candidate.named and _is_missing(path):
        found.problems.append(MissingImageError(f"{path}: no such file"))
        return True
    if candidate.result or (kind == "PNG" and _is_result(path)) or _is_recorded(path) or _is_of_plugin(path):
        found.results.append(path)
    elif candidate.depth_map or (kind == "PNG" and not candidate.meant and _is_depth_map(candidate.place, head)):
        found.depth_maps.append(path)
    elif raw:
        found.problems.append(ImageError(f"{path}: {RAW_REFUSAL}"))
    else:
        found.files.append((candidate.source, candidate.place))  # whether it can be read is found out in its turn
    return True


def _is_missing(path: Path) -> bool:
    """Whether there is nothing of that name; links in circles and what may not be looked at are found out later."""
    try:
        path.stat()
    except (FileNotFoundError, ValueError):
        return True
    except OSError:
        pass
    return False


def _is_result(path: Path) -> bool:
    """Whether a PNG says that this library wrote it, or that of the depth map beside it does (older versions)."""
    beside = path.with_name(path.name.removesuffix(_COLOR_END) + _DEPTH_END)
    return is_own_png(path) or (path.name.endswith(_COLOR_END) and is_own_png(beside))


def _is_recorded(path: Path) -> bool:
    """Whether a record of results, there or in a folder above, names a file that has not changed since."""
    path = path.absolute()
    states = ((home, file_state(home / RECORD)) for home in path.parents)
    return any(state is not None and _record(home, tuple(state)).owns(path) for home, state in states)


@lru_cache(maxsize=16)
def _record(folder: Path, state: tuple[int, ...]) -> Done:
    return Done(folder)


def _is_of_plugin(path: Path) -> bool:
    """Whether a plug-in's format has this name for the result of an image beside it."""
    if not plugins("formats"):
        return False
    from langdepth.prediction.results import WRITERS

    ends = [WRITERS[name].suffix for name in plugins("formats") if name in WRITERS]
    stems = [path.name.removesuffix(end) for end in ends if path.name.endswith(end) and not end.startswith(".")]
    return any(path.with_name(stem + suffix).is_file() for stem in stems for suffix in SUFFIXES)


def _is_depth_map(place: Path, head: bytes) -> bool:
    """Whether a PNG of a folder is depth by its one channel and its name."""
    bits = grey_bits(head)
    if bits == 16:
        return "depth" in str(place).lower()
    return bits is not None and place.name.lower().endswith(_DEPTH_END)


def _candidates(
    word: str, out: Path, recursive: bool, problems: list[LangdepthError], several: bool
) -> Iterator[_Candidate]:
    """The files that one word of the command line stands for, in order; what cannot be searched goes to problems.

    Of ``several`` words, as a shell makes of a pattern, none is meant more than if langdepth had read the pattern.
    """
    path = Path(word)
    if word == STDIN:
        yield _Candidate(STDIN, Path("stdin"), named=True)
    elif path.is_dir():
        excluded = None if real_path(out) == real_path(path) else real_path(out)
        yield from sorted(_files(path, path, recursive, excluded, problems), key=lambda file: file.place)
    elif glob.has_magic(word) and not os.path.lexists(path):
        fixed = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        for file in sorted(Path(f) for f in glob.glob(word, recursive=True)):
            if not file.is_dir():
                yield _Candidate(str(file), file.relative_to(fixed), depth_map=_is_listed(file))
    else:
        listed = several and _is_listed(path)
        yield _Candidate(word, Path(path.name), named=True, meant=not several, depth_map=listed)


def _files(
    root: Path,
    folder: Path,
    recursive: bool,
    excluded: Path | None,
    problems: list[LangdepthError],
    above: tuple[Path, ...] = (),
    depth_maps: Set[str] = frozenset(),
) -> Iterator[_Candidate]:
    """The files of a folder and, ``recursive``, of those below it, also where links lead there; none that is hidden."""
    real = real_path(folder)
    if real == excluded or real in above:  # the results; a link that leads up again
        return
    try:
        with os.scandir(folder) as entries:
            names = {entry.name: _is_folder(entry) for entry in entries if not entry.name.startswith(".")}
    except OSError as error:
        problems.append(LangdepthError(f"{folder}: cannot be read ({error.strerror})"))
        return
    result = bool(above) and _OVERLAYS in names  # images with masks drawn over them
    depth_maps |= _listed_depth(folder) if _INDEX in names else frozenset()
    for name, is_folder in names.items():
        file = folder / name
        if not is_folder:
            listed = os.path.normpath(file) in depth_maps
            yield _Candidate(str(file), file.relative_to(root), result=result, depth_map=listed)
        elif recursive:
            yield from _files(root, file, recursive, excluded, problems, (*above, real), depth_maps)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False


def _is_listed(file: Path) -> bool:
    """Whether the index of its folder names a file as a depth map."""
    state = file_state(file.parent / _INDEX)
    return state is not None and os.path.normpath(file) in _kept_list(file.parent, tuple(state))


@lru_cache(maxsize=16)
def _kept_list(folder: Path, state: tuple[int, ...]) -> frozenset[str]:
    return _listed_depth(folder)


def _listed_depth(folder: Path) -> frozenset[str]:
    """The depth maps that the index of a folder names."""
    try:
        rows = read_csv(folder / _INDEX)
        return frozenset(os.path.normpath(folder / (row.get("path_depth") or "")) for row in rows)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError):
        return frozenset()
