"""Which overlay belongs to which image: the image with masks drawn over it lies in a folder of its own.

The overlay of an image is found by the end of the image's path, the longest end first:
``.../train/kitchen/rgb_00045.jpg`` has ``train/kitchen/00045.jpg`` below the folder, else ``kitchen/00045.jpg``, else
``00045.jpg``. So one folder serves images in any layout, also those inside a file, which go by their key.
``overlays.csv``, which ``langdepth data sam`` writes, names the overlay of each image where names are ambiguous.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from langdepth.data.lists import Listing
from langdepth.data.masks import MASKS, OverlayKind
from langdepth.data.rows import Row
from langdepth.errors import LangdepthError, UsageError, first_few, text_flaw
from langdepth.utils.files import atomic_path
from langdepth.utils.reading import read_csv

INDEX = "overlays.csv"
COLUMNS = ("image", "overlay")


class TakesOverlay(Protocol):
    """A system, of which this module asks its name and which overlays it takes."""

    name: str
    takes_overlay: bool
    overlay_kind: OverlayKind


def overlay_names(images: Sequence[Path]) -> dict[Path, Path]:
    """Each image -> its overlay, both relative: the image's name as .jpg without ``rgb_``, as published.

    Images of one folder that would share an overlay have their ending in its name, too: ``1_png.jpg``.
    """
    published = {image: image.parent / f"{image.stem.removeprefix('rgb_')}.jpg" for image in images}
    taken: dict[Path, int] = {}
    for overlay in published.values():
        taken[overlay] = taken.get(overlay, 0) + 1
    return {
        image: overlay if taken[overlay] == 1 else image.parent / f"{image.name.replace('.', '_')}.jpg"
        for image, overlay in published.items()
    }


def write_index(folder: Path, overlays: dict[Path, Path]) -> None:
    """Write which image has which overlay, beside what the index in ``folder`` says of others."""
    known = read_table(folder) | {image.as_posix(): overlay.as_posix() for image, overlay in overlays.items()}
    with atomic_path(folder / INDEX) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(sorted(known.items()))


def read_table(folder: Path) -> dict[str, str]:
    """Image -> overlay, both relative, of the folder's index; empty without one.

    Raises LangdepthError naming the line of a mistake, also of a path that leads out of the folder.
    """
    index, found = folder / INDEX, dict[str, str]()
    if not index.exists():
        return found
    try:
        reader = read_csv(index)
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise LangdepthError(f"{index}: needs the columns {', '.join(COLUMNS)}")
        for line in reader:
            image, overlay = line["image"] or "", PurePosixPath(line["overlay"] or "")
            if not image or not overlay.parts or overlay.is_absolute() or ".." in overlay.parts:
                where = f"{index} line {reader.line_num}"
                raise LangdepthError(f"{where}: overlay '{overlay}' of '{image}' does not lie inside the folder")
            found[image] = overlay.as_posix()
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise LangdepthError(f"{index}: not readable as CSV ({text_flaw(error)})") from None
    return found


class Overlays:
    """The overlays of one kind in a folder.

    Raises:
        LangdepthError: There is no such folder, or its index is damaged.
    """

    def __init__(self, folder: str | Path, kind: OverlayKind = MASKS) -> None:
        self.folder, self.kind = Path(folder), kind
        if not self.folder.is_dir():
            raise LangdepthError(f"{folder}: no such folder of {kind.what}s")
        self._index = read_table(self.folder)
        self._there = Listing()

    def find(self, *images: str | Path) -> Path | None:
        """The overlay of an image that is known by one or more paths, the first ones before the others."""
        places = (place for image in images for end in _ends(Path(image)) for place in self._places(end))
        return next((place for place in places if place in self._there), None)

    def published(self, image: Path) -> Path:
        """Where the overlay of an image would lie by the published name."""
        return (self.folder / overlay_names([image])[image]).with_suffix(self.kind.endings[0])

    def _places(self, image: Path) -> Iterator[Path]:
        """Where the overlay of a relative path may lie: by the index, by the published name, by the image's own."""
        if image.as_posix() in self._index:
            yield self.folder / self._index[image.as_posix()]
        for name in (self.published(image), self.folder / image):
            yield from (name.with_name(name.stem + ending) for ending in self.kind.endings)
        yield self.folder / image


