"""``langdepth scale``: a relative depth map in metres, from words, the photo and known distances."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from langdepth.commands._parse import run
from langdepth.commands._results import Losses, ResultOptions, result_line
from langdepth.errors import UsageError, say
from langdepth.utils.files import make_folder
from langdepth.utils.numbers import plain_number

EXAMPLE = """
langdepth scale map.png --text "a kitchen with a sink" --out metres
langdepth scale map.npy --inverse --text "a street with cars" --image photo.jpg --out metres
langdepth scale map.png --known 320,240=2.4 --known 80,400=1.1 --out metres
langdepth scale map.png --camera-height 1.5 --fov 60 --out metres
"""


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(scale, arguments, "langdepth scale", EXAMPLE)


@dataclass(frozen=True, kw_only=True)
class ScaleResults(ResultOptions):
    """The files and the camera.

    Args:
        camera_height: Metres from the camera to the floor, which must be in view; needs --camera, --intrinsics or
            --fov.
    """

    camera_height: float | None = None

    def __post_init__(self) -> None:
        self.require_values()  # whether a camera has a use depends on the photo
        self.require_unit_use()


def scale(
    relative_map: str,
    *,
    text: str | None = None,
    image: Path | None = None,
    inverse: bool = False,
    known: list[str] | None = None,
    output: ScaleResults,
    out: Path = Path("metres"),
) -> None:
    """Metres for a relative depth map, and how sure they are.

    A sentence, the photo, known distances and the camera's height are combined; one of them is enough. The
    line says in which interval the median depth lies with 67 and with 95 %.

    Args:
        relative_map: The map: 16-bit .png (0: no value), .npy, .npz or .exr.
        text: A sentence about the image, for example "a kitchen with a sink".
        image: The photo the map was made of; the embedded model estimates distances from it.
        inverse: Larger values are nearer, as MiDaS and Depth Anything give them, not farther.
        known: X,Y=METRES, the distance along the optical axis at a pixel of the map, for example 320,240=2.4; may be
            given several times.
        output: Which files are written, and the camera.
        out: Folder for the results.
    """
    from langdepth.prediction.results import require_own
    from langdepth.scaling.scale import scale as metres

    if output.camera_height is None and image is None:
        output.require_camera_use(other="--image, --camera-height, ")
    distances = [_distance(one) for one in known or ()]
    stem = Path(relative_map).stem.removesuffix("_depth")
    targets = {name: out / (stem + suffix) for name, suffix in output.suffixes.items()}
    for target in targets.values():
        if target.exists() and os.path.samefile(target, relative_map):
            raise UsageError(f"{target}: is the map itself; give another folder with --out")
        require_own(target)
    result = metres(
        relative_map,
        text,
        image=image,
        inverse=inverse,
        known=distances,
        camera=output.lens,
        camera_height=output.camera_height,
    )
    make_folder(out)
    output.write(result, targets)
    losses = Losses()
    losses.add(output.lost(result))
    for loss in losses.lines:
        say(f"langdepth scale: {loss}", file=sys.stderr)
    if result.provenance["scale"]["map_stated_by"] == "nobody":
        note = (
            "nothing says whether larger values are farther or nearer; read as farther, --inverse reads them as nearer"
        )
        say(f"langdepth scale: {relative_map}: {note}", file=sys.stderr)
    say(result_line(relative_map, targets, result))


def _distance(text: str) -> tuple[float, float, float]:
    try:
        place, metres = text.split("=")
        x, y = place.split(",")
        return plain_number(x), plain_number(y), plain_number(metres)
    except ValueError:
        raise UsageError(f"--known: expected X,Y=METRES, for example 320,240=2.4, got '{text}'") from None
