"""Official split lists: those shipped with the package, and list files that come with the data."""

from __future__ import annotations

import hashlib
import lzma
import os
from pathlib import Path

from langdepth.errors import LangdepthError, text_flaw
from langdepth.utils.numbers import plain_number
from langdepth.utils.reading import read_text

_MAX_SMALL = 100_000  # bytes of a file with a few numbers
_FOLDER = Path(__file__).parent / "lists"

# Name -> SHA-256 of the text. Each line is an image's path; a second column "None" says that it has no ground truth.
SHIPPED = {
    "kitti_eigen_train": "7180842c3fcca1a0107330abcbd915a488cfece44b729bb43f7ab7dc34ed4420",
    "kitti_eigen_test": "c481c60a6bb962577f0fe443524f3ea9730d6345732a74fa19f88ffec76f6376",
    "nyu_sync": "3819d855699f6ed8b531c6d2446e2c6d77f7210cbf3289981ec66393da05b145",
    "nyu_test": "74270992ed8d0941213c14a4296081361174403655611c1cae1846eaf5dbd56e",
}


def shipped(name: str) -> list[str]:
    """The images with ground truth of a list in ``SHIPPED``. Raises LangdepthError when the file is damaged."""
    path = _FOLDER / f"{name}.txt.xz"
    try:
        content = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise LangdepthError(f"{path}: cannot be read ({error}); install the package again") from None
    if hashlib.sha256(content).hexdigest() != SHIPPED[name]:
        raise LangdepthError(f"{path}: is not the list that belongs to this version; install the package again")
    return [line for line in content.decode().splitlines() if not line.endswith(" None")]


def read_list(path: Path, columns: int = 1) -> list[tuple[str, ...]]:
    """The columns of a list file, split at blanks, in the order of the images' paths.

    Lines whose second column is None have no ground truth and drop out. Raises LangdepthError for a missing or
    empty file, a line with fewer than ``columns`` columns, and a path that leads out of the data set.
    """
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        raise LangdepthError(f"{path}: the split list is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LangdepthError(f"{path}: not readable as a list ({text_flaw(error)})") from None
    rows = []
    for number, line in enumerate(lines, 1):
        parts = tuple(line.split())
        if not parts or parts[1:2] == ("None",):
            continue
        if len(parts) < columns:
            raise LangdepthError(f"{path} line {number}: has {len(parts)} columns, {columns} are needed")
        if columns > 1:
            require_two(parts[0], parts[1], f"{path} line {number}")
        rows.append(tuple(inside(part, f"{path} line {number}") for part in parts))
    if not rows:
        raise LangdepthError(f"{path}: the split list is empty")
    return sorted(rows)


def list_of(folder: Path, name: str) -> Path:
    """Where the list ``name`` lies: in the folder of the data or in the one above it."""
    above = folder.parent / name
    return above if above.is_file() and not (folder / name).is_file() else folder / name


def listed(path: Path, columns: int = 2) -> list[tuple[str, ...]]:
    """The first ``columns`` of a list file, or none where there is no such file. Raises as ``read_list`` does."""
    return [line[:columns] for line in read_list(path, columns)] if path.is_file() else []


def require_two(image: str, depth: str, where: str) -> None:
    """Raise LangdepthError, naming ``where``, when an image is named as its own ground truth."""
    if os.path.normpath(image) == os.path.normpath(depth):
        raise LangdepthError(f"{where}: '{image}' is named as the image and as its depth")


def inside(name: str, where: str) -> str:
    """``name``, a path below the root of the data set. Raises LangdepthError, naming ``where``, if it leads outside."""
    if name.startswith("/") or ".." in name.split("/"):
        raise LangdepthError(f"{where}: '{name}' does not lie inside the data set")
    return name


def read_intrinsics(path: Path) -> tuple[float, float, float, float] | None:
    """fx, fy, cx, cy from a file with the nine numbers of a camera matrix, or None where there is no such file."""
    if not path.is_file():
        return None
    try:
        fx, _, cx, _, fy, cy, *_ = map(plain_number, read_text(path, _MAX_SMALL).split())
    except (OSError, ValueError):
        raise LangdepthError(f"{path}: expected the nine numbers of a camera matrix") from None
    return fx, fy, cx, cy


class Listing:
    """Which files there are; each folder is asked once, since a question per file takes a network drive minutes."""

    def __init__(self) -> None:
        self._names: dict[Path, set[str]] = {}

    def __contains__(self, path: Path) -> bool:
        if path.parent not in self._names:
            try:
                self._names[path.parent] = set(os.listdir(path.parent))
            except OSError:  # no such folder
                self._names[path.parent] = set()
        return path.name in self._names[path.parent]
