"""``langdepth data sample`` and ``sam``: folders of images that this library writes."""

from __future__ import annotations

import sys
from itertools import chain

from langdepth.commands.data._progress import count_outcomes
from langdepth.errors import say


def sample(directory: str, *, count: int = 24, seed: int = 0, height: int = 240, width: int = 320) -> None:
    """Write a small folder of synthetic rooms and streets with exact depth, to try training and evaluation on.

    Args:
        directory: New folder; it appears when it is complete.
        count: Number of images.
        seed: Random seed.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
    """
    from tqdm import tqdm

    from langdepth.data.tools.sample import write_sample

    with tqdm(total=count, unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:
        root = write_sample(directory, count, seed, (height, width), progress=bar.update)
    say(f"{count} synthetic images with exact depth in {root}; check them with: langdepth data check {root}")
    say("to try commands on: figures on them do not compare with those on photos")


def sam(
    directory: str,
    *,
    weights: str,
    out: str = "sam_out",
    pattern: str | None = None,
    device: str = "auto",
    resume: bool = False,
) -> int:
    """Draw SAM's masks over photos, as the system msa-sam wants them. Needs the package segment-anything.

    The photo train/kitchen/rgb_00045.jpg has its overlay in sam_out/train/kitchen/00045.jpg, and overlays.csv beside
    them says which photo has which. Training and evaluation find a folder sam_out beside or above the photos. A photo
    that cannot be read is reported and skipped; the exit code is then 1.

    Args:
        directory: Folder of photos.
        weights: SAM's published weights, for example sam_vit_h_4b8939.pth.
        out: Folder for the overlays.
        pattern: Only photos whose path below the folder fits, for example "**/rgb_*"; by default all images, whatever
            their names, but depth maps and results.
        device: auto (an accelerator if there is one), cpu, cuda, cuda:1.
        resume: Skip photos whose overlay is there.
    """
    from langdepth.data.tools.sam import load_sam, write_overlays
    from langdepth.prediction.inputs import images_below

    generate = load_sam(weights, device)
    photos, problems = images_below(directory, out, pattern)
    outcomes = write_overlays(directory, out, generate, photos, resume=resume)
    done, failed = count_outcomes(chain(problems, outcomes), "langdepth data sam", "photo")
    say(f"{done} overlays written, {failed} photos failed, results in {out}")
    return 1 if failed else 0
