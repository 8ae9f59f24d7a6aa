"""A contact sheet of a data set: images and their depth."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from langdepth.data.rows import Row, read_pair
from langdepth.errors import ImageError, LangdepthError, UsageError
from langdepth.prediction import viz
from langdepth.utils.files import atomic_path
from langdepth.utils.png import own_png


def write_sheet(rows: list[Row], out: Path, count: int) -> int:
    """Draw up to ``count`` pairs, evenly from ``rows``, into the image ``out``; returns how many.

    Unusable pairs are left out. Raises UsageError for a name that is not an image's, LangdepthError when all pairs
    are unusable.
    """
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UsageError(f"{out}: an image is written as .png, .jpg or .jpeg")
    shown, problem = [], None
    for row in rows[:: max(1, len(rows) // count)][:count]:
        try:
            pixels, metres, _ = read_pair(row)
        except ImageError as error:
            problem = error
            continue
        known = f"{(metres > 0).mean():.0%} known"
        shown.append(viz.SheetRow(pixels, metres, None, f"{row.split} {row.key}  {known}"))
    if not shown:
        raise problem or LangdepthError("there is no image to show")
    with atomic_path(out) as temporary:
        Image.fromarray(viz.sheet(shown)).save(temporary, pnginfo=own_png(kind="sheet"))
    return len(shown)
