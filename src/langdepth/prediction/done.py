"""Which results a folder has, and what they were made of, so that a later run need not make them again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from langdepth.errors import LangdepthError
from langdepth.prediction.names import names_of
from langdepth.utils.files import atomic_path, file_state, real_path
from langdepth.utils.reading import open_regular, read_bytes

RECORD = ".langdepth-results.jsonl"
_NPZ = re.compile(rb"PK\x03\x04.{26}depth\.npy", re.DOTALL)


def origin(*facts: Any) -> str:
    """Sixteen hex digits for what a result is made of: options, weights, and images by their place, size and time."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def stamp(name: str | Path | None) -> Any:
    """Place, size and time of a file, for ``origin``; what is no file is its own stamp."""
    return [str(real_path(name)), file_state(Path(name))] if name is not None and os.path.isfile(name) else name


class Result(NamedTuple):
    """What the record says of a file: the image it was made of (absolute path), its ``origin``, its time of change."""

    image: Path
    made_of: str
    time: int


class Done:
    """The results in a folder: a line of JSON for each in ``RECORD``, [name, [origin, size, time of change, image]]."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._known: dict[str, list[Any]] = {}
        lines: list[bytes] = []
        with suppress(OSError):  # without a record all results are made again
            lines = read_bytes(folder / RECORD).splitlines()
        for line in lines:
            with suppress(ValueError, TypeError, RecursionError):  # a line that was cut off costs its own result alone
                name, fact = json.loads(line)
                self._known[str(name)] = fact

    def has(self, files: Sequence[Path], made_of: str) -> bool:
        """Whether all of these files are there, made of the same and not changed since."""
        return all(self._fact(file)[:3] == [made_of, *_content(file)] for file in files)

    def owns(self, file: Path) -> bool:
        """Whether a file has not changed since it was written as a result; for formats that cannot be recognised."""
        return self._fact(file)[1:3] == _content(file)

    def is_damaged(self, file: Path) -> bool:
        """Whether a file is what is left of a result that the record names: the beginning of an npz file."""
        if not self._fact(file) or zipfile.is_zipfile(file):
            return False
        with suppress(OSError), open_regular(file) as content:
            return _NPZ.match(content.read(64)) is not None
        return False

    def follow(self, images: Iterable[tuple[str, Path, Path]], ends: Sequence[str]) -> list[tuple[Path, Path]]:
        """Rename results whose images have another name than before: ``a`` is ``a_jpg`` once there is an ``a.png``.

        A result that is there under both names loses the earlier one. Only files that have not changed since they were
        recorded for the very image are touched, and none that is in the way of another image's.

        Args:
            images: Of each its path, its place below the folder, and the name of its results without their ends.
            ends: What the name of a result may end with.

        Returns:
            (earlier name, present name) of each file.
        """
        recorded: dict[str, list[Path]] = defaultdict(list)
        for file, result in self.results().items():
            recorded[str(result.image)].append(file)
        any_end = "|".join(map(re.escape, sorted(ends, key=len, reverse=True)))
        moved: list[tuple[Path, Path]] = []
        for image, place, name in images:
            stems = "|".join(re.escape(one.name) for one in names_of(place))
            earlier = re.compile(rf"((?:{stems})(?:_[0-9]+)?)({any_end})")
            for file in recorded.get(image, ()):
                found = earlier.fullmatch(file.name)
                if found is None or file.parent != name.parent or not self.owns(file):
                    continue
                if not moved:
                    self.start()  # without lines that were cut off
                target = name.with_name(name.name + found[2])
                if file != target and self._move(file, target, image):
                    moved.append((file, target))
        return moved

    def _move(self, file: Path, target: Path, image: str) -> bool:
        fact = self._fact(file)
        if os.path.lexists(target):
            if not (self.owns(target) and self._fact(target)[3:] == [image]):
                return False
            file.unlink()
        else:
            self._append(_line((self._name(target), fact)))  # before, so that it is known at any time
            self._known[self._name(target)] = fact
            os.rename(file, target)
        del self._known[self._name(file)]
        return True

    def results(self) -> dict[Path, Result]:
        """The files of the folder that still have their recorded size, where the record names their image.

        A copy of the folder has them as well: other times of change do not matter.
        """
        found = {}
        for name, fact in self._known.items():
            match fact:
                case [str(made_of), int(size), int(time), str(image)] if image and "\0" not in image:
                    file = self._folder / name
                    inside = not os.path.isabs(name) and ".." not in Path(name).parts
                    if inside and _content(file)[0] == size:
                        found[file] = Result(Path(image), made_of, time)
        return found

    def start(self) -> None:
        """Write what is known, before ``add`` is called. Raises LangdepthError."""
        with atomic_path(self._folder / RECORD, durable=False) as path:
            path.write_text("".join(map(_line, self._known.items())), encoding="utf-8")

    def add(self, files: Sequence[Path], made_of: str, image: str) -> None:
        """Record that files were written of an image, "" for none. Any thread may call it. Raises LangdepthError."""
        self._append("".join(_line((self._name(file), [made_of, *_content(file), image])) for file in files))

    def _append(self, lines: str) -> None:
        path = self._folder / RECORD
        try:
            with self._lock, path.open("a", encoding="utf-8") as record:
                record.write(lines)
        except OSError as error:
            raise LangdepthError(f"{path}: cannot be written ({error.strerror})") from None

    def _fact(self, file: Path) -> list[Any]:
        fact = self._known.get(self._name(file))
        return fact if isinstance(fact, list) else []

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self._folder))


def _line(entry: tuple[str, list[Any]]) -> str:
    return json.dumps(entry) + "\n"


def _content(file: Path) -> list[int]:
    """Size and time of change of a regular file."""
    return (file_state(file) if file.is_file() else None) or [-1]