def with_overlays(rows: Sequence[Row], system: TakesOverlay, folder: str | Path | None) -> list[Row]:
    """The rows, each with its overlay if the system takes one.

    Args:
        rows: Of a data set.
        system: What they are for.
        folder: Of the overlays; without it what the data set's index names, or else the nearest folder of the name
            that this kind has, beside or above each image.

    Raises:
        UsageError: A folder is given, but the system takes no overlay.
        LangdepthError: Images have no overlay, or two have the same.
    """
    if not system.takes_overlay:
        if folder is not None:
            raise UsageError(f"{folder}: the system '{system.name}' takes no overlay; leave the folder out")
        return list(rows)
    kind = system.overlay_kind
    folders, found, missing = _Folders(folder, kind), list[Row](), list[Row]()
    for row in rows:
        overlay = row.path_overlay if folder is None else None
        if overlay is None:
            overlays = folders.of(row)
            overlay = None if overlays is None else overlays.find(*_names(row))
        if overlay is None:
            missing.append(row)
        found.append(replace(row, path_overlay=overlay, read_overlay=kind.read))
    if missing:
        overlays = folders.of(missing[0])
        nowhere = "" if kind.folder is None else f" since there is no folder {kind.folder} beside them"
        where = f" in {overlays.folder}" if overlays is not None else nowhere
        raise LangdepthError(
            f"'{system.name}' needs {kind.one} for each image; {len(missing)} of {len(rows)} have none{where}: "
            f"{first_few(list(map(_shown, missing)))}; {kind.advice}"
        )
    _require_one_each(found)
    return found


def _require_one_each(rows: Sequence[Row]) -> None:
    """Raise LangdepthError where two images would share an overlay: so short a name fits both."""
    owners: dict[Path | None, Row] = {}
    for row in rows:
        first = owners.setdefault(row.path_overlay, row)
        if (first.path_rgb, first.key) != (row.path_rgb, row.key):
            raise LangdepthError(
                f"{row.path_overlay}: by its name it is the overlay of both {_shown(first)} and {_shown(row)}; name a "
                "folder in which each image has its own"
            )


class _Folders:
    """The folder of overlays of each row: the one that was named, or the kind's own one, nearest above its image."""

    def __init__(self, folder: str | Path | None, kind: OverlayKind) -> None:
        self.kind = kind
        self.named = None if folder is None else Overlays(folder, kind)
        self._known: dict[Path, Overlays | None] = {}

    def of(self, row: Row) -> Overlays | None:
        return self.named or self._nearest(Path(os.path.abspath(row.path_rgb.parent)))

    def _nearest(self, folder: Path) -> Overlays | None:
        if self.kind.folder is None:
            return None
        if folder not in self._known:
            here, above = folder / self.kind.folder, folder.parent
            if here.is_dir():
                self._known[folder] = Overlays(here, self.kind)
            else:
                self._known[folder] = None if folder == above else self._nearest(above)
        return self._known[folder]


def _ends(path: Path) -> Iterator[Path]:
    """The ends of a path, the longest first, none of which leads anywhere else."""
    parts = [part for part in path.parts if part not in (path.anchor, "..")]
    return (Path(*parts[start:]) for start in range(len(parts)))


def _names(row: Row) -> list[Path]:
    """The paths that an image goes by: its file, where it has one of its own, and its key."""
    own = [] if row.item is not None else [row.path_rgb]
    return [*own, Path(row.split, row.key)]


def _shown(row: Row) -> str:
    return str(row.path_rgb) if row.path_rgb.name == Path(row.key).name else f"{row.path_rgb}: {row.key}"
