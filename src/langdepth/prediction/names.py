"""Names of result files: one for each image, the same in every run, that says which image it belongs to."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path


def unique_names(places: Sequence[Path], ends: Sequence[str] = ("",)) -> list[Path]:
    """Names without ending; where those would be the same, with it (a_jpg, a_png), then with a number (a_jpg_2).

    Args:
        places: Of the images, below the folder of results.
        ends: What is added to a name for each file that bears it. No two images have a file in common: with the ends
            "_depth.png" and ".png", x.jpg and x_depth.jpg would otherwise.
    """
    count = Counter(str(place.with_suffix("")).casefold() for place in places)  # some file systems ignore case
    names: list[Path] = []
    taken: set[str] = set()
    for place in places:
        name = place.with_suffix("")
        if count[str(name).casefold()] > 1:
            name = names_of(place)[1]
        for candidate in chain([name], (name.with_name(f"{name.name}_{number}") for number in itertools.count(2))):
            files = {f"{candidate}{end}".casefold() for end in ends}
            if taken.isdisjoint(files):
                break
        names.append(candidate)
        taken |= files
    return names


def names_of(place: Path) -> tuple[Path, Path]:
    """The names that ``unique_names`` gives an image unless more than their endings are alike: a, a_jpg."""
    return place.with_suffix(""), place.with_name(place.stem + place.suffix.replace(".", "_"))


def place_of_key(key: str) -> Path:
    """The path below a folder of results for an image's key, which an index may write in odd ways (absolute, "..")."""
    return Path(*(part for part in Path(key).parts if part not in ("..", Path(key).anchor)))
