"""A contact sheet of a data set: images and their depth."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from langdepth.data.rows import Row, read_pair
from langdepth.errors import ImageError, LangdepthError, UsageError
from langdepth.prediction import viz
from langdepth.utils.files import atomic_path, require_marked
from langdepth.utils.png import PNG_TAG, write_own_png

_COMMENT = b"langdepth sheet"  # of a JPEG


def write_sheet(rows: list[Row], out: Path, count: int) -> int:
    """Draw up to ``count`` pairs, evenly from ``rows``, into the image ``out``; returns how many.

    Unusable pairs are left out. Raises UsageError for a name that is not an image's, LangdepthError when all pairs
    are unusable, or ``out`` is somebody else's file.
    """
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UsageError(f"{out}: an image is written as .png, .jpg or .jpeg")
    require_marked(out, PNG_TAG.encode() + b"\0", _COMMENT)
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
    sheet = viz.sheet(shown)
    with atomic_path(out) as temporary, open(temporary, "wb") as file:
        if out.suffix.lower() == ".png":
            write_own_png(file, sheet, kind="sheet")
        else:
            Image.fromarray(sheet).save(file, "JPEG", comment=_COMMENT)
    return len(shown)
