"""Which results a folder has, and what they were made of, so that a later run need not make them again."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from langdepth.errors import LangdepthError
from langdepth.utils.files import atomic_path, file_stamp, file_state
from langdepth.utils.reading import read_text

RECORD = ".langdepth-results.jsonl"


def origin(*facts: Any) -> str:
    """Sixteen hex digits for what a result is made of: options, and files by their place, size and time."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def stamp(name: str | Path | None) -> Any:
    """Place, size and time of a file, for ``origin``; what is no file is its own stamp."""
    return file_stamp(name) if name is not None and os.path.isfile(name) else name


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
        with suppress(OSError, ValueError, TypeError, RecursionError):  # without a record all results are made again
            known = dict(json.loads(line) for line in read_text(folder / RECORD).splitlines())
            self._known = {str(name): fact for name, fact in known.items()}

    def has(self, files: Sequence[Path], made_of: str) -> bool:
        """Whether all of these files are there, made of the same and not changed since."""
        return all(self._fact(file)[:3] == [made_of, *_content(file)] for file in files)

    def owns(self, file: Path) -> bool:
        """Whether a file has not changed since it was written as a result; for formats that cannot be recognised."""
        return self._fact(file)[1:3] == _content(file)

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
        lines = "".join(_line((self._name(file), [made_of, *_content(file), image])) for file in files)
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
